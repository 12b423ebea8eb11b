"""The score of maps as tables (Markdown, LaTeX, CSV) and JSON, in Spanish or English."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.labels import Language
from analysis.tables import Cell, Number, Table, escape_markdown, format_number, write_tables
from attention.scoring import CENTRE, METRICS, RANDOM, AttentionScores, Estimate

FILE_NAME = "attention_score"
_TABLES = ("scores", "differences", "randomisation")


@dataclass(frozen=True)
class Texts:
    """The texts of one language; braces are filled in with `str.format`."""

    title: str
    intro: str
    method: str
    scores_caption: str
    differences_caption: str
    randomised_caption: str
    notes: str
    note_energy: str
    note_pointing: str
    note_perturbation: str
    note_follow: str
    note_chance: str
    note_randomised: str
    note_sampling: str
    methods: Mapping[str, str]
    metrics: Mapping[str, str]
    parts: Mapping[str, str]
    baselines: Mapping[str, str]


def write_scores(scores: AttentionScores, folder: Path, lang: Language, facts: Mapping[str, Any]) -> str:
    """Write everything into `folder` and return the Markdown.

    attention_score.md and .tex hold all tables, each table is a CSV of its own; attention_score.json has every number
    unrounded, for every object, and comes last.

    Args:
        scores: From `score_maps`.
        folder: Created if need be.
        lang: Of the tables.
        facts: JSON values that say what was judged: `checkpoint`, `split`, `layer`, ...

    Raises:
        UserError: A file cannot be written.
    """
    tables = score_tables(scores, lang)
    markdown = to_markdown(scores, tables, lang, facts)
    content = scores_to_json(scores, facts)
    write_tables(folder, FILE_NAME, tables, lang, markdown=markdown, content=content, possible=_TABLES)
    return markdown


def score_tables(scores: AttentionScores, lang: Language) -> dict[str, Table]:
    """`scores`, `differences` (from the centre prior) and, where the check was made, `randomisation`."""
    texts = _TEXTS[lang]
    estimates, differences = scores.estimates(), scores.differences(CENTRE)
    size = {"objects": len(scores.objects), "images": len(scores.image_ids)}
    columns = [texts.method, *(texts.metrics[metric] for metric in METRICS)]

    def rows(values: Mapping[str, Mapping[str, Estimate]], names: list[str], *, signed: bool) -> list[list[Cell]]:
        return [
            [texts.methods.get(method, method), *(_cell(of_method[name], signed=signed) for name in names)]
            for method, of_method in values.items()
        ]

    metrics = list(METRICS)
    tables = {
        "scores": Table(
            columns, rows(estimates, metrics, signed=False), texts.scores_caption.format(**size), "tab:attention-score"
        ),
        "differences": Table(
            columns,
            rows(differences, metrics, signed=True),
            texts.differences_caption.format(reference=texts.methods[CENTRE], **size),
            "tab:attention-score-differences",
        ),
    }
    if scores.randomised:
        names = [f"randomised_{part}" for part in scores.randomised]
        tables["randomisation"] = Table(
            [texts.method, *(texts.parts.get(part, part) for part in scores.randomised)],
            rows(estimates, names, signed=False),
            texts.randomised_caption.format(**size),
            "tab:attention-randomisation",
        )
    return tables


def to_markdown(scores: AttentionScores, tables: Mapping[str, Table], lang: Language, facts: Mapping[str, Any]) -> str:
    """The whole score as one page."""
    texts, options = _TEXTS[lang], scores.options
    intro = texts.intro.format(
        checkpoint=escape_markdown(str(facts.get("checkpoint", "-"))),
        split=escape_markdown(str(facts.get("split", "-"))),
        layer=escape_markdown(str(facts.get("layer", "-"))),
        objects=len(scores.objects),
        truths=scores.num_truths,
        images=len(scores.image_ids),
        samples=options.samples,
        seed=options.seed,
        score=format_number(options.score_threshold, 2, lang),
        iou=format_number(options.iou_threshold, 2, lang),
    )
    notes = [texts.note_energy, texts.note_pointing]
    notes.append(texts.note_perturbation.format(steps=options.steps, baseline=texts.baselines[options.baseline]))
    notes += [texts.note_follow, texts.note_chance]
    if scores.randomised:
        notes.append(texts.note_randomised)
    if "sampling" in scores.methods:
        notes.append(texts.note_sampling)
    parts = [f"# {texts.title}", intro, *(table.to_markdown(lang) for table in tables.values())]
    return "\n\n".join([*parts, f"{texts.notes}:\n\n" + "\n".join(f"- {note}" for note in notes)]) + "\n"


def scores_to_json(scores: AttentionScores, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Every number, unrounded; null where nothing could be measured. Keys are English whatever the language."""
    return {
        **facts,
        "num_images": len(scores.image_ids),
        "image_ids": list(scores.image_ids),
        "num_truths": scores.num_truths,
        "num_objects": len(scores.objects),
        "methods": _estimates_to_json(scores.estimates()),
        "differences_from_centre": _estimates_to_json(scores.differences(CENTRE)),
        "differences_from_random": _estimates_to_json(scores.differences(RANDOM)),
        "objects": [_object_to_json(scores, row) for row in range(len(scores.objects))],
    }


def _object_to_json(scores: AttentionScores, row: int) -> dict[str, Any]:
    one = scores.objects[row]
    return {
        "image_id": one.image_id,
        "label": one.label,
        "query": one.query,
        "score": one.score,
        "iou": one.iou,
        "truth_xyxy": one.truth.tolist(),
        "box_xyxy": one.box.tolist(),
        "values": {
            method: {
                **{metric: _known(scores.values[m, row, k]) for k, metric in enumerate(METRICS)},
                **{f"randomised_{p}": _known(scores.correlations[m, row, k]) for k, p in enumerate(scores.randomised)},
            }
            for m, method in enumerate(scores.methods)
        },
    }


def _estimates_to_json(values: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    return {
        method: {
            name: {
                "value": one.value,
                "interval": None if one.interval is None else [one.interval.low, one.interval.high],
                "num_objects": one.num_objects,
            }
            for name, one in of_method.items()
        }
        for method, of_method in values.items()
    }


def _cell(one: Estimate, *, signed: bool) -> Number:
    interval = None if one.interval is None else (one.interval.low, one.interval.high)
    return Number(one.value, interval=interval, signed=signed)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


_ENGLISH = Texts(
    title="Are the maps honest?",
    intro="Checkpoint {checkpoint}, split {split}: {objects} of {truths} annotated boxes in {images} images are hit by "
    "a prediction of their class (score at least {score}, IoU at least {iou}). Class evidence is taken at `{layer}`. "
    "Brackets: 95 % intervals of a bootstrap over images, {samples} resamples, seed {seed}, the same for all methods.",
    method="Method",
    scores_caption="Scores of maps, means over {objects} objects. Lower is better for deletion, higher for the rest. "
    "Brackets: 95 % intervals of a bootstrap over the {images} images.",
    differences_caption="Differences from {reference} for the same {objects} objects, with 95 % intervals (paired "
    "bootstrap over the {images} images).",
    randomised_caption="Sanity check: rank correlation of a map before and after new weights, means over {objects} "
    "objects. A column's parts are those of its name and all before it. Brackets: 95 % intervals of a bootstrap over "
    "the {images} images.",
    notes="Notes",
    note_energy="Energy: share of the map inside the box, divided by the share of the image that the box covers; 1 is "
    "chance. Once for the object's own annotated box, once for all boxes of the image together.",
    note_pointing="Pointing game: how often the map's highest place lies in the object's own box; chance is the box's "
    "share of the image.",
    note_perturbation="Deletion and insertion: area under the score while pixels become {baseline}, or come back, in "
    "the order of the map, in {steps} steps.",
    note_follow="The score is the best IoU x class score of any detection: a query of a changed image may look at "
    "something else, so the object is followed by its place (D-RISE).",
    note_chance="Random and centre know nothing of the image; a method that does not beat them shows nothing about "
    "this detector. A map that is 0 everywhere counts as chance.",
    note_randomised="Near 1: the map does not depend on those weights and cannot explain them. The check is about the "
    "detection of the changed model that is nearest to the object.",
    note_sampling="The decoder samples around its own box by construction, also with new weights: energy and pointing "
    "of its sampling say where the box is, not why the class.",
    methods={
        "grad_cam": "Grad-CAM",
        "hires_cam": "HiResCAM",
        "eigen_cam": "Eigen-CAM",
        "cls_attention": "CLS attention",
        "rollout": "Attention rollout",
        "sampling": "Decoder sampling",
        RANDOM: "Random",
        CENTRE: "Centre prior",
    },
    metrics={
        "energy": "Energy (own box)",
        "energy_all": "Energy (all boxes)",
        "pointing": "Pointing game",
        "deletion": "Deletion AUC",
        "insertion": "Insertion AUC",
    },
    parts={"heads": "Heads", "neck": "+ neck", "backbone": "+ backbone"},
    baselines={"blur": "blurred", "mean": "the image's mean colour"},
)

_SPANISH = Texts(
    title="¿Son honestos los mapas?",
    intro="Punto de control {checkpoint}, partición {split}: {objects} de {truths} cajas anotadas en {images} imágenes "
    "tienen una predicción acertada de su clase (confianza mínima {score}, IoU mínimo {iou}). La evidencia de clase se "
    "toma en `{layer}`. Entre corchetes: intervalos del 95 % de un bootstrap sobre las imágenes, {samples} "
    "remuestreos, semilla {seed}, los mismos para todos los métodos.",
    method="Método",
    scores_caption="Puntuación de los mapas, medias de {objects} objetos. En la eliminación es mejor un valor bajo; en "
    "lo demás, alto. Entre corchetes: intervalos del 95 % de un bootstrap sobre las {images} imágenes.",
    differences_caption="Diferencias respecto a {reference} para los mismos {objects} objetos, con intervalos del "
    "95 % (bootstrap pareado sobre las {images} imágenes).",
    randomised_caption="Prueba de cordura: correlación de rangos de un mapa antes y después de renovar los pesos, "
    "medias de {objects} objetos. Cada columna abarca su parte y todas las anteriores. Entre corchetes: intervalos del "
    "95 % de un bootstrap sobre las {images} imágenes.",
    notes="Notas",
    note_energy="Energía: fracción del mapa dentro de la caja, dividida por la fracción de la imagen que cubre la "
    "caja; 1 es el azar. Para la caja anotada del propio objeto y para todas las cajas de la imagen juntas.",
    note_pointing="Juego de señalar: con qué frecuencia el punto más alto del mapa cae en la caja del propio objeto; "
    "el azar es la fracción de la imagen que cubre la caja.",
    note_perturbation="Eliminación e inserción: área bajo la confianza mientras los píxeles pasan a ser {baseline}, o "
    "vuelven, en el orden del mapa, en {steps} pasos.",
    note_follow="La confianza es el mejor producto IoU x confianza de clase de cualquier detección: en una imagen "
    "alterada una consulta puede mirar otra cosa, así que el objeto se sigue por su lugar (D-RISE).",
    note_chance="El mapa aleatorio y el centro no saben nada de la imagen; un método que no los supera no muestra nada "
    "de este detector. Un mapa que es 0 en todas partes cuenta como azar.",
    note_randomised="Cerca de 1: el mapa no depende de esos pesos y no puede explicarlos. La prueba usa la detección "
    "del modelo renovado más cercana al objeto.",
    note_sampling="El decodificador muestrea alrededor de su propia caja por construcción, también con pesos nuevos: "
    "la energía y el juego de señalar de su muestreo dicen dónde está la caja, no por qué la clase.",
    methods={
        "grad_cam": "Grad-CAM",
        "hires_cam": "HiResCAM",
        "eigen_cam": "Eigen-CAM",
        "cls_attention": "Atención del CLS",
        "rollout": "Attention rollout",
        "sampling": "Muestreo del decodificador",
        RANDOM: "Aleatorio",
        CENTRE: "Centro de la imagen",
    },
    metrics={
        "energy": "Energía (su caja)",
        "energy_all": "Energía (todas las cajas)",
        "pointing": "Juego de señalar",
        "deletion": "AUC de eliminación",
        "insertion": "AUC de inserción",
    },
    parts={"heads": "Cabezas", "neck": "+ cuello", "backbone": "+ backbone"},
    baselines={"blur": "borrosos", "mean": "del color medio de la imagen"},
)

_TEXTS: Mapping[Language, Texts] = {"en": _ENGLISH, "es": _SPANISH}
