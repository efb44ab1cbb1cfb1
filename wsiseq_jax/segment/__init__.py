"""Weakly supervised segmentation: from labels, points or slides to masks."""
