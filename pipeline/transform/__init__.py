"""Fetched bytes and raw captions in, images and captions ready for storage out."""
