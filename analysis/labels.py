"""Older names of `texts`, for the modules that still use them."""

from texts import LANGUAGES as LANGUAGES
from texts import Language as Language
from texts import Texts, texts_of

Labels = Texts


def labels_of(language: str) -> Labels:
    """Return how the language writes numbers."""
    return texts_of("es" if language == "es" else "en", "figures")
