"""What `jobs/benchmark.py` measures: each side of a comparison in, ratios out."""
