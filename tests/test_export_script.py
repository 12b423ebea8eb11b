"""`export_deimv2.py` as a user meets it, and an evaluation of what it wrote."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch

from analysis.evaluate import AnalysisOptions, evaluate_checkpoint
from deploy.export import Format
from engine.distributed import Distributed
from export_deimv2 import FORMATS
from tests.support.scripts import start_script
from tests.support.tiny_run import write_tiny_checkpoint, write_tiny_config, write_tiny_data


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a config, and a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("run")
    write_tiny_data(folder)
    write_tiny_checkpoint(folder / "best.pth", write_tiny_config(folder))
    return folder


run_here = partial(start_script, "export_deimv2.py")


def test_weights_out_and_judged_again(run_folder: Path) -> None:
    code, out, _ = run_here("-r", run_folder / "best.pth", "--format", "hub", "official")
    assert code == 0 and [line.split()[0] for line in out.splitlines()][:3] == ["format", "official", "hub"]
    folder = run_folder / "export_best"
    options = AnalysisOptions(bootstrap=0, report=False, cost=False)
    dist = Distributed(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    metrics = []
    for path, config in (
        (run_folder / "best.pth", None),
        (folder / "best_official.pth", None),
        (folder / "hub", run_folder / "tiny.yml"),
    ):
        metrics.append(evaluate_checkpoint(path, dist, config_path=config, options=options).result.metrics)
    assert metrics[1] == metrics[0] and metrics[2] == metrics[0]
    assert (folder / "eval_val_hub" / "results.json").is_file()


def test_the_script_knows_every_format() -> None:
    """It says so before anything heavy is imported."""
    assert get_args(Format) == FORMATS


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("-r", "nowhere.pth", "--format", "hub"), 2, "nowhere.pth: no such file"),
        (("-r", "x.pth", "--format", "tflite"), 2, "invalid choice"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], code: int, message: str) -> None:
    found, _, err = run_here(*arguments)
    assert found == code and message in err and "Traceback" not in err
