"""A manifest in; a trained model, its checkpoints and its metrics out."""
