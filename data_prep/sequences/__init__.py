"""Slides become sequences: drift, walk, zoom."""
