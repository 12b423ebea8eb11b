"""Names of files and classes, compared as a person reads them."""

from __future__ import annotations

import unicodedata


def composed(name: str) -> str:
    """Write accents as single characters (NFC): a Mac writes ñ as n and a tilde."""
    return unicodedata.normalize("NFC", name)


def name_key(name: str) -> str:
    """Return the same text for all spellings of a name that differ in accents' form, case or outer spaces only."""
    return composed(name).strip().casefold()
