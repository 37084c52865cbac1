"""A run's record in, one self-contained page or a model card out."""
