"""A run's metrics in; metrics.jsonl, W&B and an account of its time out."""
