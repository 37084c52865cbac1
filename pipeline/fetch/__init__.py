"""A URL in, its bytes or the reason for the failure out: only from public addresses, with limits per host and on memory."""
