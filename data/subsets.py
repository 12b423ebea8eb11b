"""Parts of a training set, to ask what labels are worth: a fraction of it, few images of one class, none of a class.

Smaller parts lie within larger ones of the same seed, so that a curve over them only ever adds images.

Legend: I images, L kinds (classes, and "no boxes").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from data.coco import CocoSplit
from data.types import BoolArray, IntArray


@dataclass(frozen=True)
class Subset:
    """What is kept of a training set."""

    fraction: float = 1.0
    """Of all images, every class in proportion."""
    rare: tuple[str, int] | None = None
    """A class and the number of images kept with it; all images without it stay."""
    held_out: str | None = None
    """A class all of whose images are left out."""

    @property
    def judged_class(self) -> str | None:
        """The class that the question is about; None: all of them."""
        return self.rare[0] if self.rare is not None else self.held_out

    @property
    def name(self) -> str:
        """As a folder may be called."""
        if self.rare is not None:
            return f"rare_{_file_name(self.rare[0])}_{self.rare[1]}"
        return f"fraction_{self.fraction:g}" if self.held_out is None else f"held_out_{_file_name(self.held_out)}"

    def problems(self, split: CocoSplit) -> list[str]:
        """Say why there is no such part of `split`."""
        option = "--rare" if self.rare is not None else "--held-out"
        if self.judged_class is None:
            return []
        names = split.classes.names
        if self.judged_class not in names:
            return [f"{option} {self.judged_class}: no class of the data set; the classes are {', '.join(names)}"]
        holding = kinds_held(split)[:, names.index(self.judged_class)]
        if self.rare is not None and self.rare[1] > holding.sum():
            return [f"--rare {self.rare[0]}={self.rare[1]}: only {holding.sum()} training images hold the class"]
        if self.held_out is not None and not kinds_held(split)[~holding, :-1].any():
            return [f"--held-out {self.held_out}: no training image with another class would be left"]
        return []

    def of(self, split: CocoSplit, seed: int) -> CocoSplit:
        """Return the part; `seed` chooses the images."""
        if self.judged_class is None:
            count = max(1, round(self.fraction * len(split)))
            gone = stratified_order(kinds_held(split), seed)[count:]
        else:
            holding = np.flatnonzero(kinds_held(split)[:, split.classes.names.index(self.judged_class)])
            gone = np.random.default_rng(seed).permutation(holding)[self.rare[1] if self.rare is not None else 0 :]
        return split.without_images({split.images[index].id for index in gone.tolist()})


def stratified_order(holds: BoolArray, seed: int) -> IntArray:
    """Order images so that every beginning of the order holds every kind in about its share of the whole.

    Each place goes to an image of the kind that lags most behind its share among those that have images left. Every
    image holds a kind ([I, L]); the seed chooses among equally good orders. Returns the indices of all images, [I].
    """
    drawn = np.random.default_rng(seed).permutation(len(holds))
    queues = [[int(i) for i in drawn[::-1] if holds[i, kind]] for kind in range(holds.shape[1])]
    shares, counts = holds.mean(axis=0), np.zeros(holds.shape[1])
    order: list[int] = []
    taken: set[int] = set()
    while len(order) < len(holds):
        for queue in queues:
            while queue and queue[-1] in taken:
                queue.pop()
        lag = np.where([bool(queue) for queue in queues], (len(order) + 1) * shares - counts, -np.inf)
        index = queues[int(lag.argmax())].pop()
        order.append(index)
        taken.add(index)
        counts += holds[index]
    return np.array(order, dtype=np.int64)


def kinds_held(split: CocoSplit) -> BoolArray:
    """Return [I, C + 1] whether an image has a box of the class, crowd boxes too; last: it has none at all."""
    holds = np.zeros((len(split), len(split.classes) + 1), dtype=bool)
    for index, image in enumerate(split.images):
        holds[index, split.labels[image.rows]] = True
        holds[index, -1] = image.rows.start == image.rows.stop
    return holds


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)
