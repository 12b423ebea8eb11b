"""Does text help? One phase 1, several modes of text fusion, several seeds: what `ablate_text.py` does."""
