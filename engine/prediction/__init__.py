"""A trained detector on images, videos and cameras: sources, tiles, thresholds, files."""
