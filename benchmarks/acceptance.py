"""Is the promise about misses kept? Random halves of real predictions, and simulated scores whose miss rate is known.

    python benchmarks/acceptance.py outputs/neu_small_seed0 [--splits 500]

Of a folder with predictions.json and ground_truth.json the threshold is fitted on one half of the images. The promise
is broken where more than the promised share of ALL defective images lies below it. The other half alone may have more
by luck in its own draw, even if the promise is kept: that is counted beside it. Simulated scores are uniform, so that a
threshold is its own miss rate.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script: the repository is not on the path

from analysis.acceptance import promise  # noqa: E402
from analysis.image_level import image_scores  # noqa: E402
from analysis.matching import match  # noqa: E402
from data.types import FloatArray  # noqa: E402
from engine.results import read_evaluation  # noqa: E402

CONFIDENCE = 0.95
RATES = (0.02, 0.05, 0.1)


def halves(best: FloatArray, rate: float, splits: int) -> tuple[int, FloatArray]:
    """Splits in which a threshold was found, and [made, 3]: missed share of the other half, whether it is more than
    `rate`, whether that of all images is."""
    rows = []
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(best))
        fitted, judged = best[order[: len(best) // 2]], best[order[len(best) // 2 :]]
        threshold = promise(fitted, rate, CONFIDENCE).threshold
        if threshold is not None:
            other, whole = float((judged < threshold).mean()), float((best < threshold).mean())
            rows.append((other, other > rate, whole > rate))
    return len(rows), np.array(rows, dtype=np.float64).reshape(-1, 3)


def report(name: str, best: FloatArray, splits: int) -> None:
    for rate in RATES:
        made, rows = halves(best, rate, splits)
        shares = [f"{100 * value:.1f} %" for value in rows.mean(axis=0)] if made else ["-"] * 3
        sys.stdout.write(f"| {name} | {len(best)} | {100 * rate:g} % | {made} | {' | '.join(shares)} |\n")


def simulate(num: int, rate: float, splits: int) -> str:
    """Share of `splits` draws of `num` defective images in which the known miss rate is more than `rate`."""
    rng = np.random.default_rng(0)
    found = [promise(rng.uniform(size=num), rate, CONFIDENCE).threshold for _ in range(splits)]
    made = [threshold for threshold in found if threshold is not None]
    if not made:
        return "too few images"
    broken = float(np.mean([threshold > rate for threshold in made]))
    return f"{100 * broken:.1f} % (threshold {np.mean(made):.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--splits", type=int, default=500)
    arguments = parser.parse_args()
    truth, detections = read_evaluation(arguments.folder)
    matches = match(truth, detections)
    best, defective = image_scores(matches, truth.classes.normal_label)
    heads = ("defective images", "number", "promised", "thresholds found")
    heads += ("missed, other half", "other half above", "promise broken")
    sys.stdout.write(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n")
    report("all", best[defective], arguments.splits)
    for label, name in enumerate(matches.names):
        if label != truth.classes.normal_label:
            report(name, best[np.unique(matches.truth.images[matches.truth.labels == label])], arguments.splits)
    sys.stdout.write(f"\nsimulated, {10 * arguments.splits} draws: promise broken (mean threshold)\n\n")
    sys.stdout.write(f"| images | {' | '.join(f'{100 * rate:g} %' for rate in RATES)} |\n|{'---|' * 4}\n")
    for num in (60, 180, 360, 1000):
        sys.stdout.write(f"| {num} | {' | '.join(simulate(num, rate, 10 * arguments.splits) for rate in RATES)} |\n")


if __name__ == "__main__":
    main()
