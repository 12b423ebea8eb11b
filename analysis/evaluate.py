"""One evaluation of a checkpoint: load, judge, write. What `evaluate_deimv2.py` does."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from analysis.acceptance import acceptance_lines
from analysis.analyse import DEFAULT_SCORE, Analysis, AnalysisOptions, analyse
from analysis.cost import Cost, device_name, measure_cost
from data.coco import CocoSplit
from data.config import loaders
from data.errors import UserError
from data.loader import build_eval_loader
from data.problems import shorten
from data.splits import build_datasets
from data.tiles import windows
from engine.checkpoint import checkpoint_config
from engine.cli import require_output_folder
from engine.config import ExperimentConfig, config_to_dict
from engine.decision import DECISION_NAME, Decision, promise_text, settings_of, traits_of, write_decision
from engine.detector import Detector, load_detector
from engine.distributed import Distributed
from engine.evaluate import EvalResult, evaluate
from engine.metrics import CocoNumbers, GroundTruth, unique_names
from engine.named_files import checkpoint_of
from engine.results import RESULTS_NAME, read_results, tile_facts, write_results
from models.hub import output_folder
from texts import Language, Texts, plain_table, texts_of

log = logging.getLogger(__name__)

SplitName = Literal["train", "val", "test"]

_QUESTION = {
    "split": "split",
    "gt_hash": "data",
    "checkpoint": "checkpoint",
    "checkpoint_sha256": "weights",
    "config": "config",
    "use_amp": "precision",
    "nms_iou": "suppression",
}
"""Keys of results.json that say what was asked, and their names: a folder holds answers to one question."""
_SAFER = 1 - 1e-5
"""Of a threshold in decision.json: scores differ in their last digits between batches and machines, and the threshold
is the score of an image that must not pass."""
_ASSUMPTIONS = ("same_kind", "annotated", "independent", "chosen", "meaning")
"""Texts of what a decision takes for granted."""


class Evaluation(NamedTuple):
    """Outcome of `evaluate_checkpoint`."""

    result: EvalResult
    """Its detections are on rank 0 only."""
    folder: Path
    """Where the files are."""
    analysis: Analysis | None
    """On rank 0; None elsewhere."""
    report: Path | None
    """report.html, if written."""
    decision: Path | None = None
    """decision.json, if a promise was asked for and can be made."""


def evaluate_checkpoint(
    path: Path,
    dist: Distributed,
    *,
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    split: SplitName = "val",
    output_dir: Path | None = None,
    use_amp: bool = False,
    compiled: bool = False,
    options: AnalysisOptions | None = None,
) -> Evaluation:
    """Judge the EMA weights of a checkpoint on one split; write results.json, predictions.json, ground_truth.json and,
    if wanted, figures, gallery and report.html.

    Args:
        dist: This process's place; all processes of a torchrun call together.
        overrides: `a.b=c`, on top of the config given or of the one in the checkpoint.
        output_dir: Where the files go; default `eval_<split>_<checkpoint>` beside the checkpoint, with suppression
            `eval_<split>_<checkpoint>_nms`. A folder that holds another evaluation is left alone, see `_folder_for`.
        use_amp: Mixed precision; default is float32 (docs/deimv2.md, AMP, EMA).
        compiled: Compute with torch.compile, where it can be.
        options: What to analyse and draw; None: everything.

    Raises:
        UserError: Bad input of any kind; nothing has been written then.
    """
    options, path = options or AnalysisOptions(), checkpoint_of(path)
    detector = load_detector(
        path, device=dist.device, config_path=config_path, overrides=overrides, use_amp=use_amp, compiled=compiled
    )
    usual = output_folder(path, f"eval_{split}")
    wanted = output_dir or (usual if options.nms is None else usual.with_name(f"{usual.name}_nms"))
    require_output_folder(wanted)
    _require_fitting_split(split, detector.config, options)
    detector, images = _with_images(detector, split)
    truth, facts = GroundTruth.of(images), _facts(detector, split, use_amp=use_amp, nms_iou=options.nms)
    # With the config a comparison knows which evaluations are seeds of one model, wherever their folders are.
    extra = {"config": json.loads(json.dumps(config_to_dict(detector.config)))}
    judged = {"split": split, "gt_hash": truth.fingerprint()}
    folder = _folder_for(wanted, {**judged, **facts, **extra}) if dist.is_main else wanted
    classes, pin_memory = detector.classes, dist.device.type == "cuda"
    ranks = {"rank": dist.rank, "world_size": dist.world_size}
    loader = build_eval_loader(detector.config, images, classes, which=split, pin_memory=pin_memory, **ranks)
    result = evaluate(detector, loader, images, nms_iou=options.nms)
    if not dist.is_main:
        return Evaluation(result, folder, None, None)
    cost = _cost(detector, split, images) if options.cost else None
    numbers = CocoNumbers(result.metrics, result.metrics_defects, result.per_class)
    analysis = analyse(truth, result.detections, split, options, cost=cost, facts=facts, numbers=numbers)
    replaces = (folder / RESULTS_NAME).exists()
    write_results(folder, truth, result.detections, result.to_json() | analysis.results | extra)
    if replaces:  # all that is in a folder is of one evaluation
        for name in ("figures", "gallery"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "report.html").unlink(missing_ok=True)
    report = _draw(analysis, images, result, folder, options) if options.report else None
    decision = _write_decision(folder, detector, images, result, analysis.results, options.lang)
    return Evaluation(result, folder, analysis, report, decision)


def _draw(analysis: Analysis, images: CocoSplit, result: EvalResult, folder: Path, options: AnalysisOptions) -> Path:
    """Write figures, gallery and report.html; matplotlib is loaded only here."""
    from analysis.figures import write_figures
    from analysis.gallery import write_gallery
    from analysis.report import write_report

    lang, captions = options.lang, options.captions
    figures = write_figures(analysis, folder / "figures", lang, captions=captions)
    pictures = write_gallery(analysis, images, result.predictions, folder / "gallery", lang, captions=captions)
    return write_report(analysis, folder, lang=lang, figures=figures, gallery=pictures)


def _require_fitting_split(split: SplitName, config: ExperimentConfig, options: AnalysisOptions) -> None:
    """Raise a UserError if the split is not one to choose a threshold on, or if the test split is the validation's."""
    if split != "val" and options.max_miss_rate is not None:
        raise UserError(
            f"--max-miss-rate, --split {split}: a threshold is chosen on validation images; use --split val. For other "
            "images name their annotation file with -u val_dataloader.dataset.ann_file=..."
        )
    test, val = config.test_dataloader, config.val_dataloader
    if split != "test" or test is None or config.allow_split_overlap:
        return
    if test.dataset.ann_file.resolve() == val.dataset.ann_file.resolve():
        raise UserError(
            f"--split test: test_dataloader.dataset.ann_file is {test.dataset.ann_file}, the validation split's file, "
            "by which best.pth was chosen; its numbers are no test. Name the test split's file, or use --split val."
        )


def _with_images(detector: Detector, split: SplitName) -> tuple[Detector, CocoSplit]:
    """The split's images, and the detector with the data's classes; warns where it sees them at another scale."""
    config = detector.config
    data = build_datasets(config, splits=(split,), classes=detector.classes if detector.names_classes else None)
    images = data.splits[split]
    sizes_wh = images.image_sizes_wh
    warning = detector.other_scale(tuple(np.median(sizes_wh, axis=0).tolist())) if len(sizes_wh) else None
    if warning is not None:
        log.warning("split %s: images of %s", split, warning)
    return replace(detector, classes=data.classes), images


def _folder_for(wanted: Path, facts: Mapping[str, Any]) -> Path:
    """`wanted`, or the folder beside it that is named after this question where `wanted` answers another one."""
    if not (wanted / RESULTS_NAME).exists():
        return wanted
    held = read_results(wanted / RESULTS_NAME)
    question = {key: facts[key] for key in _QUESTION}
    other = [what for key, what in _QUESTION.items() if key not in held or held[key] != question[key]]
    if not other:
        return wanted
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:8]
    own = wanted.with_name(f"{wanted.name}_{digest}")
    log.warning("%s holds another evaluation (of other %s); this one goes to %s", wanted, ", ".join(other), own)
    return own


def _cost(detector: Detector, split: SplitName, images: CocoSplit) -> Cost:
    counts = [len(windows((image.width, image.height), detector.config.tiles)) for image in images.images]
    loader = loaders(detector.config)["val_dataloader" if split == "train" else f"{split}_dataloader"]
    log.info("measuring the cost of the model (--no-cost skips this)")
    return measure_cost(detector, eval_batch=loader.images_per_batch(), passes=round(np.mean(counts or [1])))


def _write_decision(
    folder: Path, detector: Detector, split: CocoSplit, result: EvalResult, results: Mapping[str, Any], lang: Language
) -> Path | None:
    """decision.json, if a promise is asked for and can be made; one that was there is left alone if it cannot."""
    made, cost = (results["acceptance"][key] for key in ("promise", "cost"))
    if made is None or made["threshold"] is None:
        return None
    texts, classes = texts_of(lang, "acceptance"), detector.classes
    images = texts.number(results["num_images"], 0)
    best = (cost or {}).get("threshold") or (results["thresholds"]["overall"] or {"score": DEFAULT_SCORE})["score"]
    scores = dict.fromkeys((image.id for image in split.images), 0.0)
    for one in result.predictions:
        if classes.normal_label is None or one["category_id"] != classes.category_ids[classes.normal_label]:
            scores[one["image_id"]] = max(scores[one["image_id"]], one["score"])
    binding = [made["all"], *(made["per_class"].values() if made["promise_per_class"] else ())]
    binding = [one for one in binding if one["threshold"] == made["threshold"]]
    decision = Decision(
        promise=f"{promise_text(made, texts)} {texts('passes_below', threshold=texts.number(made['threshold']))}",
        assumptions=[texts(key, images=images) for key in _ASSUMPTIONS],
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **{key: results[key] for key in ("split", "gt_hash", "checkpoint", "checkpoint_sha256", "nms_iou", "use_amp")},
        **{key: made[key] for key in ("max_miss_rate", "confidence")},
        per_class=made["promise_per_class"],
        num_defective=binding[0]["num_defective"],
        bound=binding[0]["bound"],
        pass_below=_SAFER * made["threshold"],
        reject_from=_SAFER * max(made["threshold"], best),
        classes=unique_names(classes),
        input_size_hw=detector.input_size_hw,
        tile=detector.tile,
        settings=settings_of(detector),
        validation=traits_of(detector, split, scores),
    )
    write_decision(folder / DECISION_NAME, decision)
    return folder / DECISION_NAME


def _val_data(config: ExperimentConfig) -> tuple[Path, Path, str]:
    """What decides the boxes of the validation split."""
    dataset = config.val_dataloader.dataset
    return dataset.img_folder, dataset.ann_file, config.normal_boxes


def _facts(detector: Detector, split: SplitName, *, use_amp: bool, nms_iou: float | None) -> dict[str, Any]:
    """What results.json says of the model beside the metrics; null where the file does not tell (official ones)."""
    config, checkpoint = detector.config, detector.checkpoint
    trained = checkpoint_config(checkpoint, detector.path) if "config" in checkpoint else config
    return {
        "run": detector.path.resolve().parent.name,
        "config_file": checkpoint.get("config_file"),
        "checkpoint": detector.path.name,
        "checkpoint_sha256": detector.sha256,
        "own_val_data": _val_data(config) == _val_data(trained),
        "input_size_hw": list(config.eval_spatial_size),
        "tiles": tile_facts(config.tiles),
        "weights": "ema" if "ema" in checkpoint else "model",
        "epoch": detector.epoch,
        "epochs": config.epoches,
        "seed": checkpoint.get("seed"),
        "parameters": sum(parameter.numel() for parameter in detector.model.parameters()),
        "train_seconds": checkpoint.get("train_seconds"),
        "use_amp": use_amp,
        "date": datetime.now().isoformat(sep=" ", timespec="minutes"),
        "machine": f"{device_name(detector.device)}, {platform.system()}",
        "nms_iou": nms_iou,
        "data": loaders(config)[f"{split}_dataloader"].dataset.ann_file.as_posix(),
    }


def format_results(results: Mapping[str, Any], lang: Language = "en") -> str:
    """Write the numbers of results.json as tables: COCO's twelve and each class with 95 % intervals, the thresholds.

    A dash stands for "no ground truth".
    """
    texts, figures, meanings = (texts_of(lang, name) for name in ("evaluation", "figures", "metric_meanings"))
    metrics, defects, sampled = results["metrics"], results["metrics_defects"], bool(results["bootstrap_samples"])

    def numbers(content: Mapping[str, Any] | None, *keys: str) -> list[str]:
        return [texts.number(content[key] if content else None, 4) for key in keys]

    def interval(intervals: Mapping[str, Any], key: str) -> list[str]:
        return [texts.interval(intervals.get(key), 4)] if sampled else []

    has_normal = metrics != defects
    heading = [figures["interval_95"]] if sampled else []
    rows = [["", texts["all"], *heading, *([texts["defects"]] if has_normal else []), ""]]
    for key in metrics:
        both = numbers(defects, key) if has_normal else []
        rows.append([key, *numbers(metrics, key), *interval(results["intervals"], key), *both, meanings[key]])
    classes = [[texts["class"], texts["boxes"], "AP", *heading, "AP50", texts["threshold"], "F1"]]
    for name, one in results["per_class"].items():
        best = results["thresholds"]["per_class"][name]
        cells = [*numbers(one, "AP"), *interval(one["intervals"], "AP"), *numbers(one, "AP50")]
        classes.append([shorten(name), str(one["num_gt"]), *cells, *numbers(best, "score", "f1")])
    best = results["thresholds"]["overall"]
    names = ("score", "f1", "precision", "recall")
    values = dict(zip(names, numbers(best, *names), strict=True))
    parts = [
        texts("split", split=results["split"], images=results["num_images"]),
        plain_table(rows, text_columns=(0, len(rows[0]) - 1)),
        plain_table(classes),
        *_suppression(results["suppression"], texts),
        texts["no_threshold"] if best is None else texts("best_threshold", **values),
    ]
    if any(results["acceptance"].values()):
        parts.append("\n".join(acceptance_lines(results, texts_of(lang, "acceptance"))))
    return "\n\n".join(parts)


def _suppression(suppression: Mapping[str, Any] | None, texts: Texts) -> Iterator[str]:
    """Say how many detections repeat another, and what suppressing them does; nothing where they are suppressed."""
    if suppression is None:
        return
    plain, best = (next(one for one in suppression["tried"] if one["iou"] == iou) for iou in (None, suppression["iou"]))
    said = texts("repeats", repeats=suppression["repeats"], detections=suppression["detections"])
    if best["iou"] is None:
        yield f"{said}\n{texts['keep_all']}"
        return
    shown = (("AP", "AP"), ("AP50", "AP50"), ("F1", "f1"))
    changes = (f"{name} {texts.number(plain[key], 4)} → {texts.number(best[key], 4)}" for name, key in shown)
    yield f"{said}\n{texts('suppressed', iou=texts.number(best['iou'], 2), changes='; '.join(changes))}"
