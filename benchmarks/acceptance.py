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
from analysis.curves import image_scores  # noqa: E402
from analysis.matching import match  # noqa: E402
from data.types import FloatArray  # noqa: E402
from engine.results import read_evaluation  # noqa: E402

CONFIDENCE = 0.95
RATES = (0.02, 0.05, 0.1)


def report(name: str, best: FloatArray, splits: int) -> None:
    """Print, for each promised share, the splits in which a threshold was found, and of them the mean missed share of
    the other half, how often it is more than promised, and how often that of all images is."""
    for rate in RATES:
        rows = []
        for seed in range(splits):
            order = np.random.default_rng(seed).permutation(len(best))
            fitted, judged = np.split(best[order], [len(best) // 2])
            threshold = promise(fitted, rate, CONFIDENCE).threshold
            if threshold is not None:
                other, whole = float((judged < threshold).mean()), float((best < threshold).mean())
                rows.append((other, other > rate, whole > rate))
        shares = [f"{100 * value:.1f} %" for value in np.mean(rows, axis=0)] if rows else ["-"] * 3
        print(f"| {name} | {len(best)} | {100 * rate:g} % | {len(rows)} | {' | '.join(shares)} |")


def simulate(num: int, rate: float, splits: int) -> str:
    """Share of `splits` draws of `num` defective images in which the known miss rate is more than `rate`."""
    rng = np.random.default_rng(0)
    drawn = [promise(rng.uniform(size=num), rate, CONFIDENCE).threshold for _ in range(splits)]
    made = np.array([threshold for threshold in drawn if threshold is not None])
    if not len(made):
        return "too few images"
    return f"{100 * (made > rate).mean():.1f} % (threshold {made.mean():.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--splits", type=int, default=500)
    arguments = parser.parse_args()
    truth, detections = read_evaluation(arguments.folder)
    matches = match(truth, detections)
    best, defective = image_scores(matches, truth.classes.normal_label)
    print("| defective images | number | promised | thresholds found | missed, other half | other half above ", end="")
    print(f"| promise broken |\n|{'---|' * 7}")
    report("all", best[defective], arguments.splits)
    for label, name in enumerate(matches.names):
        if label != truth.classes.normal_label:
            report(name, best[np.unique(matches.truth.images[matches.truth.labels == label])], arguments.splits)
    print(f"\nsimulated, {10 * arguments.splits} draws: promise broken (mean threshold)\n")
    print(f"| images | {' | '.join(f'{100 * rate:g} %' for rate in RATES)} |\n|{'---|' * 4}")
    for num in (60, 180, 360, 1000):
        print(f"| {num} | {' | '.join(simulate(num, rate, 10 * arguments.splits) for rate in RATES)} |")


if __name__ == "__main__":
    main()
