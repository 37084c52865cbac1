"""An address in, bytes out: local folders and S3, objects that appear whole or not at all, range reads."""
