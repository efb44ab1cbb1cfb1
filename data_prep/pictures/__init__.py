"""Labelled pictures: images with labels, masks and points become shards."""
