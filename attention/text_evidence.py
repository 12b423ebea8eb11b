"""How much of a class score the class texts said, as bars and as a table (phase 2 only).

Legend: N decoder layers, C classes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from analysis.labels import Labels, Language, labels_of
from analysis.style import (
    FOUND_COLOUR,
    HATCHES,
    INK,
    MAX_HEIGHT_CM,
    TRUTH_COLOUR,
    AxisNumbers,
    figure_style,
    new_figure,
    tidy,
)
from analysis.tables import Cell, Number, Table
from attention.figures import DrawnView
from attention.objects import PredictedObject
from data.errors import UserError
from data.types import FloatArray
from models.detector import DEIM
from models.text_contributions import text_contributions

_ROW_CM, _MARGIN_CM = 5.0, 3.0
_NAME_CHARACTERS = 16
_MOST_CLASSES = 12
_CAPTION_CHARACTERS = 132


@dataclass(frozen=True)
class TextEvidence:
    """The class logits of one predicted object, taken apart."""

    found: PredictedObject
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


def has_text(model: nn.Module) -> bool:
    """Whether class texts take part in the scores."""
    return isinstance(model, DEIM) and model.text_fusion is not None


def text_evidence(model: nn.Module, image: Tensor, objects: Sequence[PredictedObject]) -> list[TextEvidence]:
    """Take the scores of predicted objects of one image [1, 3, H, W] apart; the model stays as it is.

    Raises:
        UserError: The detector has no text fusion.
        ValueError: It is in training mode.
    """
    if not isinstance(model, DEIM) or not has_text(model):
        raise UserError(
            "Text evidence: this checkpoint has no text fusion, so no part of a score came from text. Take a "
            "checkpoint of train_deimv2_multimodal.py."
        )
    parts = text_contributions(model, image)
    visual, text = (x[:, 0].double().cpu().numpy() for x in (parts.visual, parts.text))
    total = parts.outputs["pred_logits"][0].double().cpu().numpy()
    rows = [one.query for one in objects]
    return [
        TextEvidence(one, visual[:, row], text[:, row], float(np.mean(total[row] - visual[-1, row] - text[-1, row])))
        for one, row in zip(objects, rows, strict=True)
    ]


def text_view(evidence: Sequence[TextEvidence], names: Sequence[str], lang: Language) -> DrawnView:
    """A row per object: the last layer's logits of every class in their parts, and the object's own class by layer.

    With many classes the highest logits are shown. The table that comes along has the numbers.
    """
    labels, texts = labels_of(lang), _TEXTS[lang]
    with figure_style():
        figure = new_figure(min(_ROW_CM * len(evidence) + _MARGIN_CM, MAX_HEIGHT_CM))
        axes = figure.subplots(len(evidence), 2, squeeze=False, width_ratios=(2, 1))
        for (by_class, by_layer), one in zip(axes, evidence, strict=True):
            name, own = tidy(names[one.found.label], _NAME_CHARACTERS), one.found.label
            handles = _draw_classes(by_class, one, names, texts, labels)
            score = labels.number(one.found.score, 2)
            by_class.set_title(texts.object.format(query=one.found.query, name=name, score=score))
            _bars(by_layer, one.visual[:, own], one.text[:, own], texts)
            _write_shares(by_layer, one.text[:, own], one.share[:, own], labels)
            by_layer.set_xticks(range(len(one.visual)), [str(k + 1) for k in range(len(one.visual))])
            by_layer.set_title(texts.by_layer.format(name=name))
            for axis in (by_class, by_layer):
                axis.yaxis.set_major_formatter(AxisNumbers(labels))
                axis.axhline(0, color=INK, linewidth=0.8)
        axes[-1, 1].set_xlabel(texts.layer)
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
        figure.supxlabel(textwrap.fill(texts.figure_caption, _CAPTION_CHARACTERS), x=0.01, ha="left", fontsize=6)
    facts = {"objects": [_to_json(one, names) for one in evidence]}
    return DrawnView("text", figure, texts.figure_caption, facts, text_table(evidence, names, lang))


def _draw_classes(axis: Any, one: TextEvidence, names: Sequence[str], texts: Texts, labels: Labels) -> list[Any]:
    """Bars of the last layer, and a mark for what the detector says in the end; their handles."""
    both = one.visual[-1] + one.text[-1]
    shown = np.sort(np.argsort(-both, kind="stable")[:_MOST_CLASSES])
    bars = _bars(axis, one.visual[-1, shown], one.text[-1, shown], texts)
    _write_shares(axis, one.text[-1, shown], one.share[-1, shown], labels)
    marks = axis.plot(range(len(shown)), both[shown] + one.quality, "D", color=INK, label=texts.total)
    axis.set_xticks(range(len(shown)), [tidy(names[k], _NAME_CHARACTERS) for k in shown], rotation=30, ha="right")
    axis.set_ylabel(texts.logit)
    return [*bars, *marks]


def _to_json(one: TextEvidence, names: Sequence[str]) -> dict[str, Any]:
    """Everything, unrounded; lists are layer by class."""
    return {
        "query": one.found.query,
        "label": one.found.label,
        "score": one.found.score,
        "classes": list(names),
        "visual": one.visual.tolist(),
        "text": one.text.tolist(),
        "text_share": one.share.tolist(),
        "location_quality": one.quality,
    }


def _bars(axis: Any, visual: FloatArray, text: FloatArray, texts: Texts) -> list[Any]:
    """Side by side, not stacked: the parts may have opposite signs."""
    places = np.arange(len(visual))
    colours = (TRUTH_COLOUR, FOUND_COLOUR)
    return [
        axis.bar(places + shift, values, 0.38, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.4, label=label)
        for shift, values, colour, hatch, label in zip(
            (-0.2, 0.2), (visual, text), colours, HATCHES, (texts.visual, texts.text), strict=False
        )
    ]


def _write_shares(axis: Any, text: FloatArray, shares: FloatArray, labels: Labels) -> None:
    """The text's share in percent at the end of its bars, which are often too small to be seen."""
    for place, (value, share) in enumerate(zip(text, shares, strict=True)):
        anchor = "bottom" if value >= 0 else "top"
        axis.text(place + 0.2, value, labels.percent(float(share), 1), fontsize=5, ha="center", va=anchor)
    axis.margins(y=0.1)


def text_table(evidence: Sequence[TextEvidence], names: Sequence[str], lang: Language) -> Table:
    """A row per object and layer, for the predicted class."""
    texts = _TEXTS[lang]
    rows: list[list[Cell]] = []
    for one in evidence:
        own = one.found.label
        for layer in range(len(one.visual)):
            visual, text = one.visual[layer, own], one.text[layer, own]
            share = float(one.share[layer, own])
            numbers = [Number(float(visual), 3, signed=True), Number(float(text), 3, signed=True), Number(share, 3)]
            rows.append([one.found.query, names[own], layer + 1, *numbers])
    columns = [texts.query, texts.class_, texts.layer, texts.visual, texts.text, texts.share]
    return Table(columns, rows, texts.caption, "tab:text-evidence")


@dataclass(frozen=True)
class Texts:
    """The texts of one language; braces are filled in with `str.format`."""

    object: str
    by_layer: str
    logit: str
    layer: str
    query: str
    class_: str
    visual: str
    text: str
    total: str
    share: str
    caption: str
    figure_caption: str


_TEXTS: Mapping[Language, Texts] = {
    "en": Texts(
        object="Query {query}: {name}, score {score}; last layer",
        by_layer="{name} by layer",
        logit="Logit",
        layer="Layer",
        query="Query",
        class_="Class",
        visual="From the image",
        text="From the text",
        total="Together, with the location quality",
        share="Share of the text",
        caption="The logit of the predicted class in its parts. The share of the text is |text| / (|text| + |image|).",
        figure_caption="Who says what in the class scores. Left: logits of the last decoder layer by class; the "
        "diamond is the detector's logit, with the location quality, which is the same for all classes. Right: the "
        "predicted class layer by layer. In percent: share of the text, |text| / (|text| + |image|).",
    ),
    "es": Texts(
        object="Consulta {query}: {name}, confianza {score}; última capa",
        by_layer="{name} por capa",
        logit="Logit",
        layer="Capa",
        query="Consulta",
        class_="Clase",
        visual="De la imagen",
        text="Del texto",
        total="En conjunto, con la calidad de la posición",
        share="Parte del texto",
        caption="El logit de la clase predicha en sus partes. La parte del texto es |texto| / (|texto| + |imagen|).",
        figure_caption="Quién dice qué en la confianza de cada clase. Izquierda: logits de la última capa del "
        "decodificador por clase; el rombo es el logit del detector, con la calidad de la posición, igual para todas "
        "las clases. Derecha: la clase predicha capa por capa. En porcentaje: parte del texto, |texto| / (|texto| + "
        "|imagen|).",
    ),
}
