"""Slow and obvious implementations in numpy, never tuned."""
