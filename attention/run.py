"""From a checkpoint and images to figures on disk: what `visualize_attention.py` does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import matplotlib
import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, model_validator

from analysis.style import figure_style, save_figure
from analysis.tables import write_table
from attention import figures
from attention.capture import PredictedObject, all_objects, capture, choose_objects, predictions_of, require_deim
from attention.evidence import EVIDENCE_METHODS, ODAM_EDGES, DrawMap, evidence_methods, resolve_layer
from attention.figures import OVERVIEW_ROWS, Drawn, Focus, Row, View
from attention.maps import MapArray, PatchColours, fit_patch_colours, patches_in_box, token_at
from attention.panels import Scene, shrunk
from attention.text_share import draw_text_share
from data.coco import CocoSplit
from data.errors import UserError
from data.files import file_sha256, write_json
from data.images import IMAGE_SUFFIXES, decode_image
from data.progress import progress_bar
from data.splits import build_datasets
from data.types import FloatArray, PixelArray
from engine.cli import require_output_folder
from engine.detector import Detector
from engine.options import Options
from models.detector import DEIM
from models.vit import PATCH_SIZE
from texts import Language, texts_of

log = logging.getLogger(__name__)

Part = Literal["backbone", "decoder", "evidence"]
PARTS: tuple[Part, ...] = get_args(Part)

FIGURES: tuple[tuple[str, Part | None, Callable[[View], Iterator[Drawn]]], ...] = (
    ("main", None, figures.draw_main),
    ("heads_cls", "backbone", partial(figures.draw_heads, from_class_token=True)),
    ("heads_patch", "backbone", partial(figures.draw_heads, from_class_token=False)),
    ("features", "backbone", figures.draw_features),
    ("object_q", "decoder", figures.draw_objects),
    ("evidence", "evidence", partial(figures.draw_evidence, methods=EVIDENCE_METHODS)),
    ("edges", "evidence", partial(figures.draw_evidence, methods=tuple(ODAM_EDGES))),
    ("text", "evidence", draw_text_share),
)
"""Every figure of an image: how its name begins, the part it belongs to (None: always there), and what draws it."""

_PCA_PATCHES = 60_000
_OVERVIEW_PX = 360

Truth = Sequence[tuple[FloatArray, int]]
"""Annotated boxes, xyxy in pixels, and labels."""


class ViewOptions(Options):
    """What to draw of every image."""

    what: tuple[Part, ...] = PARTS
    layers: tuple[NonNegativeInt, ...] = Field((), description="numbers of ViT blocks from 0, or all")
    """None: those that the detector reads."""
    all_layers: bool = False
    """Every ViT block, whatever `layers` says."""
    queries: tuple[NonNegativeInt, ...] = Field((), title="--query", description="0 or more")
    """None: the best objects."""
    top: int = Field(3, ge=1, description="1 or more")
    """So many objects, where `queries` names none."""
    min_score: float = Field(0.3, ge=0, le=1, description="0 to 1, e.g. 0.3")
    """Least score of these objects."""
    evidence_layer: str | None = None
    """Where class evidence is taken, see `attention.evidence.resolve_layer`; None: the default."""
    point: tuple[NonNegativeFloat, NonNegativeFloat] | None = Field(None, description="pixels of the image, 0 or more")
    """x and y in the original image: the patch whose attention is shown; None: those of the best object."""
    overlay: bool = False
    """Maps over the greyed image, with contours; else as they are."""
    captions: bool = True
    """False: into text files beside the figures."""
    lang: Language = "en"

    @model_validator(mode="before")
    @classmethod
    def _named_all(cls, values: dict[str, Any]) -> dict[str, Any]:
        what, layers = values.get("what", ["all"]), values.get("layers", ())
        return values | {
            "what": PARTS if "all" in what else [part for part in PARTS if part in what],
            "layers": [layer for layer in layers if layer != "all"],
            "all_layers": "all" in layers,
        }


class SourceImage(NamedTuple):
    """An image that has not been opened yet."""

    path: Path
    name: str
    """Unique among the images of a run, fit for a file name."""
    truth: Truth | None = None
    """None: not known, as for a file that the user names."""


def find_images(images: Sequence[Path], from_val: int, detector: Detector) -> list[SourceImage]:
    """Return the images to look at, in a fixed order: files, every image file below folders, and `from_val` images
    spread evenly over the validation split.

    Raises:
        UserError: Nothing was asked for, there is nothing, or the validation split cannot be read.
    """
    if not images and not from_val:
        raise UserError("No images: give --images PATH_OR_FOLDER, or --from-val N for images of the validation split.")
    if from_val < 0:
        raise UserError(f"--from-val {from_val}: expected the number of images, 1 or more.")
    paths: list[Path] = []
    problems: list[str] = []
    for path in images:
        inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in IMAGE_SUFFIXES and one.is_file())
        paths += [path] if path.is_file() else inside
        if path.is_dir() and not inside:
            problems.append(f"{path}: no image file in this folder or below it (looked for .png, .jpg, .bmp, ...)")
        elif not path.exists():
            problems.append(f"{path}: there is no such file or folder")
    if problems:
        raise UserError("--images: nothing to look at there.", problems)
    found: list[tuple[Path, Truth | None]] = [(path, None) for path in dict.fromkeys(paths)]
    if from_val:
        split = validation_split(detector)
        for index in np.unique(np.linspace(0, len(split) - 1, min(from_val, len(split))).round().astype(int)).tolist():
            rows = split.training_rows(split.images[index])
            truth = list(zip(split.boxes_xyxy[rows], split.labels[rows].tolist(), strict=True))
            found.append((split.images[index].path, truth))
    used = {"score", "overview"}  # in the output folder, but no image's
    sources = []
    for path, known in found:
        name, number = path.stem, 2
        while name.casefold() in used:  # as Windows compares them
            name, number = f"{path.stem}_{number}", number + 1
        used.add(name.casefold())
        sources.append(SourceImage(path, name, known))
    return sources


def validation_split(detector: Detector) -> CocoSplit:
    """Read the validation split, with the detector's classes where it names them."""
    classes = detector.classes if detector.names_classes else None
    return build_datasets(detector.config, splits=("val",), classes=classes).splits["val"]


def open_image(path: Path, detector: Detector) -> tuple[PixelArray, torch.Tensor]:
    """Read one image of any size and mode: its pixels, and the network's input float32 [1, 3, H, W].

    Raises:
        UserError: It cannot be read.
    """
    try:
        pixels = decode_image(path)
    except MemoryError as error:
        raise UserError(f"{path}: not enough memory to read it.") from error
    return pixels, detector.normalize(detector.prepare(pixels)[None])


@dataclass
class Visualisation:
    """What `visualize` draws; grows while it runs."""

    detector: Detector
    folder: Path
    options: ViewOptions
    command: Sequence[str]
    layers: Sequence[int]
    """ViT blocks to draw."""
    evidence_layer: str
    methods: Mapping[str, DrawMap]
    """Of evidence, taken there."""
    colours: PatchColours | None = None
    num_images: int = 0
    """Drawn."""
    num_figures: int = 0
    left_out: list[str] = field(default_factory=list)
    """One sentence an image that could not be drawn."""
    without_object: list[str] = field(default_factory=list)
    """Subfolders of the images in which nothing reaches `ViewOptions.min_score`."""
    other_scale: str | None = None
    """Of the first image at another scale than the training's; images are always seen whole here."""

    def summary(self) -> str:
        """Say what was done, in lines."""
        texts, lines = texts_of(self.options.lang, "attention_run"), []
        lines.append(texts("drawn", figures=self.num_figures, images=self.num_images))
        count = len(self.without_object)
        if count:
            named = ", ".join(self.without_object[:10]) + (", ..." if count > 10 else "")
            least = texts.number(self.options.min_score, 2)
            lines.append(texts("without_object", score=least, images=count, named=named))
        if self.left_out:
            lines += [texts("left_out", images=len(self.left_out)), *(f"  - {line}" for line in self.left_out)]
        return "\n".join(lines)

    def draw(self, images: Sequence[SourceImage], progress: bool) -> Iterator[Row]:
        """Draw and write every image's figures; yield its row of the overview."""
        for source in progress_bar(images, "attention", show=progress):
            try:
                with _memory_named():
                    view, row = self._look(source)
            except UserError as error:
                named = str(source.path) in str(error)
                self.left_out.append(str(error) if named else f"{source.path}: {error}")
                continue
            sha256, size = file_sha256(source.path), list(view.scene.size_wh)
            _remove_figures(self.folder / source.name)
            for name, drawn in _figures(view, self.options.what):
                self.write(name, drawn, {"image": {"path": str(source.path), "sha256": sha256, "size_wh": size}})
            self.without_object += [] if view.objects else [source.name]
            self.num_images += 1
            yield row

    def _look(self, source: SourceImage) -> tuple[View, Row]:
        detector, options, texts = self.detector, self.options, texts_of(self.options.lang, "attention")
        pixels, image = open_image(source.path, detector)
        size_wh = (pixels.shape[1], pixels.shape[0])
        if self.other_scale is None:
            self.other_scale = detector.with_tiles(None).other_scale(size_wh)
            if self.other_scale is not None:
                log.warning("%s: %s", source.path, self.other_scale)
        names, overlay = detector.classes.names, options.overlay
        scene = Scene(shrunk(pixels), size_wh, source.truth, names, texts, overlay)
        captured = capture(detector.model, image) if isinstance(detector.model, DEIM) else None
        with torch.no_grad():
            outputs = captured.outputs if captured else detector.model(image)
        everything = all_objects(predictions_of(outputs, len(scene.names))[0])
        objects = choose_objects(everything, queries=options.queries, top=options.top, min_score=options.min_score)
        evidence: list[dict[str, MapArray]] = []
        for one in objects if captured is None or "evidence" in options.what else ():
            drawn = {name: draw(detector.model, image, one.query, one.label) for name, draw in self.methods.items()}
            evidence.append({name: (cells / cells.max().clamp(min=1e-12)).numpy() for name, cells in drawn.items()})
        view = View(detector, source.name, scene, image, objects, evidence, self.evidence_layer, captured)
        if captured is not None:
            focus = self._focus(scene, objects, captured.grid_hw)
            view = replace(view, layers=self.layers, focus=focus, colours=self.colours)
        return view, view.row._replace(scene=replace(scene, picture=shrunk(pixels, _OVERVIEW_PX)))

    def _focus(self, scene: Scene, objects: Sequence[PredictedObject], grid_hw: tuple[int, int]) -> Focus:
        """Whose attention is shown: the given point's patch, else the best object's patches, else the middle."""
        texts = scene.texts
        if self.options.point is not None:
            (x, y), (width, height) = self.options.point, scene.size_wh
            if x >= width or y >= height:
                raise UserError(f"--point {x:g} {y:g} lies outside the image, which has {width} x {height} pixels.")
            place = (x / width, y / height)
            text = texts("focus_point", x=texts.number(x, 0), y=texts.number(y, 0))
            return Focus([token_at(place, grid_hw)], place, text)
        if objects:
            best = objects[0]
            left, top, right, bottom = best.box_xyxy
            name, score = scene.name(best.label), scene.score(best.score)
            text = texts("focus_object", query=best.query, name=name, score=score)
            return Focus(patches_in_box(best.box_xyxy, grid_hw), ((left + right) / 2, (top + bottom) / 2), text)
        return Focus([token_at((0.5, 0.5), grid_hw)], (0.5, 0.5), texts["focus_centre"])

    def write(self, name: str, drawn: Drawn, facts: dict[str, Any]) -> None:
        """Write a figure as `name`.png, .pdf and .json, and its table."""
        path = self.folder / name
        save_figure(drawn.figure, path.parent, path.name, text_beside=None if self.options.captions else drawn.caption)
        if drawn.table is not None:
            write_table(drawn.table, path, self.options.lang)
        self.write_json(name, {"figure": path.name, "caption": drawn.caption, **facts, "drawn": dict(drawn.facts)})
        self.num_figures += 1

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write `name`.json: `content` and all that is needed to make it again."""
        made_from = {
            "checkpoint": {"path": str(self.detector.path), "sha256": self.detector.sha256},
            "network_input_hw": list(self.detector.input_size_hw),
            "settings": self.options.model_dump(),
            "command": list(self.command),
            "versions": {"torch": torch.__version__, "matplotlib": matplotlib.__version__},
        }
        write_json(self.folder / f"{name}.json", content | made_from, what="figure's settings", indent=2)


def visualize(
    detector: Detector,
    images: Sequence[SourceImage],
    folder: Path,
    options: ViewOptions,
    *,
    command: Sequence[str] = (),
    progress: bool = True,
) -> Visualisation:
    """Draw every image into `folder`: one subfolder an image, an overview of all, and run.json.

    Each figure is a PNG, a PDF (text as text) and a JSON file that says how it was made, with the `command` that would
    do the same. One image is in memory at a time; one that cannot be read is left out and named in the result.

    Raises:
        UserError: The options do not fit the detector, the folder cannot be written, or no image could be drawn.
    """
    require_output_folder(folder)
    layers, evidence_layer = _chosen_layers(detector, options), resolve_layer(detector.model, options.evidence_layer)
    methods = evidence_methods(evidence_layer.name)
    run = Visualisation(detector, folder, options, command, layers, evidence_layer.name, methods)
    if "backbone" in options.what and isinstance(detector.model, DEIM):
        run.colours = _fit_colours(detector, images, progress)
    texts = texts_of(options.lang, "attention")
    with figure_style():
        rows = run.draw(images, progress)
        for page, on_page in enumerate(iter(lambda: list(islice(rows, OVERVIEW_ROWS)), []), 1):
            run.write("overview" if page == 1 else f"overview_{page}", figures.draw_overview(on_page, texts), {})
    if not run.num_images:
        raise UserError(f"None of the {len(images)} images could be drawn:", run.left_out[:10])
    named = [str(image.path) for image in images]
    run.write_json("run", {"images": named, "left_out": run.left_out, "without_object": run.without_object})
    return run


def _figures(view: View, what: Sequence[Part]) -> Iterator[tuple[str, Drawn]]:
    """Every figure asked for with its path below the output folder; a baseline has evidence alone."""
    for name, part, draw in FIGURES:
        if part is None or (part in what and (part == "evidence" or view.captured is not None)):
            for drawn in draw(view):
                yield f"{view.name}/{name}{drawn.suffix}", drawn


@contextmanager
def _memory_named() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"out of memory ({str(error).splitlines()[0]}); try -d cpu, or --what decoder alone") from error


def _chosen_layers(detector: Detector, options: ViewOptions) -> tuple[int, ...]:
    """ViT blocks to draw; a UserError if the detector has no such block, or none at all."""
    model = detector.model
    if not isinstance(model, DEIM):
        asked = [f"--what {part}" for part in options.what if part != "evidence" and options.what != PARTS]
        asked += ["--layers"] if options.layers or options.all_layers else []
        asked += ["--point"] if options.point is not None else []
        if asked:
            require_deim(model, ", ".join(asked))
        return ()
    returned = model.backbone.vit.returned_blocks
    if options.all_layers:
        return tuple(range(returned[-1] + 1))
    unknown = [str(layer) for layer in options.layers if layer > returned[-1]]
    if unknown:
        raise UserError(
            f"--layers {' '.join(unknown)}: the ViT runs blocks 0 to {returned[-1]}; the detector reads "
            f"{', '.join(map(str, returned))}."
        )
    return tuple(dict.fromkeys(options.layers)) or returned


@torch.no_grad()
def _fit_colours(detector: Detector, images: Sequence[SourceImage], progress: bool) -> PatchColours | None:
    """One analysis over evenly spaced patches of all images; None where no image can be read."""
    vit = require_deim(detector.model, "PCA").backbone.vit
    height, width = (side // PATCH_SIZE for side in detector.input_size_hw)
    step = max(-(-height * width * len(images) // _PCA_PATCHES), 1)
    parts = []
    for source in progress_bar(images, "features", show=progress and len(images) > 1):
        try:
            with _memory_named():
                features = vit(open_image(source.path, detector)[1])[-1][0]
        except UserError:  # named when its turn to be drawn comes
            continue
        parts.append(features.flatten(1).T[::step].float().cpu().numpy())
    return fit_patch_colours(parts) if parts else None


def _remove_figures(folder: Path) -> None:
    """An earlier call's: it may have drawn objects that this one does not."""
    for picture in folder.glob("*.png"):
        if picture.with_suffix(".pdf").exists() and picture.with_suffix(".json").exists():
            for path in folder.glob(f"{picture.stem}.*"):
                path.unlink()
