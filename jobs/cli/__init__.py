"""A command line in; a validated configuration, a connection to Ray and an exit code out."""
