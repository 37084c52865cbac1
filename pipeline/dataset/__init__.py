"""The contract between ingestion and training: a version's manifest, its shards and sidecars, and features of its samples."""
