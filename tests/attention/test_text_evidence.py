"""What the texts said, as bars and as a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from analysis.labels import labels_of
from analysis.tables import write_table
from attention.objects import all_objects
from attention.run import ViewOptions, visualize
from attention.sources import SourceImage
from attention.text_evidence import has_text, text_evidence, text_table, text_view
from data.classes import ClassMap
from data.errors import UserError
from engine.detector import Detector
from tests.support.baselines import small_baseline
from tests.support.models import images, shake, tiny_config, tiny_model
from tests.support.text_fusion import fused_model, section

NAMES = ("hole", "scratch", "dent", "crack", "stain", "NORMAL")


@pytest.mark.parametrize("lang", ["en", "es"])
def test_parts_and_quality_make_the_detectors_logit(lang: str, tmp_path: Path) -> None:
    model = fused_model()
    shake(model)
    model.eval()
    with torch.no_grad():
        outputs = model(images(1))
    objects = all_objects(outputs)[:2]
    found = text_evidence(model, images(1), objects)
    for one, two in zip(objects, found, strict=True):
        assert two.visual.shape == two.text.shape == (3, 6)
        logits = outputs["pred_logits"][0, one.query].numpy()
        np.testing.assert_allclose(two.visual[-1] + two.text[-1] + two.quality, logits, atol=1e-4)
        assert ((two.share > 0) & (two.share < 1)).all()
    view = text_view(found, NAMES, lang)  # type: ignore[arg-type]
    assert len(view.figure.axes) == 4
    assert view.facts["objects"][0]["text"] == found[0].text.tolist()
    shares = [text.get_text() for text in view.figure.axes[0].texts]
    assert shares == [labels_of(lang).percent(share, 1) for share in found[0].share[-1]]
    assert view.table is not None
    assert len(view.table.rows) == 6
    first = view.table.rows[2]
    assert first[:3] == [objects[0].query, NAMES[objects[0].label], 3]
    write_table(view.table, tmp_path / "text", lang)  # type: ignore[arg-type]
    assert {path.name for path in tmp_path.iterdir()} == {"text.csv", "text.tex"}
    word = "Del texto" if lang == "es" else "From the text"
    assert word in (tmp_path / "text.csv").read_text(encoding="utf-8-sig")


def test_a_closed_gate_has_no_share() -> None:
    model = fused_model().eval()
    with torch.no_grad():
        objects = all_objects(model(images(1)))[:1]
    found = text_evidence(model, images(1), objects)
    assert not found[0].share.any()
    assert text_table(found, NAMES, "en").rows[0][-1].value == 0  # type: ignore[union-attr]


def test_detectors_without_text_are_named() -> None:
    for model in (tiny_model().eval(), small_baseline("fcos_resnet18").eval()):
        assert not has_text(model)
        with pytest.raises(UserError, match="no text fusion"):
            text_evidence(model, images(1), [])
    assert has_text(fused_model())


def test_a_detector_with_text_gets_its_figure_and_table(tmp_path: Path) -> None:
    config = tiny_config(MultimodalFusion=section())
    model = fused_model()
    shake(model)
    classes = ClassMap(tuple(range(6)), NAMES)
    path = tmp_path / "a.png"
    Image.fromarray(np.full((48, 80, 3), 120, dtype=np.uint8)).save(path)
    (tmp_path / "x.pth").touch()
    detector = Detector(model.eval(), config, classes, path=tmp_path / "x.pth")
    options = ViewOptions(what=("evidence",), top=1, min_score=0, lang="es")
    visualize(detector, [SourceImage(path, "a", None)], tmp_path / "out", options, progress=False)
    drawn = {one.name for one in (tmp_path / "out" / "a").iterdir() if one.stem == "text"}
    assert drawn == {"text.png", "text.pdf", "text.json", "text.csv", "text.tex"}
