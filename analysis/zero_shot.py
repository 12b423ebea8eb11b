"""What the texts say alone: every annotated box is cut out, and the class whose text is nearest to the picture wins.

Nothing is trained and no detector takes part. It needs an encoder of texts and images, such as CLIP or SigLIP.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from analysis.bootstrap import Z95, Interval
from data.coco import CocoSplit
from data.images import decode_image
from data.progress import progress_bar
from data.types import BoolArray, IntArray, PixelArray
from engine.metrics import unique_names
from models.config import TextEncoderConfig
from models.text_encoder import TextEmbeddings, encode_images


@dataclass(frozen=True)
class Accuracy:
    """Boxes whose nearest text is that of their class."""

    boxes: int
    images: int
    """With at least one of these boxes."""
    correct: int
    value: float | None
    """None without boxes."""
    interval: Interval | None
    """95 %, Wilson's, with images for sample size: boxes of one image are not independent."""


@dataclass(frozen=True)
class ZeroShot:
    """Text-only scores of one split."""

    overall: Accuracy
    mean_of_classes: float | None
    """Over the classes with boxes; guessing gives 1 / C."""
    per_class: dict[str, Accuracy]
    largest_class_share: float | None
    """What naming the most frequent class every time would give as `overall`."""


def zero_shot(texts: TextEmbeddings, encoder: TextEncoderConfig, split: CocoSplit) -> ZeroShot | None:
    """Classify the cropped boxes of `split` by their nearest class text; None if it has no boxes.

    Crowd boxes are left out.

    Raises:
        UserError: The encoder is not to be had or encodes text only, or an image cannot be read.
    """
    rows = np.flatnonzero(~split.crowd)
    if not len(rows):
        return None
    bar = progress_bar(_crops(split), "zero-shot boxes", unit="box", total=len(rows))
    vectors = encode_images(bar, encoder)
    return score((vectors @ texts.class_vectors().T).argmax(dim=1).numpy(), split)


def score(predicted: IntArray, split: CocoSplit) -> ZeroShot:
    """Return the accuracy of labels [N], one for each box of `split` that is not a crowd, in the split's order."""
    kept = ~split.crowd
    truth, correct = split.labels[kept], predicted == split.labels[kept]
    images = np.repeat(range(len(split)), [len(split.training_rows(image)) for image in split.images])
    of_classes = {name: truth == label for label, name in enumerate(unique_names(split.classes))}
    per_class = {name: _accuracy(correct[own], images[own]) for name, own in of_classes.items()}
    known = [one.value for one in per_class.values() if one.value is not None]
    return ZeroShot(
        overall=_accuracy(correct, images),
        mean_of_classes=sum(known) / len(known) if known else None,
        per_class=per_class,
        largest_class_share=float(np.bincount(truth).max() / len(truth)) if len(truth) else None,
    )


def wilson(share: float, size: int) -> Interval:
    """Return the 95 % interval of a share of `size` independent cases (Wilson, JASA 22, 1927)."""
    centre = share + Z95**2 / (2 * size)
    half = Z95 * math.sqrt(share * (1 - share) / size + Z95**2 / (4 * size**2))
    scale = 1 + Z95**2 / size
    return Interval(max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0))


def _accuracy(correct: BoolArray, images: IntArray) -> Accuracy:
    boxes, found, num_images = len(correct), int(correct.sum()), len(np.unique(images))
    if not boxes:
        return Accuracy(0, 0, 0, None, None)
    return Accuracy(boxes, num_images, found, found / boxes, wilson(found / boxes, num_images))


def _crops(split: CocoSplit) -> Iterator[PixelArray]:
    """The boxes that are not crowds, in the split's order, each in the middle of a square."""
    for image in split.images:
        rows = split.training_rows(image)
        if not len(rows):
            continue
        pixels = decode_image(image.path)
        height, width = pixels.shape[:2]
        for left, top, right, bottom in split.boxes_xyxy[rows].astype(float).tolist():
            x, y = min(int(left), width - 1), min(int(top), height - 1)
            yield squared(pixels[y : max(math.ceil(bottom), y + 1), x : max(math.ceil(right), x + 1)])


def squared(crop: PixelArray) -> PixelArray:
    """Put a crop [height, width, 3] in the middle of a square of its mean colour.

    CLIP's preprocessing keeps the middle square of a picture: of a scratch it would show a twentieth.
    """
    height, width = crop.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = crop.mean(axis=(0, 1)).round().astype(np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = crop
    return square
