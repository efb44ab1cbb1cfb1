"""Scores and intervals: NumPy, no files, no pictures."""
