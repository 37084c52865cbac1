"""A manifest in, batches, the contrastive loss, checkpoints and metrics out."""
