"""Rows in, shards and versioned manifests out: the data set format that ingestion writes and training reads."""
