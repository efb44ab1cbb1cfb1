"""The pathologist's side: slides at full resolution, layers, and search."""
