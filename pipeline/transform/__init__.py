"""Fetched bytes and captions in, the image and the text that are stored out."""
