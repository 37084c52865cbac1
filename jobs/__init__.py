"""Entry points: each file is a command."""
