"""SIGINT and SIGTERM: finish the step, save, leave with the shell's exit code."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import torch

from engine.distributed import Distributed

log = logging.getLogger(__name__)


class StopSignal:
    """Context manager that turns the two signals into a request the training loop honours after its step."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._immediate = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def received(self) -> bool:
        """Whether this process got a signal."""
        return self._signal is not None

    def requested(self, dist: Distributed) -> bool:
        """Whether any process got a signal; every process must call this."""
        flag = torch.tensor(float(self.received), device=dist.device)
        return bool(dist.sum_(flag) > 0)

    def exit(self) -> SystemExit:
        """130 after SIGINT, 143 after SIGTERM, as shells have it. A process that only heard of it says 143."""
        number = signal.SIGTERM if self._signal is None else self._signal
        return SystemExit(128 + int(number))

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal leaves immediately: for work that is saved already and can be done again."""
        self._immediate = True
        try:
            if self.received:
                raise self.exit()
            yield
        finally:
            self._immediate = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        repeated = self.received
        self._signal = number
        if self._immediate or repeated:
            raise self.exit()
        log.warning("%s: finishing the step and saving (once more to leave at once)", signal.Signals(number).name)
