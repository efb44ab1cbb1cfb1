"""Experiments; each file's docstring is its manual."""
