import signal

import pytest

from data.signals import STOP_SIGNALS
from engine import interrupt
from engine.distributed import Distributed
from engine.interrupt import StopSignal


def alone() -> Distributed:
    import torch

    return Distributed(0, 1, 0, torch.device("cpu"))


@pytest.mark.parametrize(("number", "code"), [(number, 128 + number) for number in STOP_SIGNALS])
def test_a_signal_is_a_request_with_the_shells_exit_code(number: signal.Signals, code: int) -> None:
    with StopSignal() as stop:
        assert not stop.requested(alone())
        signal.raise_signal(number)
        assert stop.requested(alone())
        assert stop.exit().code == code


def test_a_second_signal_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((10.0, 10.9, 11.1))
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: next(now))
    with pytest.raises(SystemExit) as info, StopSignal():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # torchrun's echo of the same Ctrl-C
        signal.raise_signal(signal.SIGINT)
    assert info.value.code == 130
    assert next(now, None) is None


def test_at_once_leaves_inside_and_waits_outside() -> None:
    with StopSignal() as stop, pytest.raises(SystemExit), stop.at_once():
        signal.raise_signal(signal.SIGTERM)
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit), stop.at_once():
            pytest.fail("the request came before")


def test_the_earlier_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignal():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
