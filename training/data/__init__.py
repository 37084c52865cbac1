"""Manifests in, a rank's decoded batches out, in an order that does not depend on the number of workers."""
