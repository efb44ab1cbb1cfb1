"""A slide: find it, open it, find its tissue, cut it into tiles."""
