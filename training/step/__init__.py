"""A model and a global batch in, gradients and their metrics out, on memory of any size."""
