"""`--score N` from a detector to the files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attention.capture import capture
from attention.evidence import EVIDENCE_METHODS, ODAM_EDGES
from attention.faithfulness import MatchedObject, ScoreOptions, find_objects
from attention.maps import sampling_density
from attention.score import map_methods, score
from data.classes import ClassMap
from data.errors import UserError
from engine.config import load_config
from engine.detector import Detector
from models.detector import build_detector
from tests.support.baselines import write_tiny_baseline
from tests.support.models import images, shake, tiny_model
from tests.support.tiny_run import CLASS_NAMES, write_tiny_config, write_tiny_data

EASY = ScoreOptions(steps=2, drise_masks=8, score_threshold=0.0, iou_threshold=0.02, samples=20)
"""So that an untrained detector hits something."""


def loaded(folder: Path, config_path: Path) -> Detector:
    """An untrained detector with tiny data."""
    write_tiny_data(folder, num_train=1, num_val=5)
    config = load_config(config_path)
    torch.manual_seed(0)
    model = build_detector(config)
    shake(model)
    (folder / "best.pth").touch()
    return Detector(model.eval(), config, ClassMap((3, 7), CLASS_NAMES), path=folder / "best.pth")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    folder = tmp_path_factory.mktemp("score")
    return loaded(folder, write_tiny_config(folder))


def test_a_baseline_has_class_evidence_alone(tmp_path: Path) -> None:
    baseline = loaded(tmp_path, write_tiny_baseline(tmp_path))
    markdown = score(baseline, 5, tmp_path / "out", options=EASY, progress=False)
    assert "Eigen-CAM" in markdown
    assert "rollout" not in markdown
    assert list(map_methods(baseline.model, None)) == [*EVIDENCE_METHODS, *ODAM_EDGES]
    assert "D-RISE" in markdown


def test_no_boxes_no_score(detector: Detector, tmp_path: Path) -> None:
    write_tiny_data(tmp_path, num_train=1, num_val=2, boxes=False)
    empty = replace(detector, config=load_config(write_tiny_config(tmp_path)))
    with pytest.raises(UserError, match="no image of this split has a box"):
        score(empty, 1, tmp_path / "out", options=EASY)


@pytest.mark.usefixtures("timed_briefly")
def test_each_kind_has_its_tables_and_says_what_was_explained(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_of_each(*arguments: Any) -> list[MatchedObject]:
        return [*{one.kind: one for one in find_objects(*arguments)}.values()]

    monkeypatch.setattr("attention.faithfulness.find_objects", one_of_each)
    every = EASY.model_copy(update={"on": ("fn", "fp", "tp"), "iou_threshold": 0.03})
    markdown = score(detector, 2, tmp_path, layer="vit.1", options=every, progress=False)
    heads = [line for line in markdown.splitlines() if line.startswith("## ")]
    assert heads == ["## Hits", "## False alarms", "## Misses"]
    assert "through the query that fits it best" in markdown and "`vit.1`" in markdown
    content = json.loads((tmp_path / "attention_score.json").read_text(encoding="utf-8"))
    for kind, suffix in (("tp", ""), ("fp", "_fp"), ("fn", "_fn")):
        assert content[kind]["num_objects"] > 0
        assert (tmp_path / f"attention_score{suffix}.csv").is_file()
    assert all(one["iou"] < 0.03 and one["truth_xyxy"] == one["box_xyxy"] for one in content["fp"]["objects"])
    alone = score(detector, 1, tmp_path, options=every.model_copy(update={"on": ("fp",)}), progress=False)
    assert "Hits" not in alone and not (tmp_path / "attention_score_fn.csv").exists()


def test_a_query_reads_through_others_by_halves() -> None:
    model = tiny_model()
    shake(model)
    captured = capture(model.eval(), images(1, 64, 96))
    for layer in captured.cross_attention:  # query 4 reads one cell of the finest map, all others another
        layer.locations[:] = torch.tensor([0.5 / 12, 1.5 / 8])
        layer.locations[:, 4] = torch.tensor([7.5 / 12, 2.5 / 8])
        layer.weights[..., layer.level_of_point > 0] = 0
        layer.weights.div_(layer.weights.sum(dim=-1, keepdim=True))
    density = sampling_density(captured, 4, through_queries=True)
    layers = len(captured.query_attention)
    assert float(density.sum()) == pytest.approx(1 - 0.5**layers, abs=1e-4), "the rest stays on the residual path"
    share, own = torch.eye(len(captured.layer_boxes[0][0]))[4], 0.0
    for among in reversed(captured.query_attention):
        share, own = share / 2, own + float(share[4]) / 2
        matrix = torch.stack([among.rows(0, head) for head in range(among.num_heads)]).mean(dim=0)
        share = (share + share @ matrix) / 2
    assert float(density[2, 7]) == pytest.approx(own, abs=1e-4)
    assert float(density[1, 0]) == pytest.approx(float(density.sum()) - own, abs=1e-4) and density[1, 0] > 0.01


def test_the_density_holds_the_weight_of_the_points_inside_where_they_are() -> None:
    model = tiny_model()
    shake(model)
    captured = capture(model.eval(), images(1, 64, 96))
    query = 4
    density = sampling_density(captured, query)
    assert density.shape == (8, 12)
    assert density.min() >= 0
    layers = len(captured.cross_attention)
    assert 0 < float(density.sum()) <= layers + 1e-4
    for layer in captured.cross_attention:  # all points to the middle of the finest map's cell in row 2, column 7
        layer.locations[:] = torch.tensor([7.5 / 12, 2.5 / 8])
        layer.weights[..., layer.level_of_point > 0] = 0
        layer.weights.div_(layer.weights.sum(dim=-1, keepdim=True))
    centred = sampling_density(captured, query)
    assert float(centred[2, 7]) == pytest.approx(layers, abs=1e-4)
    assert float(centred.sum()) == pytest.approx(layers, abs=1e-4)
