"""URL tables in, immutable WebDataset shards and a manifest out."""
