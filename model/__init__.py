"""Images and captions in, CLIP's features out, on one device: encoders, tokenizer, preprocessing and weight files."""
