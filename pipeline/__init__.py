"""Tables of image URLs in, immutable WebDataset shards and a versioned manifest out."""
