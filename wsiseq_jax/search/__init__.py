"""Likeness of features: clusters and neighbours."""
