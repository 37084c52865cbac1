"""Sections of `jobs/qualify.py`: a `Scale` in, figures of this machine's GPU with their aims out."""
