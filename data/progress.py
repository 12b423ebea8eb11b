"""The progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress_bar(
    items: Iterable[T] | None,
    what: str,
    *,
    unit: str = "image",
    total: float | None = None,
    initial: int = 0,
    leave: bool = False,
    show: bool | None = True,
) -> tqdm[T]:
    """Wrap `items` in a bar on stderr that says how long it will take; a log file gets a line every half minute.

    Args:
        items: Passed through; None for a bar that is moved with `update`.
        what: In front of the bar.
        total: How many there are, where `items` has no length; `initial` of them are done already.
        leave: Keep the finished bar on the screen.
        show: Whether there is a bar at all; None: only on a terminal.
    """
    bar: tqdm[T] = tqdm(  # type: ignore[assignment]
        items,
        desc=what,
        total=total,
        initial=initial,
        unit=unit,
        leave=leave,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
        disable=None if show is None else not show,
    )
    return bar
