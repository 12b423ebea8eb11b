"""From a checkpoint and images to figures on disk. What `visualize_attention.py` does.

Legend: C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray

from analysis.labels import Language
from analysis.style import figure_style, save_figure
from analysis.tables import write_table
from attention.backbone_maps import PatchColours, fit_patch_colours, patches_in_box, token_at
from attention.capture import Captured, capture, require_deim
from attention.evidence import EVIDENCE_METHODS, evidence_map, resolve_layer
from attention.figures import (
    OVERVIEW_ROWS,
    DrawnView,
    Focus,
    ObjectEvidence,
    OverviewRow,
    View,
    draw_baseline,
    draw_evidence,
    draw_features,
    draw_heads,
    draw_main,
    draw_object,
    draw_overview,
    draw_queries,
    overview_row,
)
from attention.objects import PredictedObject, all_objects, choose_objects
from attention.panels import Scene, make_scene
from attention.sources import OpenedImage, SourceImage, open_image
from attention.text_evidence import has_text, text_evidence, text_view
from attention.wording import wording_of
from data.errors import UserError
from data.files import file_sha256, write_json
from data.progress import progress_bar
from engine.cli import require_output_folder
from engine.detector import Detector
from models.detector import DEIM

log = logging.getLogger(__name__)

Part = Literal["backbone", "decoder", "evidence"]
PARTS: tuple[Part, ...] = get_args(Part)

_PCA_PATCHES = 60_000
_OVERVIEW_PX = 360


@dataclass(frozen=True)
class ViewOptions:
    """What to draw of every image.

    Raises:
        UserError: A number is out of its range; all of them at once.
    """

    what: tuple[Part, ...] = PARTS
    layers: tuple[int, ...] = ()
    """ViT blocks, from 0; none: those that the detector reads."""
    all_layers: bool = False
    """Every ViT block, whatever `layers` says."""
    queries: tuple[int, ...] = ()
    """Queries to draw; none: the best objects."""
    top: int = 3
    """So many objects, where `queries` names none."""
    min_score: float = 0.3
    """Least score of these objects."""
    evidence_layer: str | None = None
    """Where class evidence is taken, see `attention.evidence.resolve_layer`; None: the default."""
    point: tuple[float, float] | None = None
    """x and y in pixels of the original image: the patch whose attention is shown; None: those of the best object."""
    lang: Language = "en"

    def __post_init__(self) -> None:
        problems = []
        if self.top < 1:
            problems.append(f"--top {self.top}: expected 1 or more")
        if not 0 <= self.min_score <= 1:
            problems.append(f"--min-score {self.min_score:g}: expected 0 to 1, e.g. 0.3")
        if self.point is not None and not all(np.isfinite(value) and value >= 0 for value in self.point):
            problems.append(f"--point {self.point[0]:g} {self.point[1]:g}: expected pixels of the image, 0 or more")
        problems += [f"--query {query}: expected 0 or more" for query in self.queries if query < 0]
        if problems:
            raise UserError("Options out of range:", problems)


@dataclass(frozen=True)
class Visualisation:
    """Outcome of `visualize`."""

    folder: Path
    num_images: int
    """Drawn."""
    num_figures: int
    left_out: tuple[str, ...]
    """One sentence an image that could not be drawn."""
    without_object: tuple[str, ...]
    """Subfolders of the images in which nothing reaches `ViewOptions.min_score`."""


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

    Each figure is a PNG, a PDF (text as text) and a JSON file that says how it was made. One image is in memory at a
    time; one that cannot be read is left out and named in the result. An image's figures are of one call.

    Args:
        detector: From `load_detector`.
        images: From `find_images`.
        folder: Created if need be; files of the same name are replaced.
        options: What to draw.
        command: Arguments of the script that would do the same, for the JSON files.
        progress: Show a bar with ETA on stderr.

    Raises:
        UserError: The options do not fit the detector, the folder cannot be written, or no image could be drawn.
    """
    require_output_folder(folder)
    layers, evidence_layer = _chosen_layers(detector, options), resolve_layer(detector.model, options.evidence_layer)
    drawer = _Drawer(detector, folder, options, tuple(command), layers, evidence_layer.name)
    if "backbone" in options.what and isinstance(detector.model, DEIM):
        drawer = replace(drawer, colours=_fit_colours(detector, images, progress), num_images=len(images))
    rows: list[OverviewRow] = []
    left_out: list[str] = []
    without_object: list[str] = []
    figures = drawn = 0
    with figure_style():
        for source in progress_bar(images, "attention", show=progress):
            try:
                with _out_of_memory_named():
                    row, count = drawer.draw(source)
            except UserError as error:
                if isinstance(error, _CannotWrite):
                    raise
                named = str(source.path) in str(error)
                left_out.append(str(error) if named else f"{source.path}: {error}")
                continue
            rows.append(row)
            without_object += [] if row.objects else [row.name]
            drawn, figures = drawn + 1, figures + count
            if len(rows) == OVERVIEW_ROWS:
                figures += drawer.write_overview(rows, (drawn - 1) // OVERVIEW_ROWS)
                rows.clear()
        if not drawn:
            raise UserError(f"None of the {len(images)} images could be drawn:", left_out[:10])
        if rows:
            figures += drawer.write_overview(rows, (drawn - 1) // OVERVIEW_ROWS)
    drawer.write_json(
        "run",
        {
            "images": [str(image.path) for image in images],
            "left_out": left_out,
            "without_object": without_object,
        },
    )
    return Visualisation(folder, drawn, figures, tuple(left_out), tuple(without_object))


class _CannotWrite(UserError):
    """The folder is full or not writable: no other image will fare better."""


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise _CannotWrite(str(error)) from error


@contextmanager
def _out_of_memory_named() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"out of memory ({str(error).splitlines()[0]}); try -d cpu, or --what decoder alone") from error


def _chosen_layers(detector: Detector, options: ViewOptions) -> tuple[int, ...]:
    """ViT blocks to draw.

    Raises:
        UserError: The detector has no such block, or none at all.
    """
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
    unknown = [str(layer) for layer in options.layers if not 0 <= layer <= returned[-1]]
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
    height, width = (side // 16 for side in detector.input_size_hw)
    step = max(-(-height * width * len(images) // _PCA_PATCHES), 1)
    parts: list[NDArray[np.float32]] = []
    for source in progress_bar(images, "features", show=progress and len(images) > 1):
        try:
            with _out_of_memory_named():
                features = vit(open_image(source, detector).network_input)[-1][0]
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


@dataclass(frozen=True)
class _Drawer:
    """What is the same for all images."""

    detector: Detector
    folder: Path
    options: ViewOptions
    command: tuple[str, ...]
    layers: tuple[int, ...]
    evidence_layer: str
    colours: PatchColours | None = None
    num_images: int = 0

    def draw(self, source: SourceImage) -> tuple[OverviewRow, int]:
        """All figures of one image; its row of the overview and how many there were."""
        opened = open_image(source, self.detector)
        scene = make_scene(opened.pixels, source.truth, self.detector.classes.names, wording_of(self.options.lang))
        facts = {"path": str(source.path), "sha256": file_sha256(source.path), "size_wh": list(opened.size_wh)}
        count = 0
        row, views = self._views(opened, scene)
        _remove_figures(self.folder / source.name)
        for view in views:
            self._write(view, self.folder / source.name, {"image": facts})
            count += 1
        small = make_scene(opened.pixels, source.truth, scene.names, scene.wording, longest_px=_OVERVIEW_PX)
        return replace(row, scene=small), count

    def _views(self, opened: OpenedImage, scene: Scene) -> tuple[OverviewRow, Iterator[DrawnView]]:
        """The row of the overview, and the figures one after the other."""
        model, image, options = self.detector.model, opened.network_input, self.options
        if not isinstance(model, DEIM):
            with torch.no_grad():
                found = all_objects(model(image))
            objects = self._choose(found)
            evidence = self._evidence(image, objects)
            best = evidence[0].maps["grad_cam"] if evidence else None
            best = None if best is None else best / max(float(best.max()), 1e-12)
            row = OverviewRow(scene, objects, None, (), best, opened.source.name)
            return row, self._baseline_views(row, evidence)
        captured = capture(model, image)
        found = all_objects(captured.outputs)
        objects = self._choose(found)
        focus = self._focus(opened, objects, captured, scene)
        view = View(scene, captured, found, objects, focus, self.layers)
        return overview_row(view, opened.source.name), self._deim_views(view, image, options.what)

    def _choose(self, found: Sequence[PredictedObject]) -> list[PredictedObject]:
        options = self.options
        return choose_objects(found, queries=options.queries, top=options.top, min_score=options.min_score)

    def _deim_views(self, view: View, image: torch.Tensor, what: Sequence[Part]) -> Iterator[DrawnView]:
        yield draw_main(view)
        if "backbone" in what:
            yield from draw_heads(view, from_class_token=True)
            yield from draw_heads(view, from_class_token=False)
            if self.colours is not None:
                yield draw_features(view, self.colours, self.num_images)
        if "decoder" in what and view.objects:
            yield draw_queries(view)
            for one in view.objects:
                yield draw_object(view, one)
        if "evidence" in what and view.objects:
            evidence, scene = self._evidence(image, view.objects), view.scene
            yield draw_evidence(scene, evidence, self.evidence_layer, scene.wording.query)
            if has_text(self.detector.model):
                parts = text_evidence(self.detector.model, image, view.objects)
                yield text_view(parts, self.detector.classes.names, self.options.lang)

    def _baseline_views(self, row: OverviewRow, evidence: Sequence[ObjectEvidence]) -> Iterator[DrawnView]:
        yield draw_baseline(row)
        if evidence:
            yield draw_evidence(row.scene, evidence, self.evidence_layer, row.scene.wording.detection)

    def _evidence(self, image: torch.Tensor, objects: Sequence[PredictedObject]) -> list[ObjectEvidence]:
        model, layer = self.detector.model, self.evidence_layer
        made = []
        for one in objects:
            maps: dict[str, NDArray[np.float32]] = {
                method: evidence_map(model, image, one.query, one.label, method, layer).numpy()
                for method in EVIDENCE_METHODS
            }
            made.append(ObjectEvidence(one, maps))
        return made

    def _focus(
        self, opened: OpenedImage, objects: Sequence[PredictedObject], captured: Captured, scene: Scene
    ) -> Focus:
        """Whose attention is shown: the given point's patch, else the best object's patches, else the middle.

        Raises:
            UserError: The point lies outside the image.
        """
        wording, grid = scene.wording, captured.grid_hw
        if self.options.point is not None:
            (x, y), (width, height) = self.options.point, opened.size_wh
            if x >= width or y >= height:
                raise UserError(f"--point {x:g} {y:g} lies outside the image, which has {width} x {height} pixels.")
            place = (x / width, y / height)
            text = wording.focus_point.format(x=wording.labels.number(x, 0), y=wording.labels.number(y, 0))
            return Focus((token_at(place, grid),), place, text)
        if objects:
            best = objects[0]
            left, top, right, bottom = best.box_xyxy
            name, score = scene.name(best.label), scene.score(best.score)
            text = wording.focus_object.format(query=best.query, name=name, score=score)
            return Focus(tuple(patches_in_box(best.box_xyxy, grid)), ((left + right) / 2, (top + bottom) / 2), text)
        return Focus((token_at((0.5, 0.5), grid),), (0.5, 0.5), wording.focus_centre)

    def write_overview(self, rows: Sequence[OverviewRow], page: int) -> int:
        """One page; returns the number of figures."""
        self._write(draw_overview(rows, page, wording_of(self.options.lang)), self.folder, {})
        return 1

    def _write(self, view: DrawnView, folder: Path, facts: dict[str, Any]) -> None:
        with _writing():
            save_figure(view.figure, folder, view.name)
            if view.table is not None:
                write_table(view.table, folder / view.name, self.options.lang)
        content = {"figure": view.name, "caption": view.caption, **facts, "drawn": dict(view.facts)}
        self.write_json(str((folder / view.name).relative_to(self.folder)), content)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """`name`.json: `content` and all that is needed to make it again."""
        detector = self.detector
        made_from = {
            "checkpoint": {"path": str(detector.path), "sha256": detector.sha256},
            "network_input_hw": list(detector.input_size_hw),
            "settings": asdict(self.options),
            "command": list(self.command),
            "versions": {"torch": torch.__version__, "matplotlib": matplotlib.__version__},
        }
        with _writing():
            write_json(self.folder / f"{name}.json", content | made_from, what="figure's settings", indent=2)
