"""Likeness of features: clusters, neighbours, and indices that are searched."""

from wsiseq_jax.search.index import Index

__all__ = ["Index"]
