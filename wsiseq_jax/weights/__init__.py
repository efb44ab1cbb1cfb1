"""Weights of others become our parameters."""
