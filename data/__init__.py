"""Annotations, images, augmentation and batches. Imports neither `models` nor `engine`."""
