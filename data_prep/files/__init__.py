"""How any file of ours is written, and any table read."""
