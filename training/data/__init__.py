"""Manifests in, a rank's decoded batches out, in an order that depends on no number of workers."""
