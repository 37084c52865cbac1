"""Addresses in, objects out: reads, atomic writes, conditional writes and listings on local folders and S3."""
