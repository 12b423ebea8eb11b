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

    Without `items` the bar is moved with `update`. `total` is how many there are where `items` has no length, `initial`
    of them done already. `leave` keeps the finished bar on the screen; `show` None shows it on a terminal only.
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
