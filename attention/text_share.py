"""How much of a class score came from the class texts, as bars and as a table (phase 2 only).

Legend: N decoder layers, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from analysis.style import FOUND_COLOUR, HATCHES, INK, MAX_HEIGHT_CM, TRUTH_COLOUR, in_language, new_figure
from analysis.tables import Cell, Number, Table
from attention.capture import PredictedObject
from attention.figures import Drawn, View, add_caption
from attention.panels import Scene
from data.types import FloatArray
from models.detector import DEIM
from models.text_fusion import text_contributions
from texts import Language, Texts, texts_of

_ROW_CM, _MARGIN_CM = 5.0, 3.0
_MOST_CLASSES = 12


@dataclass(frozen=True)
class TextShare:
    """The class logits of one predicted object, taken apart."""

    object: PredictedObject
    visual: FloatArray
    """[N, C]: score head on the query's own features."""
    text: FloatArray
    """[N, C]: what the texts change."""
    quality: float
    """Location quality of the last layer; the same for all classes."""

    @property
    def share(self) -> FloatArray:
        """[N, C] in 0..1: |text| / (|text| + |visual|)."""
        size = np.abs(self.text) + np.abs(self.visual)
        shares: FloatArray = np.divide(np.abs(self.text), size, out=np.zeros_like(size), where=size > 0)
        return shares


def text_shares(model: DEIM, image: Tensor, objects: Sequence[PredictedObject]) -> list[TextShare]:
    """Take the scores of predicted objects of one image [1, 3, H, W] apart; the model stays as it is."""
    parts = text_contributions(model, image)
    visual, text = (x[:, 0].double().cpu().numpy() for x in (parts.visual, parts.text))
    total = parts.outputs["pred_logits"][0].double().cpu().numpy()
    quality = (total - visual[-1] - text[-1]).mean(axis=1)
    return [TextShare(one, visual[:, one.query], text[:, one.query], float(quality[one.query])) for one in objects]


def draw_text_share(view: View) -> Iterator[Drawn]:
    """Draw a row per object: the last layer's logits of every class in their parts, and its own class by layer.

    With many classes the highest logits are shown. The table that comes along has the numbers.
    """
    model = view.detector.model
    if not view.objects or not isinstance(model, DEIM) or model.text_fusion is None:
        return
    parts, scene, names = text_shares(model, view.image, view.objects), view.scene, view.scene.names
    texts = texts_of(scene.texts.language, "text_share")
    figure = new_figure(min(_ROW_CM * len(parts) + _MARGIN_CM, MAX_HEIGHT_CM))
    axes = figure.subplots(len(parts), 2, squeeze=False, width_ratios=(2, 1))
    handles: list[Any] = []
    for (by_class, by_layer), one in zip(axes, parts, strict=True):
        name, own = scene.name(one.object.label), one.object.label
        handles = _draw_classes(by_class, one, scene, texts)
        score = scene.score(one.object.score)
        by_class.set_title(texts("object", query=one.object.query, name=name, score=score))
        _bars(by_layer, one.visual[:, own], one.text[:, own], one.share[:, own], texts)
        by_layer.set_xticks(range(len(one.visual)), [str(k + 1) for k in range(len(one.visual))])
        by_layer.set_title(texts("by_layer", name=name))
        in_language(texts.language, by_class.yaxis, by_layer.yaxis)
        for axis in (by_class, by_layer):
            axis.axhline(0, color=INK, linewidth=0.8)
    axes[-1, 1].set_xlabel(texts["layer"])
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    facts = {"objects": [_to_json(one, names) for one in parts]}
    caption = add_caption(figure, texts["figure_caption"])
    yield Drawn(figure, caption, facts, table=text_table(parts, names, texts.language))


def _draw_classes(axis: Any, one: TextShare, scene: Scene, texts: Texts) -> list[Any]:
    """Bars of the last layer, and a mark for what the detector says in the end; their handles."""
    both = one.visual[-1] + one.text[-1]
    shown = np.sort(np.argsort(-both, kind="stable")[:_MOST_CLASSES])
    bars = _bars(axis, one.visual[-1, shown], one.text[-1, shown], one.share[-1, shown], texts)
    marks = axis.plot(range(len(shown)), both[shown] + one.quality, "D", color=INK, label=texts["total"])
    axis.set_xticks(range(len(shown)), [scene.name(k) for k in shown], rotation=30, ha="right")
    axis.set_ylabel(texts["logit"])
    return [*bars, *marks]


def _bars(axis: Any, visual: FloatArray, text: FloatArray, shares: FloatArray, texts: Texts) -> list[Any]:
    """Side by side, not stacked: the parts may have opposite signs. The text's share stands in percent at the end of
    its bars, which are often too small to be seen."""
    places = np.arange(len(visual))
    parts = ((-0.2, visual, TRUTH_COLOUR, "visual"), (0.2, text, FOUND_COLOUR, "text"))
    bars = [
        axis.bar(
            places + shift, values, 0.38, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.4, label=texts[key]
        )
        for (shift, values, colour, key), hatch in zip(parts, HATCHES, strict=False)
    ]
    for place, (value, share) in enumerate(zip(text, shares, strict=True)):
        anchor = "bottom" if value >= 0 else "top"
        axis.text(place + 0.2, value, texts.percent(float(share)), fontsize=5, ha="center", va=anchor)
    axis.margins(y=0.1)
    return bars


def _to_json(one: TextShare, names: Sequence[str]) -> dict[str, Any]:
    """Everything, unrounded; lists are layer by class."""
    return {
        "query": one.object.query,
        "label": one.object.label,
        "score": one.object.score,
        "classes": list(names),
        "visual": one.visual.tolist(),
        "text": one.text.tolist(),
        "text_share": one.share.tolist(),
        "location_quality": one.quality,
    }


def text_table(parts: Sequence[TextShare], names: Sequence[str], lang: Language) -> Table:
    """Make a row per object and layer, for the predicted class."""
    texts = texts_of(lang, "text_share")
    rows: list[list[Cell]] = []
    for one in parts:
        own = one.object.label
        for layer, numbers in enumerate(zip(one.visual[:, own], one.text[:, own], one.share[:, own], strict=True), 1):
            visual, text, share = map(float, numbers)
            values = Number(visual, 3, signed=True), Number(text, 3, signed=True), Number(share, 3)
            rows.append([one.object.query, names[own], layer, *values])
    columns = [texts[key] for key in ("query", "class", "layer", "visual", "text", "share")]
    return Table(columns, rows, texts["caption"], "tab:text-evidence")
