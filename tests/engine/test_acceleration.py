"""Runs with `compile: True`; the compiler itself is tried in tests/models/test_detector.py, here it changes nothing."""

from pathlib import Path

import pytest
import torch

import engine.acceleration
from analysis.cost import measure_cost
from engine.acceleration import compiler
from engine.checkpoint import save_checkpoint
from engine.config import config_to_dict, load_config
from engine.detector import load_detector
from engine.run import build_run
from models.baselines import TorchvisionDetector
from models.detector import DEIM
from tests.support.models import images, tiny_config, tiny_model
from tests.support.tiny_run import write_tiny_config, write_tiny_data
from tests.support.training import alone


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was handed to the compiler."""
    seen: list[object] = []

    def as_is(function: object, **_: object) -> object:
        seen.append(function)
        return function

    monkeypatch.setattr(torch, "compile", as_is)
    monkeypatch.setattr(engine.acceleration, "_hindrance", lambda *_: None)
    return seen


def test_a_run_is_compiled_where_asked_to(tmp_path: Path, compiled: list[object]) -> None:
    write_tiny_data(tmp_path)
    config = load_config(write_tiny_config(tmp_path), ["compile=True"])
    build_run(config, alone(), tmp_path / "run", resume=None, tuning=None).close()
    assert compiled == [DEIM._predict]


def test_a_detector_is_compiled_on_demand_and_its_cost_with_it(tmp_path: Path) -> None:
    model, config = tiny_model(), tiny_config()
    save_checkpoint(tmp_path / "a.pth", {"model": model.state_dict(), "config": config_to_dict(config)})
    plain, compiled = (load_detector(tmp_path / "a.pth", compiled=wanted) for wanted in (False, True))
    assert plain.model._compiled_call_impl is None and compiled.model._compiled_call_impl is not None
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()


@pytest.mark.slow
def test_compiled_detections_and_their_cost(tmp_path: Path) -> None:
    model, config = tiny_model(), tiny_config()
    save_checkpoint(tmp_path / "a.pth", {"model": model.state_dict(), "config": config_to_dict(config)})
    plain, compiled = (load_detector(tmp_path / "a.pth", compiled=wanted) for wanted in (False, True))
    batch = (255 * images().sigmoid()).to(torch.uint8)
    for found, expected in zip(
        compiled.detect(batch, [(64, 64)] * 2), plain.detect(batch, [(64, 64)] * 2), strict=True
    ):
        assert found.scores == pytest.approx(expected.scores, abs=1e-5)
    costs = [measure_cost(detector, eval_batch=2, budget_seconds=20) for detector in (plain, compiled)]
    assert costs[0].gflops == costs[1].gflops and costs[1].dtype == "float32, compiled"


@pytest.mark.parametrize(
    ("model", "device", "triton", "backend", "says"),
    [
        (tiny_model, "cuda", True, "inductor", ""),
        (tiny_model, "cuda", False, "cudagraphs", "Triton is missing"),
        (lambda: TorchvisionDetector.__new__(TorchvisionDetector), "cpu", False, None, "baseline"),
        (lambda: torch.nn.SyncBatchNorm.convert_sync_batchnorm(tiny_model()), "cpu", False, None, "sync_bn"),
    ],
)
def test_by_which_backend_or_why_not(
    model: object, device: str, triton: bool, backend: str | None, says: str, monkeypatch: object, caplog: object
) -> None:
    monkeypatch.setattr(engine.acceleration, "has_triton", lambda: triton)
    assert compiler(model(), torch.device(device)) == backend
    assert says in caplog.text and ("as without" in caplog.text) == (backend is None)
