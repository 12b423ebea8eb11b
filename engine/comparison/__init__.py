"""Models side by side: what `compare_models.py` does."""
