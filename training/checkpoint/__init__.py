"""A run's state in, a checkpoint out that is whole or absent, and the way back."""
