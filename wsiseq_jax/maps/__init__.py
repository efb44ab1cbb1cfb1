"""Numbers of tiles laid on a slide: heat maps, regions, detections, GeoJSON."""
