"""Who sits where: statistics of points and regions in windows, in µm."""
