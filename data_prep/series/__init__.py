"""Folders and tables of images become sequences."""
