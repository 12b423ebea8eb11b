"""Category ids of the data set <-> contiguous labels of the network <-> names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.errors import printable
from data.names import composed


def class_name(text: str) -> str:
    """Return a class name as it is compared, shown and stored: accents composed (NFC), what is no text escaped.

    Every report, table and figure shows class names, and every file format forbids something else in them.
    """
    return printable(composed(text))


@dataclass(frozen=True)
class ClassMap:
    """Label k stands for the k-th smallest category id. Stored in every checkpoint.

    COCO's own 80 ids give the official label order by the same rule.
    """

    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    """As `class_name` has them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(map(class_name, self.names)))
        if len(self.category_ids) != len(self.names):
            raise ValueError("category_ids and names differ in length")
        if list(self.category_ids) != sorted(set(self.category_ids)):
            raise ValueError("category_ids must be unique and ascending")

    @classmethod
    def from_categories(cls, categories: Sequence[Mapping[str, Any]]) -> ClassMap:
        """Read the `categories` list of a COCO file; ids may start anywhere, have gaps, be in any order."""
        ordered = sorted(categories, key=lambda category: int(category["id"]))
        return cls(tuple(int(c["id"]) for c in ordered), tuple(str(c["name"]) for c in ordered))

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ClassMap:
        """Undo `to_dict`."""
        return cls(tuple(int(i) for i in state["category_ids"]), tuple(str(n) for n in state["names"]))

    def to_dict(self) -> dict[str, list[Any]]:
        """Return plain lists, for checkpoints and JSON."""
        return {"category_ids": list(self.category_ids), "names": list(self.names)}

    def __len__(self) -> int:
        return len(self.category_ids)

    @property
    def label_of(self) -> dict[int, int]:
        """Category id -> label."""
        return {category_id: label for label, category_id in enumerate(self.category_ids)}

    @property
    def normal_label(self) -> int | None:
        """Label of the class NORMAL (in any case), which stands for "no defect"; None where there is none."""
        return next((k for k, name in enumerate(self.names) if name.strip().casefold() == "normal"), None)

    @property
    def ids(self) -> Tensor:
        """int64 [C], label -> category id, for vectorised look-ups."""
        return torch.tensor(self.category_ids, dtype=torch.int64)


_COCO_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
_UNUSED_COCO_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}

COCO_CLASSES = ClassMap(tuple(i for i in range(1, 91) if i not in _UNUSED_COCO_IDS), _COCO_NAMES)
"""COCO's 80 classes, which official checkpoints do not carry, in label order, which is that of the category ids: 1 to
90 without the ten that COCO never used."""
