"""Look at images and videos with a checkpoint and write what is there: what `predict_deimv2.py` does."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, field_validator
from tqdm import tqdm

from data.config import TilesConfig
from data.errors import UserError, printable
from data.images import ImageFacts, has_pages, large_images_allowed, read_image, read_pages
from data.progress import progress_bar
from data.types import PixelArray
from deploy.acceptance import Judge, judge_of, stored_calibration
from deploy.pipeline import make_frame, predict_frames, read_frames
from deploy.sources import ImageSource, Sources, VideoSource, find_sources
from deploy.thresholds import Nms, Thresholds, choose_thresholds
from deploy.video import Recording, UnreadableVideo, VideoFile
from deploy.writers import FORMS, Form, ImageWriter, Table, drawn, table_cells
from engine.cli import command_line, ending, require_output_folder
from engine.detector import Detector, load_detector
from engine.metrics import unique_names
from engine.named_files import checkpoint_of
from engine.options import Options
from models.detections import Detections
from models.hub import output_folder
from texts import Language, plain_table, texts_of

log = logging.getLogger(__name__)


class PredictOptions(Options):
    """How to look and what to write."""

    score: float | None = Field(None, ge=0, le=1, description="0 to 1")
    """For all classes; None: the best-F1 scores of the checkpoint's evaluation."""
    score_per_class: tuple[str, ...] = ()
    """`NAME=S`."""
    save: tuple[Form, ...] = ("images", "coco", "csv")
    tile: int | None = Field(None, ge=32, description="at least 32 pixels, e.g. the network's input")
    """None: as in training."""
    overlap: float | None = Field(
        None, ge=0.05, le=0.8, description="0.05 to 0.8, e.g. 0.2; objects on a border are joined through it"
    )
    """None: as in training, else 0.2."""
    nms: Nms = "auto"
    batch_size: int | None = Field(None, ge=1, description="1 or more")
    """Images or tiles at once; None: `Detector.usual_batch`."""
    use_amp: bool = False
    compile: bool = False
    lang: Language = "en"
    recursive: bool = False
    max_frames: int | None = Field(None, ge=1, description="1 or more")
    """Of each video or camera."""
    calibrate: bool = False
    """Scores are chances, by the curves of the checkpoint's evaluation."""
    decision: Path | None = None
    """decision.json, which every image is judged by."""
    progress: bool = True

    @field_validator("save", mode="before")
    @classmethod
    def _split(cls, forms: str | Sequence[str]) -> Sequence[str]:
        asked = [part.strip() for part in forms.split(",") if part.strip()] if isinstance(forms, str) else forms
        unknown = [part for part in asked if part not in FORMS]
        if unknown or not asked:
            raise ValueError(f"{', '.join(unknown) or 'nothing'} is no choice; expected some of {','.join(FORMS)}")
        return [form for form in FORMS if form in asked]

    def tiles(self, trained: TilesConfig | None) -> TilesConfig | None:
        """How to cut images: as the network was trained, unless something else was asked for."""
        if self.tile is None and trained is None:
            return None
        asked = {"size": self.tile, "overlap": self.overlap}
        given = {key: value for key, value in asked.items() if value is not None}
        return TilesConfig.model_validate((trained.model_dump() if trained is not None else {}) | given)


@dataclass
class Prediction:
    """What came of it; grows while it runs, so that it holds after an interruption what was done until then."""

    folder: Path
    detector: Detector
    options: PredictOptions
    thresholds: Thresholds
    failures: list[str]
    """What could not be read, with the reason."""
    judge: Judge | None
    """Of `--decision`."""
    num_images: int = 0
    num_frames: int = 0
    num_found: Counter[int] = field(default_factory=Counter)
    """By label."""
    is_12_bit: dict[str, bool] = field(default_factory=dict)
    """Of the images with 16 bits, by name: they hold 12-bit values, which were stretched."""
    seconds: float = 0.0
    interrupted: bool = False
    other_scale: str | None = None
    """Of the first image at another scale than the training's."""

    def counts(self) -> dict[str, float]:
        """Return how much was seen and found."""
        seen = {"images": self.num_images, "frames": self.num_frames, "left_out": len(self.failures)}
        return seen | {"detections": self.num_found.total(), "seconds": self.seconds}

    def count(self, found: Detections, size_wh: tuple[int, int], name: str) -> None:
        """Add what was detected in an image; warn of the first one at another scale."""
        self.num_found.update(found.labels.tolist())
        if self.other_scale is None:
            self.other_scale = self.detector.other_scale(size_wh)
            if self.other_scale is not None:
                log.warning("%s: %s", name, self.other_scale)


def predict(
    checkpoint: Path,
    arguments: Sequence[str],
    device: torch.device,
    options: PredictOptions,
    *,
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
) -> Prediction:
    """Look at images, videos and cameras with a checkpoint and write what is there. Ctrl-C ends it early with all
    tables complete.

    The output folder is empty or new; by default `predict_<checkpoint>` beside the checkpoint, or the first of
    `predict_<checkpoint>_2`, ... that is free.

    Raises:
        UserError: Bad input of any kind, before anything is written; or a file cannot be written.
    """
    checkpoint = checkpoint_of(checkpoint)
    folder = _output_folder(checkpoint, output_dir)
    is_new = not folder.exists()
    sources = find_sources(arguments, recursive=options.recursive, exclude=folder)
    detector = load_detector(
        checkpoint,
        device=device,
        config_path=config_path,
        overrides=overrides,
        use_amp=options.use_amp,
        compiled=options.compile,
    )
    tiles = options.tiles(detector.config.tiles)
    detector = detector.with_tiles(tiles)
    if options.calibrate and options.decision is None:
        detector = replace(detector, calibration=stored_calibration(detector, required=True))
    judge = None
    if options.decision is None:
        thresholds = choose_thresholds(detector, options.score, options.score_per_class, options.nms)
    else:
        judge = judge_of(options.decision, detector, options, videos=bool(sources.videos))
        scores = np.full(len(detector.classes), judge.decision.pass_below)
        thresholds = Thresholds(scores, "decided", options.decision, judge.decision.nms_iou)
    if is_new:
        folder = _made(folder, checkpoint, output_dir)
    prediction = Prediction(folder, detector, options, thresholds, list(sources.skipped), judge)
    started = time.perf_counter()
    try:
        with large_images_allowed() if tiles is not None else contextlib.nullcontext():
            _predict_images(sources, prediction)
        if sources.videos and not {"images", "csv"} & {*options.save}:
            log.warning("--save %s: a video leaves a video (images) and a table (csv) only", ",".join(options.save))
        for source in sources.videos:
            _predict_video(source, prediction)
    except KeyboardInterrupt:
        prediction.interrupted = True
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # something was written
                folder.rmdir()
    prediction.seconds = time.perf_counter() - started
    return prediction


def _output_folder(checkpoint: Path, output_dir: Path | None) -> Path:
    plain = output_folder(checkpoint, "predict")
    folder, number = output_dir or plain, 1
    while output_dir is None and folder.exists():
        number += 1
        folder = plain.with_name(f"{plain.name}_{number}")
    require_output_folder(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"Output folder {folder} is not empty; nothing in it would be overwritten knowingly. Choose another one "
            "with --output-dir, or empty it."
        )
    return folder


def _made(folder: Path, checkpoint: Path, output_dir: Path | None) -> Path:
    """Make the folder: the weights took seconds to load, in which another process may have begun in the same one."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        if output_dir is None:
            return _made(_output_folder(checkpoint, None), checkpoint, None)
        found = f"Output folder {folder}: another process has begun to write into it."
        raise UserError(f"{found} Choose another one with --output-dir.") from error
    return folder


def _info(prediction: Prediction) -> dict[str, object]:
    """Where detections come from, for those who find the file later."""
    detector, thresholds, options = prediction.detector, prediction.thresholds, prediction.options
    source = thresholds.source
    origins = {"given": "--score", "default": "the default", "evaluated": f"the best F1 of {source}"}
    return {
        "checkpoint": printable(str(detector.path)),
        "epoch": detector.epoch,
        "score_thresholds": dict(zip(unique_names(detector.classes), thresholds.scores.tolist(), strict=True)),
        "score_thresholds_from": printable(origins.get(thresholds.origin, str(source))),
        "score_per_class": list(options.score_per_class),
        "tile": detector.tile,
        "nms": thresholds.nms_iou,
        "calibrated": detector.calibration is not None,
    }


def _images_to_read(
    sources: Sources, is_12_bit: dict[str, bool]
) -> Iterator[tuple[ImageSource, Callable[[], PixelArray]]]:
    """Every image, page by page, and how to read it; a file's pages are decoded here, in their order."""

    def pixels(image: ImageSource, page: tuple[PixelArray, ImageFacts] | UserError | None = None) -> PixelArray:
        page = read_image(image.path) if page is None else page
        if isinstance(page, UserError):
            raise page
        if page[1].largest_value:
            is_12_bit[image.name] = page[1].is_12_bit
        return page[0]

    for image in sources.images:
        if not has_pages(image.path):
            yield image, partial(pixels, image)
            continue
        for number, page in enumerate(read_pages(image.path), start=1):
            source = image.page(number, sources.stems)
            yield source, partial(pixels, source, page)


def _predict_images(sources: Sources, prediction: Prediction) -> None:
    detector, options, judge = prediction.detector, prediction.options, prediction.judge
    batch_size = options.batch_size or detector.usual_batch
    bar: tqdm[None] = progress_bar(
        None, "predict", total=len(sources.images), show=options.progress and bool(sources.images)
    )

    def failed(error: UserError) -> None:
        prediction.failures.append(printable(str(error)))
        bar.update()

    images = _images_to_read(sources, prediction.is_12_bit)
    frames = read_frames(images, detector, failed)
    thresholds, nms_iou = prediction.thresholds.scores, prediction.thresholds.nms_iou
    least = thresholds if judge is None else np.zeros_like(thresholds)  # a judge compares the scores of all images
    with bar, ImageWriter(prediction.folder, options.save, detector.classes, options.lang, _info(prediction)) as writer:
        for frame, everything in predict_frames(frames, detector, least, batch_size, nms_iou):
            found = everything.above(thresholds)
            writer.add(frame.key, frame.pixels, found, None if judge is None else judge(everything, frame.pixels))
            prediction.count(found, frame.size_wh, frame.key.name)
            prediction.num_images += 1
            bar.update()


def _predict_video(source: VideoSource, prediction: Prediction) -> None:
    """Write the annotated video, same size and rate, and its table, frame by frame."""
    detector, options, stem = prediction.detector, prediction.options, prediction.folder / "videos" / source.stem
    batch_size = 1 if source.is_live else options.batch_size or detector.usual_batch
    try:
        recording = Recording(source.source, source.name, options.max_frames)
        frames = (make_frame(number, pixels, detector) for number, pixels in enumerate(recording.frames()))
        bar: tqdm[None] = progress_bar(
            None, source.name, unit="frame", total=recording.expected_frames, show=options.progress
        )
        table = Table(stem.with_name(f"{stem.name}.csv"), "video_columns", options.lang)
        thresholds, nms_iou = prediction.thresholds.scores, prediction.thresholds.nms_iou
        with bar, VideoFile(stem, recording.rate) as video, table:
            for frame, found in predict_frames(frames, detector, thresholds, batch_size, nms_iou):
                inside = found.clipped(frame.size_wh)
                if "images" in options.save:
                    video.add(drawn(frame.pixels, inside, detector.classes, options.lang, same_size=True))
                if "csv" in options.save:
                    seconds = round(frame.key / recording.rate, 3)
                    table.add([[frame.key, seconds, *cells] for cells in table_cells(inside, detector.classes)])
                bar.update()
                prediction.count(found, frame.size_wh, source.name)
                prediction.num_frames += 1
    except UnreadableVideo as error:
        prediction.failures.append(printable(str(error)))
    except KeyboardInterrupt:
        if not source.is_live:  # which has no other end
            raise


def format_prediction(prediction: Prediction, lang: Language, checkpoint: Path) -> str:
    """Say the outcome: thresholds and counts by class, what was left out, where it is, what to type next."""
    texts = texts_of(lang, "prediction")
    names = unique_names(prediction.detector.classes)
    given, total = prediction.thresholds, prediction.num_found.total()
    rows = [[texts["class"], texts["threshold"], texts["found"]]]
    rows += [
        [name, texts.number(score, 4), str(prediction.num_found[label])]
        for label, (name, score) in enumerate(zip(names, given.scores, strict=True))
    ]
    rows.append([texts["all"], "", str(total)])
    lines = [
        texts(f"{given.origin}_thresholds", source=given.source),
        *([] if given.nms_iou is None else [texts("suppressed", iou=texts.number(given.nms_iou, 2))]),
        texts(
            "seen",
            images=prediction.num_images,
            frames=prediction.num_frames,
            seconds=texts.number(prediction.seconds, 1),
        ),
    ]
    stretched = sorted(name for name, is_12_bit in prediction.is_12_bit.items() if is_12_bit)
    if stretched:
        lines.append(texts("stretched", count=len(stretched), total=len(prediction.is_12_bit), example=stretched[0]))
    lines += [plain_table(rows), *([] if total else [texts["nothing"]])]
    if prediction.judge is not None:
        lines += prediction.judge.lines(texts)
    if prediction.failures:
        lines.append(texts("failures", count=len(prediction.failures)))
        lines += [f"  - {failure}" for failure in prediction.failures]
    if prediction.interrupted:
        lines.append(texts["stopped"])
    said = "".join(f"{printable(line)}\n" for line in "\n".join(lines).split("\n"))
    if not prediction.folder.is_dir():  # without a single readable file there is none
        return said
    known = given.origin != "default"
    next_step = ("visualize_attention.py", "--from-val", 6) if known else ("evaluate_deimv2.py",)
    return said + ending(lang, prediction.folder, command_line(next_step[0], "-r", checkpoint, *next_step[1:]))
