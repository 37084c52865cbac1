"""A model and a global batch in, gradients and their metrics out, with bounded memory."""
