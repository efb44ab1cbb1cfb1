"""The page of a segmentation run: what each stage saw, and what it is worth."""
