"""The progress bar over images."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def image_bar(images: Iterable[T], what: str, *, total: int | None = None, show: bool = True) -> Iterable[T]:
    """`images`, with a bar on stderr that says how long it will take; in a log file a line every half minute.

    Args:
        images: Passed through.
        what: In front of the bar.
        total: How many there are, where `images` has no length.
        show: Whether to show the bar.
    """
    interval = 0.5 if sys.stderr.isatty() else 30.0
    bar: Iterable[T] = tqdm(
        images,
        desc=what,
        total=total,
        unit="image",
        leave=False,
        dynamic_ncols=True,
        mininterval=interval,
        disable=not show,
    )
    return bar
