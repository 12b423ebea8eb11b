"""How long does an evaluation take once the detections are there?

    python benchmarks/evaluation.py [--images 5000] [--detections 100] [--classes 6] [--samples 1000] [--json FILE]

Simulated boxes: 0 to 7 defects an image, most of them found about three times over with scores and places that err,
the rest of the detections anywhere. 6 classes (this repository's data sets; `--classes 80` for COCO's). Timed is
what `evaluate_deimv2.py` does after inference: COCO's numbers, the analysis with 1,000 bootstrap resamples, and
results.json, predictions.json and ground_truth.json on the disk. Reading images, the gallery and report.html are not
in it; figures are timed beside it. Wall-clock time counts for the target, CPU time tells what a busy machine hides.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script: the repository is not on the path

from analysis.analyse import analyse  # noqa: E402
from analysis.bootstrap import bootstrap  # noqa: E402
from analysis.figures import write_figures  # noqa: E402
from analysis.image_level import image_level  # noqa: E402
from analysis.matching import match, overlapping  # noqa: E402
from data.classes import ClassMap  # noqa: E402
from engine.metrics import GroundTruth, Predictions, coco_numbers  # noqa: E402
from engine.results import write_results  # noqa: E402

Result = TypeVar("Result")
TARGET_SECONDS = 60.0


def simulate(num_images: int, num_detections: int, num_classes: int, seed: int = 0) -> tuple[GroundTruth, Predictions]:
    """Ground truth and detections of a middling detector."""
    rng = np.random.default_rng(seed)
    num_boxes = rng.integers(0, 8, num_images)
    owner = np.repeat(np.arange(num_images), num_boxes)
    boxes = np.concatenate([rng.uniform(0, 400, (len(owner), 2)), rng.lognormal(3.8, 0.7, (len(owner), 2))], axis=1)
    labels = rng.integers(0, num_classes, len(owner))
    annotations = [
        {"image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for image, label, box in zip((owner + 1).tolist(), (labels + 1).tolist(), boxes.tolist(), strict=True)
    ]
    classes = ClassMap(tuple(range(1, num_classes + 1)), tuple(f"class {k}" for k in range(num_classes)))
    truth = GroundTruth({number: f"{number}.png" for number in range(1, num_images + 1)}, annotations, classes)

    images = np.repeat(np.arange(num_images), num_detections)
    place = np.tile(np.arange(num_detections), num_images)
    starts = np.concatenate([[0], np.cumsum(num_boxes)[:-1]])
    near = place < 3 * num_boxes[images]
    source = (starts[images] + place // 3)[near]
    sizes = boxes[source, 2:]
    found = np.concatenate([rng.uniform(0, 400, (len(images), 2)), rng.lognormal(3.8, 0.7, (len(images), 2))], axis=1)
    found[near] = boxes[source] + rng.normal(0, 0.1, (len(source), 4)) * np.tile(sizes, 2)
    found_labels = rng.integers(0, num_classes, len(images))
    found_labels[near] = np.where(rng.random(len(source)) < 0.8, labels[source], found_labels[near])
    scores = np.where(near, rng.beta(3, 2, len(images)), rng.beta(1, 12, len(images)))
    corners = np.concatenate([found[:, :2], found[:, :2] + np.abs(found[:, 2:])], axis=1)
    return truth, Predictions.from_xyxy(images + 1, found_labels + 1, scores, corners)


class Clock:
    """Wall-clock and CPU seconds of named parts."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[float, float]] = {}

    def time(self, name: str, part: Callable[[], Result]) -> Result:
        wall, cpu = time.perf_counter(), time.process_time()
        result = part()
        self.parts[name] = (time.perf_counter() - wall, time.process_time() - cpu)
        return result

    def total(self) -> tuple[float, float]:
        return sum(wall for wall, _ in self.parts.values()), sum(cpu for _, cpu in self.parts.values())


def evaluation(truth: GroundTruth, detections: Predictions, samples: int, folder: Path) -> tuple[Clock, Clock]:
    """What an evaluation does, and what its analysis is made of."""
    clock, details = Clock(), Clock()
    numbers = clock.time("COCO's numbers", lambda: coco_numbers(truth, detections))
    analysis = clock.time("analysis", lambda: analyse(truth, detections, split="val", samples=samples, numbers=numbers))
    clock.time("files", lambda: write_results(folder, truth, detections, analysis.results))
    matches = details.time("matching", lambda: match(truth, detections))
    details.time("pairs", lambda: overlapping(matches))
    details.time("bootstrap", lambda: bootstrap(matches, samples=samples))
    details.time("image level", lambda: image_level(matches, None, samples=samples))
    details.time("(figures)", lambda: write_figures(analysis, folder / "figures", "en"))
    return clock, details


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 5000), ("detections", 100), ("classes", 6), ("samples", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    truth, detections = simulate(arguments.images, arguments.detections, arguments.classes)
    with tempfile.TemporaryDirectory() as folder:
        clock, details = evaluation(truth, detections, arguments.samples, Path(folder))
    wall, cpu = clock.total()
    lines = [
        f"{arguments.images} images, {len(truth.annotations)} boxes, {len(detections)} detections, "
        f"{arguments.classes} classes, {arguments.samples} resamples",
        f"{'':18}{'wall s':>8}{'CPU s':>8}",
        *(_line(name, *times) for name, times in clock.parts.items()),
        _line("total", wall, cpu),
        "of the analysis, and figures beside it:",
        *(_line(f"  {name}", *times) for name, times in details.parts.items()),
        f"target: <= {TARGET_SECONDS:g} s: {_verdict(wall, cpu)}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if arguments.json is not None:
        report: dict[str, Any] = {
            "setting": {key: value for key, value in vars(arguments).items() if key != "json"},
            "wall_and_cpu_s": {**clock.parts, "total": (wall, cpu)},
            "details_wall_and_cpu_s": details.parts,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if wall <= TARGET_SECONDS else 1


def _verdict(wall: float, cpu: float) -> str:
    if wall <= TARGET_SECONDS:
        return "met"
    if cpu <= TARGET_SECONDS:
        return "MISSED in wall-clock time, met in CPU time: other work held this machine"
    return "MISSED"


def _line(name: str, wall: float, cpu: float) -> str:
    return f"{name:18}{wall:8.2f}{cpu:8.2f}"


if __name__ == "__main__":
    sys.exit(main())
