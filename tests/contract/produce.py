"""Everything a user gets from one small checkpoint and a few images, in a form that two versions can be compared by."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, safe_open

from tests.support.scripts import start_script
from tests.support.tiny_run import ROOT, write_tiny_config, write_tiny_data

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yml"))
VOLATILE = {"date", "seconds", "seconds_per_image", "versions", "package_versions"} | {
    *("device", "machine", "threads", "command", "cost"),
}
"""Keys whose values differ from machine to machine and from day to day."""


class Workplace:
    """A folder with data, a config and the committed checkpoint, and the scripts run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_tiny_data(folder, num_train=4, num_val=8)
        self.config = write_tiny_config(folder)
        deeper = self.config.read_text(encoding="utf-8").replace("depth_mult: 0.34", "depth_mult: 0.67")
        self.config.write_text(deeper, encoding="utf-8")  # as the committed checkpoint's network
        self.checkpoint = folder / "run" / "best.pth"
        self.checkpoint.parent.mkdir()
        content = torch.load(HERE / "checkpoint.pth", weights_only=True)
        for part in ("train", "val"):
            dataset = content["config"][f"{part}_dataloader"]["dataset"]
            dataset |= {"img_folder": str(folder / part), "ann_file": str(folder / f"{part}.json")}
        torch.save(content, self.checkpoint)

    def run(self, script: str, *arguments: str | Path, code: int = 0) -> str:
        outcome = start_script(script, *arguments, cwd=self.folder)
        assert outcome.code in (0, code), outcome.err
        return self.plain(outcome.out)

    def plain(self, text: str) -> str:
        """Without what belongs to this machine and this hour."""
        for path, name in ((self.folder, "<FOLDER>"), (ROOT, "<ROOT>")):
            in_latex = path.as_posix().replace("-", "-{}").replace("_", r"\_")
            text = text.replace(path.as_posix(), name).replace(in_latex, name)
        text = re.sub(r"\b\d+[.,]\d s\b", "<SECONDS>", text)
        text = re.sub(r"(?<![^\W_])(?<!\.)(?=\d*[a-f])[0-9a-f]{12,64}(?!\w)", "<HASH>", text)
        return re.sub(r"\d{4}-\d\d-\d\d( |T)?(\d\d:\d\d(:\d\d)?)?", "<DATE>", text)

    def text(self, path: Path) -> str:
        return self.plain(path.read_text(encoding="utf-8-sig"))

    def json(self, path: Path) -> Any:
        return stable(json.loads(self.text(path)))

    def files(self, folder: Path) -> list[str]:
        return sorted(self.plain(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file())


def stable(value: Any) -> Any:
    """A JSON value without volatile keys."""
    if isinstance(value, dict):
        return {key: stable(part) for key, part in value.items() if key not in VOLATILE}
    return [stable(part) for part in value] if isinstance(value, list) else value


class _Outline(HTMLParser):
    """Headings, column titles, pictures and numbers of rows of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._open: str | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._open = tag if tag in {"title", "h1", "h2", "h3", "h4", "th", "figcaption", "caption"} else None
        if tag in {"tr", "img", "table"}:
            self.lines.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open and data.strip():
            self.lines.append(f"{self._open}: {' '.join(data.split())}")


def outline(page: str) -> list[str]:
    parser = _Outline()
    parser.feed(page)
    return parser.lines


def tables_without_digits(text: str) -> str:
    """What depends on a training of today keeps its form only."""
    return re.sub(r"[-+−]?\d+([.,]\d+)?", "#", text)


def help_texts(place: Workplace) -> dict[str, Any]:
    return {script: place.run(script, "--help") for script in SCRIPTS}


def resolved_configs(place: Workplace) -> dict[str, Any]:
    whole = [name for name in CONFIGS if not name.startswith(("configs/base/", "configs/dataset/", "configs/runtime"))]
    whole.remove("configs/baselines/small.yml")
    planned = ("--dry-run", "-u", "device=cpu")  # most of their data are not here, which a dry run says at the end
    return {name: place.run("train_deimv2.py", "-c", ROOT / name, *planned, code=2) for name in whole}


def evaluation(place: Workplace) -> dict[str, Any]:
    found = {}
    for lang in ("en", "es"):
        options = ["--bootstrap", "50", "--lang", lang, "-d", "cpu"]
        printed = place.run("evaluate_deimv2.py", "-r", place.checkpoint, *options)
        folder = place.checkpoint.parent / "eval_val_best"
        found |= {
            f"{lang}_printed": printed,
            f"{lang}_results": place.json(folder / "results.json"),
            f"{lang}_predictions": place.json(folder / "predictions.json"),
            f"{lang}_report": outline(place.text(folder / "report.html")),
            f"{lang}_files": place.files(folder),
        }
    return found


SUPPRESSED = ["--nms", "0.6", "--score-per-class", "bar=0.2"]


def prediction(place: Workplace) -> dict[str, Any]:
    found = {}
    for name, options in {"plain": ["--lang", "en"], "tiled": ["--tile", "48", *SUPPRESSED, "--lang", "es"]}.items():
        folder = place.folder / f"predicted_{name}"
        what = ["-r", place.checkpoint, place.folder / "val", "--score", "0.1", "--save", "images,coco,csv,yolo,crops"]
        found[f"{name}_printed"] = place.run("predict_deimv2.py", *what, *options, "--output-dir", folder, "-d", "cpu")
        texts = [file for file in place.files(folder) if file.endswith((".csv", ".txt"))]
        found |= {f"{name}_{file}": place.text(folder / file) for file in texts}
        found |= {f"{name}_coco": place.json(folder / "coco.json"), f"{name}_files": place.files(folder)}
    return found


def attention(place: Workplace) -> dict[str, Any]:
    folder = place.folder / "attention"
    options = ["-r", place.checkpoint, "--output-dir", folder, "-d", "cpu"]
    place.run("visualize_attention.py", *options, "--from-val", "1", "--min-score", "0.1", "--top", "1")
    found: dict[str, Any] = {"files": place.files(folder)}
    found |= {file: place.json(folder / file) for file in place.files(folder) if file.endswith(".json")}
    for lang in ("en", "es"):
        folder = place.folder / f"score_{lang}"
        options = ["-r", place.checkpoint, "--output-dir", folder, "-d", "cpu", "--lang", lang, "--score-steps", "4"]
        place.run("visualize_attention.py", *options, "--score", "3", "--drise-masks", "8")
        found |= {f"{lang}_{file}": place.text(folder / file) for file in place.files(folder) if "json" not in file}
    found["score"] = place.json(folder / "score" / "attention_score.json")
    return found


def comparison(place: Workplace) -> dict[str, Any]:
    evaluate = ["-r", place.checkpoint, "--bootstrap", "50", "--no-report", "-d", "cpu", "--no-cost"]
    place.run("evaluate_deimv2.py", *evaluate)
    place.run("evaluate_deimv2.py", *evaluate, "--nms", "0.5")
    folders = [place.checkpoint.parent / name for name in ("eval_val_best", "eval_val_best_nms")]
    found = {}
    for lang in ("en", "es"):
        folder = place.folder / f"comparison_{lang}"
        place.run("compare_models.py", *folders, "--lang", lang, "--output-dir", folder, "--labels", "plain", "nms")
        texts = [file for file in place.files(folder) if file.endswith((".md", ".tex", ".csv"))]
        found |= {f"{lang}_{file}": place.text(folder / file) for file in texts}
        found |= {f"{lang}_json": place.json(folder / "comparison.json"), f"{lang}_files": place.files(folder)}
    return found


def ablation(place: Workplace) -> dict[str, Any]:
    from tests.support.text_towers import write_clip

    encoder = write_clip(place.folder / "clip")
    config = place.folder / "texts.yml"
    config.write_text(
        f"__include__: [tiny.yml]\nepoches: 1\nflat_epoch: 0\nno_aug_epoch: 0\nMultimodalFusion: {{mode: cosine}}\n"
        f"texts: {{own: {{square: a bright square, bar: a dark bar}}, "
        f"encoder: {{name: '{encoder.as_posix()}', allow_download: False}}}}\n",
        encoding="utf-8",
    )
    folder = place.folder / "ablation"
    modes = ("--modes", "cosine", "none", "--seeds", "0", "1", "2")
    found: dict[str, Any] = {}
    for lang in ("en", "es"):
        options = ("-d", "cpu", "--lang", lang, "--output-dir", folder)
        place.run("ablate_text.py", "-c", config, "-r", place.checkpoint, *modes, *options)
        for name in ("ablation.md", "ablation.tex"):
            found[f"{lang}_{name}"] = tables_without_digits(place.text(folder / name))
    found["files"] = [file for file in place.files(folder) if "seed" not in file]
    return found


def exports(place: Workplace) -> dict[str, Any]:
    folder = place.folder / "export"
    formats = ["official", "safetensors", "hub"]  # graphs are tests/deploy's
    arguments = ["-r", place.checkpoint, "--output-dir", folder]
    place.run("export_deimv2.py", *arguments, "--format", *formats)
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = {key: stable(_parsed(place.plain(value))) for key, value in file.metadata().items()}
    official = torch.load(next(folder.glob("*official.pth")), weights_only=True)
    return {
        "files": place.files(folder),
        "metadata": metadata,
        "tensors": sorted(load_file(folder / "model.safetensors")),
        "official": sorted(official),
        "card": place.text(folder / "hub" / "README.md"),
        "hub": place.json(folder / "hub" / "config.json"),
    }


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


PARTS: dict[str, Callable[[Workplace], dict[str, Any]]] = {
    "help": help_texts,
    "configs": resolved_configs,
    "evaluation": evaluation,
    "prediction": prediction,
    "attention": attention,
    "comparison": comparison,
    "ablation": ablation,
    "exports": exports,
}
