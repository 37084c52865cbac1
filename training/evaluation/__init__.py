"""A model and held-out data in; figures of retrieval, zero-shot classification and the linear probe out."""
