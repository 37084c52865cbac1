"""One URL in, its bytes or the reason why not out: guarded addresses, limits for each host, bounded memory."""
