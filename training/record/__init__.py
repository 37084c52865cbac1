"""A run's numbers in, metrics.jsonl, W&B and an account of the time out."""
