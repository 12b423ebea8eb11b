"""Large images with real small defects: NEU-DET's pictures, 4 x 4 of one split on one canvas of 800 x 800 pixels.

`python -m tests.support.neu_mosaics $NEU_DET_ROOT datasets/neu_mosaics`; then NEU_DET_ROOT=datasets/neu_mosaics.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.images import decode_image

PER_SIDE = 4


def make_mosaics(source: Path, target: Path, *, seed: int = 0, per_side: int = PER_SIDE) -> None:
    """Write mosaics of both splits in NEU-DET's own layout; pictures that fill no mosaic are left out."""
    (target / "annotations").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        coco = json.loads((source / "annotations" / f"instances_{split}.json").read_text(encoding="utf-8"))
        order = np.random.default_rng([seed, len(coco["images"])]).permutation(len(coco["images"])).tolist()
        per_mosaic = per_side**2
        folder = target / "images" / split
        folder.mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(len(order) // per_mosaic):
            parts = [coco["images"][index] for index in order[number * per_mosaic : (number + 1) * per_mosaic]]
            side = parts[0]["width"]
            canvas = np.zeros((per_side * side, per_side * side, 3), np.uint8)
            for place, part in enumerate(parts):
                left, top = place % per_side * side, place // per_side * side
                canvas[top : top + side, left : left + side] = decode_image(
                    source / "images" / split / part["file_name"]
                )
                own = [one for one in coco["annotations"] if one["image_id"] == part["id"]]
                for one in own:
                    x, y, width, height = one["bbox"]
                    place_in_it = {"id": len(annotations) + 1, "image_id": number + 1}
                    annotations.append(one | place_in_it | {"bbox": [x + left, y + top, width, height]})
            name = f"mosaic_{number + 1:03}.jpg"
            Image.fromarray(canvas).save(folder / name, quality=95)
            size = {"width": canvas.shape[1], "height": canvas.shape[0]}
            images.append({"id": number + 1, "file_name": name} | size)
        content = {"images": images, "annotations": annotations, "categories": coco["categories"]}
        (target / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    make_mosaics(Path(sys.argv[1]), Path(sys.argv[2]))
