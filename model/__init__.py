"""CLIP as one device sees it: encoders, tokenizer, preprocessing, weights."""
