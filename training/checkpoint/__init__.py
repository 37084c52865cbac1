"""A run's state in, a checkpoint out that is complete or absent, and the way back."""
