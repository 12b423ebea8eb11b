"""SIGINT, SIGTERM and SIGHUP: handlers for a while. Imports nothing heavy, so that scripts can begin with it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

HANGUP = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
"""The terminal is gone: a window closed, a connection lost."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *HANGUP)


@contextmanager
def handlers(handler: Callable[[int, FrameType | None], object] | signal.Handlers, *numbers: int) -> Iterator[None]:
    """Handle these signals so inside; outside the main thread, which alone may, nothing is changed."""
    previous = {}
    if threading.current_thread() is threading.main_thread():
        known = {number: signal.getsignal(number) for number in numbers}
        # None: installed by a library in C, and Python could not put it back.
        previous = {number: before for number, before in known.items() if before is not None}
        if HANGUP and previous.get(HANGUP[0]) is signal.SIG_IGN:
            del previous[HANGUP[0]]  # nohup
    for number in previous:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def held_back() -> Iterator[None]:
    """Hold signals back until the end of the context; processes started inside get none until they want them."""
    caught: list[int] = []
    mask = None
    try:
        # Blocking is for the children and this thread; another thread may still be given the signal.
        with handlers(lambda number, frame: caught.append(number), *STOP_SIGNALS):
            if hasattr(signal, "pthread_sigmask"):
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            try:
                yield
            finally:
                if mask is not None:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    finally:
        for number in dict.fromkeys(caught):
            signal.raise_signal(number)
