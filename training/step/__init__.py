"""A model and a global batch in, gradients out, on memory of any size."""
