"""Multiple-instance learning on bags of tile features: the jobs around it."""
