"""SIGINT, SIGTERM, SIGHUP: finish the step, save, leave with the shell's exit code."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import torch

from data.signals import STOP_SIGNALS, handlers
from engine.distributed import Distributed
from texts import Texts, texts_of

log = logging.getLogger(__name__)

_ONE_REQUEST_SECONDS = 1.0
"""Within it a second signal is the same request: after Ctrl-C torchrun sends one more to its processes."""


class StopSignal(ExitStack):
    """Context manager that turns these signals into a request the training loop honours after its step."""

    def __init__(self, text: Texts | None = None) -> None:
        super().__init__()
        self._text = text or texts_of("en", "training")
        self._signal: int | None = None
        self._since = 0.0
        self._immediate = False

    def __enter__(self) -> StopSignal:
        self.enter_context(handlers(self._handle, *STOP_SIGNALS))
        return self

    @property
    def received(self) -> bool:
        """Whether this process got a signal."""
        return self._signal is not None

    def requested(self, dist: Distributed) -> bool:
        """Whether any process got a signal; every process must call this."""
        flag = torch.tensor(float(self.received), device=dist.device)
        return bool(dist.sum_(flag) > 0)

    def exit(self) -> SystemExit:
        """130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP, as shells have it. A process that only heard of
        it says 143."""
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
        if self._immediate:
            self._signal = number
            raise self.exit()
        if not self.received:
            self._signal, self._since = number, time.monotonic()
            log.warning("%s", self._text("stopping", signal=signal.Signals(number).name))
        elif time.monotonic() - self._since > _ONE_REQUEST_SECONDS:
            raise self.exit()
