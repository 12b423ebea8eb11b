"""One prediction: load, look, write. What `predict_deimv2.py` does."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from analysis.labels import Language
from data.classes import ClassMap
from data.errors import UserError, printable
from data.images import ImageFacts, PixelArray, has_pages, large_images_allowed, read_image, read_pages
from deploy.detector import Detector, load_detector
from deploy.found import Found
from deploy.pipeline import predict_frames, read_frames
from deploy.prediction_texts import TEXTS
from deploy.sources import ImageSource, Sources, find_sources
from deploy.thresholds import Thresholds, choose_thresholds
from deploy.tiling import Tiling
from deploy.video import Recording, UnreadableVideo, predict_video
from deploy.writers import FORMS, Form, ImageWriter
from engine.cli import require_output_folder
from engine.coco_metrics import unique_names
from engine.hub import output_parent

log = logging.getLogger(__name__)

DEFAULT_FORMS: tuple[Form, ...] = ("images", "coco", "csv")


@dataclass(frozen=True)
class PredictOptions:
    """How to look and what to write.

    Raises:
        UserError: A number is out of its range.
    """

    score: float | None = None
    """For all classes; None: the best-F1 scores of the checkpoint's evaluation."""
    score_per_class: tuple[str, ...] = ()
    """`NAME=S`."""
    forms: tuple[Form, ...] = DEFAULT_FORMS
    tiling: Tiling | None = None
    nms_iou: float | None = None
    """Of boxes of one class that overlap more, the best is kept; None keeps all, as the evaluation does."""
    batch_size: int = 8
    use_amp: bool = False
    lang: Language = "en"
    recursive: bool = False
    max_frames: int | None = None
    """Of each video or camera."""
    progress: bool = True

    def __post_init__(self) -> None:
        problems = []
        if self.batch_size < 1:
            problems.append(f"--batch-size {self.batch_size}: expected 1 or more")
        if self.max_frames is not None and self.max_frames < 1:
            problems.append(f"--max-frames {self.max_frames}: expected 1 or more")
        if self.nms_iou is not None and not 0 < self.nms_iou < 1:
            problems.append(f"--nms {self.nms_iou:g}: expected an IoU between 0 and 1, e.g. 0.7")
        if problems:
            raise UserError("Options out of range:", problems)


@dataclass
class Prediction:
    """What came of it; grows while it runs, so that it holds after an interruption what was done until then."""

    folder: Path
    classes: ClassMap
    thresholds: Thresholds
    num_images: int = 0
    num_frames: int = 0
    num_found: Counter[int] = field(default_factory=Counter)
    """By label."""
    failures: list[str] = field(default_factory=list)
    """What could not be read, with the reason."""
    is_12_bit: dict[str, bool] = field(default_factory=dict)
    """Of the images with 16 bits, by name: they hold 12-bit values, which were stretched."""
    seconds: float = 0.0
    interrupted: bool = False

    def count(self, found: Found) -> None:
        """Add the detections of an image."""
        self.num_found.update(found.labels.tolist())

    def fail(self, reason: object) -> None:
        """Note what could not be read."""
        self.failures.append(printable(str(reason)))


def parse_forms(text: str) -> tuple[Form, ...]:
    """`images,coco` -> those forms.

    Raises:
        UserError: An unknown one.
    """
    asked = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in asked if part not in FORMS]
    if unknown or not asked:
        raise UserError(
            f"--save {text}: {', '.join(unknown) or 'nothing'} is no choice; expected some of {','.join(FORMS)}"
        )
    return tuple(form for form in FORMS if form in asked)


def predict(
    checkpoint: Path,
    arguments: Sequence[str],
    device: torch.device,
    *,
    options: PredictOptions | None = None,
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
) -> Prediction:
    """Look at images, videos and cameras with a checkpoint and write what is there. Ctrl-C ends it early with all
    tables complete.

    Args:
        checkpoint: Its EMA weights are used.
        arguments: Files, folders, patterns, camera indices, addresses of streams.
        device: Where to compute.
        options: None: the defaults.
        config_path: Config to use instead of the one in the checkpoint.
        overrides: `a.b=c`, on top of either.
        output_dir: An empty or new folder; default `predict_<checkpoint>` beside the checkpoint, or the first of
            `predict_<checkpoint>_2`, ... that is free.

    Raises:
        UserError: Bad input of any kind, before anything is written; or a file cannot be written.
    """
    options = options or PredictOptions()
    folder = _output_folder(checkpoint, output_dir)
    sources = find_sources(arguments, recursive=options.recursive, exclude=folder)
    loaded = load_detector(checkpoint, device, config_path=config_path, overrides=overrides, use_amp=options.use_amp)
    thresholds = choose_thresholds(
        checkpoint,
        loaded.classes,
        epoch=loaded.epoch,
        input_size_hw=loaded.input_size_hw,
        score=options.score,
        per_class=options.score_per_class,
    )
    prediction = Prediction(folder, loaded.classes, thresholds, failures=list(sources.skipped))
    info = _info(checkpoint, loaded.epoch, thresholds, loaded.classes, options)
    started = time.perf_counter()
    try:
        with large_images_allowed() if options.tiling is not None else contextlib.nullcontext():
            _predict_images(sources, loaded.detector, prediction, options, info)
        _predict_videos(sources, loaded.detector, prediction, options)
    except KeyboardInterrupt:
        prediction.interrupted = True
    prediction.seconds = time.perf_counter() - started
    return prediction


def _output_folder(checkpoint: Path, output_dir: Path | None) -> Path:
    if output_dir is not None:
        require_output_folder(output_dir)
        if output_dir.is_dir() and any(output_dir.iterdir()):
            raise UserError(
                f"Output folder {output_dir} is not empty; nothing in it would be overwritten knowingly. Choose "
                "another one with --output-dir, or empty it."
            )
        return output_dir
    plain = output_parent(checkpoint) / f"predict_{checkpoint.stem.removeprefix('hf:')}"
    folder, number = plain, 1
    while folder.exists():
        number += 1
        folder = plain.with_name(f"{plain.name}_{number}")
    require_output_folder(folder)
    return folder


def _info(
    checkpoint: Path, epoch: int | None, thresholds: Thresholds, classes: ClassMap, options: PredictOptions
) -> dict[str, object]:
    """Where detections come from, for those who find the file later."""
    evaluated = "the best F1 of " + str(thresholds.source) if thresholds.source else "the default"
    return {
        "checkpoint": printable(str(checkpoint)),
        "epoch": epoch,
        "score_thresholds": dict(zip(unique_names(classes), thresholds.scores.tolist(), strict=True)),
        "score_thresholds_from": "--score" if thresholds.given else printable(evaluated),
        "score_per_class": list(options.score_per_class),
        "tile": None if options.tiling is None else [options.tiling.tile_px, options.tiling.overlap],
        "nms": options.nms_iou,
    }


def _images_to_read(sources: Sources, prediction: Prediction) -> Iterator[tuple[ImageSource, Callable[[], PixelArray]]]:
    """Every image, page by page, and how to read it; a file's pages are decoded here, in their order."""
    stems = sources.stems()

    def pixels(image: ImageSource, page: tuple[PixelArray, ImageFacts] | UserError | None = None) -> PixelArray:
        page = read_image(image.path) if page is None else page
        if isinstance(page, UserError):
            raise page
        if page[1].largest_value:
            prediction.is_12_bit[image.name] = page[1].is_12_bit
        return page[0]

    for image in sources.images:
        if not has_pages(image.path):
            yield image, partial(pixels, image)
            continue
        for number, page in enumerate(read_pages(image.path), start=1):
            source = image.page(number, stems)
            yield source, partial(pixels, source, page)


def _predict_images(
    sources: Sources, detector: Detector, prediction: Prediction, options: PredictOptions, info: dict[str, object]
) -> None:
    images = sources.images
    bar = tqdm(
        total=len(images),
        desc="predict",
        unit="image",
        leave=False,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
        disable=not options.progress or not images,
    )

    def failed(image: ImageSource, error: UserError) -> None:
        prediction.fail(error)
        bar.update()

    frames = read_frames(_images_to_read(sources, prediction), detector, options.tiling, failed)
    writer = ImageWriter(prediction.folder, options.forms, prediction.classes, options.lang, info)
    with bar, writer:
        for frame, found in predict_frames(
            frames, detector, prediction.thresholds.scores, options.batch_size, options.nms_iou
        ):
            writer.add(frame.key, frame.pixels, found)
            prediction.num_images += 1
            prediction.count(found)
            bar.update()


def _predict_videos(sources: Sources, detector: Detector, prediction: Prediction, options: PredictOptions) -> None:
    ignored = sorted({"coco", "yolo", "crops"} & set(options.forms))
    if sources.videos and not {"images", "csv"} & set(options.forms):
        log.warning("--save %s: a video leaves a video (images) and a table (csv) only", ",".join(ignored))
    for source in sources.videos:
        try:
            recording = Recording.open(source, options.max_frames)
            for found in _video_frames(recording, detector, prediction, options):
                prediction.num_frames += 1
                prediction.count(found)
        except UnreadableVideo as error:
            prediction.fail(error)
        except KeyboardInterrupt:
            if not source.is_live:  # which has no other end
                raise


def _video_frames(
    recording: Recording, detector: Detector, prediction: Prediction, options: PredictOptions
) -> Iterator[Found]:
    return predict_video(
        recording,
        detector,
        prediction.thresholds.scores,
        prediction.classes,
        prediction.folder,
        write_video="images" in options.forms,
        write_table="csv" in options.forms,
        tiling=options.tiling,
        batch_size=options.batch_size,
        nms_iou=options.nms_iou,
        lang=options.lang,
        progress=options.progress,
    )


def format_prediction(prediction: Prediction, lang: Language) -> str:
    """The outcome in a few lines."""
    texts = TEXTS[lang]
    names = unique_names(prediction.classes)
    thresholds = prediction.thresholds

    def number(value: float, digits: int) -> str:
        return f"{value:.{digits}f}".replace(".", texts.decimal_mark)

    separator = "; " if texts.decimal_mark == "," else ", "
    scores = separator.join(f"{name} {number(score, 4)}" for name, score in zip(names, thresholds.scores, strict=True))
    if thresholds.source is not None:
        lines = [texts.evaluated_thresholds.format(source=thresholds.source, thresholds=scores)]
    else:
        lines = [(texts.given_threshold if thresholds.given else texts.default_threshold).format(thresholds=scores)]
    seconds = number(prediction.seconds, 1)
    lines.append(texts.seen.format(images=prediction.num_images, frames=prediction.num_frames, seconds=seconds))
    counts = ", ".join(f"{names[label]} {count}" for label, count in sorted(prediction.num_found.items()))
    if any(prediction.is_12_bit.values()):
        stretched = sorted(name for name, is_12_bit in prediction.is_12_bit.items() if is_12_bit)
        lines.append(
            texts.stretched.format(count=len(stretched), total=len(prediction.is_12_bit), example=stretched[0])
        )
    total = prediction.num_found.total()
    lines.append(texts.found.format(total=total, classes=counts) if total else texts.nothing)
    if prediction.failures:
        lines.append(texts.failures.format(count=len(prediction.failures)))
        lines += [f"  - {failure}" for failure in prediction.failures]
    if prediction.interrupted:
        lines.append(texts.stopped)
    if prediction.folder.is_dir():  # without a single readable file there is none
        lines.append(texts.written.format(folder=prediction.folder))
    return "\n".join(map(printable, lines))
