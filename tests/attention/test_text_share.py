"""What the texts said, as bars and as a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from analysis.style import figure_style
from analysis.tables import write_table
from attention.capture import PredictedObject, all_objects, predictions_of
from attention.figures import View
from attention.panels import Scene
from attention.run import SourceImage, ViewOptions, visualize
from attention.text_share import draw_text_share, text_shares, text_table
from data.classes import ClassMap
from engine.detector import Detector
from models.detector import DEIM
from tests.support.models import images, shake, tiny_config, tiny_model
from tests.support.text_fusion import fused_model, section
from texts import Language, percent, texts_of

NAMES = ("hole", "scratch", "dent", "crack", "stain", "NORMAL")


def detector(model: DEIM, path: Path) -> Detector:
    path.touch()
    classes = ClassMap(tuple(range(6)), NAMES)
    return Detector(model.eval(), tiny_config(MultimodalFusion=section()), classes, path=path)


@torch.no_grad()
def logits_and_objects(model: DEIM, count: int) -> tuple[torch.Tensor, list[PredictedObject]]:
    outputs = model.eval()(images(1))
    return outputs["pred_logits"][0], all_objects(predictions_of(outputs, 6)[0])[:count]


@pytest.mark.parametrize("lang", ["en", "es"])
def test_parts_and_quality_make_the_detectors_logit(lang: Language, tmp_path: Path) -> None:
    model = fused_model()
    shake(model)
    logits, objects = logits_and_objects(model, 2)
    parts = text_shares(model, images(1), objects)
    for one, part in zip(objects, parts, strict=True):
        assert part.visual.shape == part.text.shape == (3, 6)
        np.testing.assert_allclose(part.visual[-1] + part.text[-1] + part.quality, logits[one.query], atol=1e-4)
        assert ((part.share > 0) & (part.share < 1)).all()
    scene = Scene(np.zeros((8, 8, 3), np.uint8), (8, 8), None, NAMES, texts_of(lang, "attention"))
    with figure_style():
        (drawn,) = draw_text_share(View(detector(model, tmp_path / "x.pth"), "a", scene, images(1), objects))
    assert len(drawn.figure.axes) == 4
    assert drawn.facts["objects"][0]["text"] == parts[0].text.tolist()
    shares = [text.get_text() for text in drawn.figure.axes[0].texts]
    assert shares == [percent(share, lang) for share in parts[0].share[-1]]
    assert drawn.table is not None and len(drawn.table.rows) == 6
    assert drawn.table.rows[2][:3] == [objects[0].query, NAMES[objects[0].label], 3]
    write_table(drawn.table, tmp_path / "out" / "text", lang)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"text.csv", "text.tex"}
    word = "Del texto" if lang == "es" else "From the text"
    assert word in (tmp_path / "out" / "text.csv").read_text(encoding="utf-8-sig")


def test_a_closed_gate_has_no_share() -> None:
    model = fused_model()
    parts = text_shares(model, images(1), logits_and_objects(model, 1)[1])
    assert not parts[0].share.any()
    assert text_table(parts, NAMES, "en").rows[0][-1].value == 0  # type: ignore[union-attr]


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("has_text", [True, False])
def test_a_detector_with_text_gets_its_figure_and_table(has_text: bool, tmp_path: Path) -> None:
    model = fused_model() if has_text else tiny_model()
    shake(model)
    path = tmp_path / "a.png"
    Image.fromarray(np.full((48, 80, 3), 120, dtype=np.uint8)).save(path)
    options = ViewOptions(what=("evidence",), top=1, min_score=0, lang="es")
    loaded = detector(model, tmp_path / "x.pth")
    visualize(loaded, [SourceImage(path, "a")], tmp_path / "out", options, progress=False)
    drawn = {one.name for one in (tmp_path / "out" / "a").iterdir() if one.stem == "text"}
    assert drawn == ({f"text.{suffix}" for suffix in ("png", "pdf", "json", "csv", "tex")} if has_text else set())
