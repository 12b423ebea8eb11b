"""report.html: everything an evaluation found, on one page that needs no network and no other file."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.metadata
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from analysis.acceptance import acceptance_lines, promise_title, what_is_missing
from analysis.analyse import Analysis
from analysis.gallery import GalleryFiles
from analysis.style import FigureFiles, decimal_mark, tidy
from data.errors import UserError
from data.files import write_atomically
from data.images import open_image
from texts import NOTHING, Language, Texts, texts_of

_MAX_CONFUSIONS = 20
_MISS_RATES = (0.0, 0.01, 0.05, 0.1)
_PACKAGES = ("torch", "torchvision", "faster-coco-eval", "numpy", "matplotlib")
_TEXTS = {"t": "report", "f": "figures", "g": "gallery", "a": "acceptance"} | {
    name: name for name in ("metric_meanings", "error_kinds", "error_meanings")
}
"""Name in the template -> section of the texts."""
_FIGURES_OF = {
    "classes": ["class_ap"],
    "curves": ["precision_recall", "f1"],
    "confusion": ["confusion", "confusion_counts"],
    "errors": ["errors"],
    "image-level": ["image_level"],
    "acceptance": ["reliability"],
    "sizes": ["sizes"],
}


def write_report(
    analysis: Analysis,
    folder: Path,
    *,
    lang: Language,
    figures: Sequence[FigureFiles] = (),
    gallery: GalleryFiles | None = None,
) -> Path:
    """Write `report.html` into `folder`.

    Images are inlined. A content security policy lets the page run its own script and style only and load nothing,
    so that even a name that got through the escaping could do no harm.
    """
    results, t = analysis.results, {name: texts_of(lang, section) for name, section in _TEXTS.items()}
    by_name = {figure.name: figure for figure in figures}
    pictures = {key: [_picture(by_name[n]) for n in names if n in by_name] for key, names in _FIGURES_OF.items()}
    pictures["gallery"] = [_picture(sheet) for sheet in gallery.sheets] if gallery else []
    style, script = _resource("report.css"), _resource("report.js")
    path = folder / "report.html"
    write_page(
        path,
        "report_template.html",
        results=results,
        **t,
        **_acceptance(results, t["a"]),
        pictures={"summary": [], "cost": [], "run": [], **pictures},
        left_out=gallery.left_out if gallery else (),
        identity=dict(_identity(analysis, t["t"])),
        confusions=_confusions(results["confusion"], t["f"]),
        operating_points=_operating_points(results, t["t"]),
        facts=list(_facts(analysis, t["t"])),
        # Our own files, the only text that is not escaped; the browser compares their hashes.
        style=Markup(style),
        script=Markup(script),
        style_hash=_policy_hash(style),
        script_hash=_policy_hash(script),
    )
    return path


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write an HTML page from one of our templates; what is filled in is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["tidy"] = tidy
    # A lone surrogate in a name is no character; it becomes a question mark.
    page = environment.from_string(_resource(template)).render(**values).encode("utf-8", "replace")
    write_atomically(path, lambda file: file.write(page), what="report")


def _identity(analysis: Analysis, texts: Texts) -> Iterator[tuple[str, str]]:
    """What was judged, with what, when and where, as far as it is known."""
    names, facts, results = texts_of(texts.language, "facts"), analysis.facts, analysis.results
    judged = texts("judged_on", split=results["split"], images=texts.number(results["num_images"], 0))
    epoch = texts("at_epoch", epoch=facts["epoch"], epochs=facts["epochs"]) if facts.get("epoch") else None
    sha256 = f"sha256 {facts['checkpoint_sha256'][:8]}" if facts.get("checkpoint_sha256") else None
    for name, parts in (
        (names["run"], [facts.get("run")]),
        (names["config_file"], [facts.get("config_file")]),
        (names["data"], [judged, facts.get("data")]),
        (names["checkpoint"], [facts.get("checkpoint"), epoch, sha256]),
        (names["date"], [facts.get("date")]),
        (names["machine"], [facts.get("machine")]),
    ):
        if any(parts):
            yield name, tidy(", ".join(str(part) for part in parts if part))


def _picture(figure: FigureFiles) -> dict[str, Any]:
    try:
        with open_image(figure.png) as image:
            size_px = image.size
        data = base64.b64encode(figure.png.read_bytes()).decode("ascii")
    except OSError as error:
        raise UserError(f"{figure.png}: the figure cannot be read for the report ({error}). Evaluate again.") from error
    source = f"data:image/png;base64,{data}"
    return {"title": figure.title, "description": figure.description, "source": source, "size_px": size_px}


def _resource(name: str) -> str:
    return files("analysis").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _policy_hash(text: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return Markup(f"sha256-{digest}")


def _confusions(confusion: Mapping[str, Any], texts: Texts) -> list[tuple[str, str, int, float]]:
    """True class, what it is taken for, how often, share of the true class; most frequent first."""
    names = [tidy(name) for name in confusion["names"]]
    truths, guesses = [*names, texts["confusion_background"]], [*names, texts["confusion_missed"]]
    counts = np.array(confusion["counts"])
    rows = [
        (truths[row], guesses[column], int(counts[row, column]), float(counts[row, column] / counts[row].sum()))
        for row, column in zip(*np.nonzero(counts), strict=True)
        if row != column
    ]
    return sorted(rows, key=lambda row: -row[2])[:_MAX_CONFUSIONS]


def _operating_points(results: Mapping[str, Any], texts: Texts) -> list[tuple[Any, ...]]:
    """Name, threshold, false alarms per clean image and miss rate: at the best F1, and at the highest threshold (it
    rings least) that misses no more than some shares of the defective images."""
    level, best = results["image_level"], results["thresholds"]["overall"]
    scores, missed = (np.array(level[key], dtype=np.float64) for key in ("scores", "miss_rate"))
    points: list[tuple[str, float | None]] = [(texts["at_best_f1"], best and best["score"])]
    for rate in _MISS_RATES:
        good = scores[missed <= rate + 1e-12]
        points.append((texts("miss_at_most", share=texts.percent(rate, 0)), good[-1] if len(good) else None))
    rows = []
    for name, score in points:
        # At the best F1: the nearest threshold of the grid.
        k = None if score is None else int(np.abs(scores - score).argmin())
        measured = (level[key] for key in ("false_alarms_per_clean_image", "miss_rate"))
        rows.append((name, score, *(None if k is None else values[k] for values in measured)))
    return rows


def _acceptance(results: Mapping[str, Any], texts: Texts) -> dict[str, Any]:
    """What the section "Acceptance" shows."""
    measured = [one for one in (results["calibration"][key] for key in ("before", "after")) if one is not None]
    rows = [(texts_of(texts.language, "common")["all_classes"], measured)]
    rows += [(tidy(name), [one["per_class"][name] for one in measured]) for name in measured[0]["per_class"]]
    made = results["acceptance"]["promise"]
    promises = [] if made is None else [(texts["all"], made["all"]), *made["per_class"].items()]
    return {
        "eces": rows,
        "acceptance_lines": acceptance_lines(results, texts),
        "promise_title": "" if made is None else promise_title(made, texts),
        "promises": [(tidy(name), one, what_is_missing(one, texts)) for name, one in promises],
    }


def _facts(analysis: Analysis, texts: Texts) -> Iterator[tuple[str, str]]:
    """Name and value of every fact of the run, nested ones one by one."""
    names = texts_of(texts.language, "facts")
    facts = {key: analysis.results[key] for key in ("split", "gt_hash")} | {**analysis.facts}
    facts.setdefault("versions", _versions())

    def flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from flat(f"{name} {tidy(str(key))}", inner)
        else:
            yield name, texts.number(value, 0) if name == names["parameters"] else _fact_text(value, texts)

    for key, value in facts.items():
        yield from flat(names[key] if key in names else tidy(str(key)), value)


def _fact_text(value: Any, texts: Texts) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return texts["is_yes" if value else "is_no"]
    if isinstance(value, float):
        return decimal_mark(f"{value:.6g}", texts.language)  # six digits of what may be 0.0123 or 5400
    if isinstance(value, (list, tuple)):
        return "; ".join(_fact_text(item, texts) for item in value)
    return tidy(str(value))


def _versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    versions = {"python": platform.python_version()} | dict.fromkeys(_PACKAGES, NOTHING)
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
