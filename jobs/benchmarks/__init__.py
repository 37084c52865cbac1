"""Measurements of `jobs/benchmark.py`: each side of a comparison in, ratios out."""
