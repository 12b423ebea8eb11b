"""A trained detector at work: predictions on images and videos, exports to other runtimes."""
