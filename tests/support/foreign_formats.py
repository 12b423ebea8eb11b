"""COCO content -> Pascal VOC, YOLO and labelme, for round trips of the converters."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from tests.support.coco_files import CocoFiles


def _by_image(files: CocoFiles) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    boxes: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in files.content["annotations"]:
        boxes[entry["image_id"]].append(entry)
    return [(image, boxes[image["id"]]) for image in files.content["images"]]


def _names(files: CocoFiles) -> dict[int, str]:
    return {one["id"]: one["name"] for one in files.content["categories"]}


def write_voc(files: CocoFiles, root: Path) -> Path:
    """Inclusive corners counted from 1."""
    shutil.copytree(files.img_folder, root / "JPEGImages")
    (root / "Annotations").mkdir()
    for image, boxes in _by_image(files):
        objects = "".join(
            f"<object><name>{escape(_names(files)[one['category_id']])}</name><bndbox><xmin>{x + 1}</xmin>"
            f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for one in boxes
            for x, y, w, h in [one["bbox"]]
        )
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
        text = f"<annotation><filename>{escape(image['file_name'])}</filename>{size}{objects}</annotation>"
        (root / "Annotations" / f"{Path(image['file_name']).stem}.xml").write_text(text, encoding="utf-8")
    return root


def write_yolo(files: CocoFiles, root: Path) -> Path:
    """Six decimals, no text file for images without boxes."""
    shutil.copytree(files.img_folder, root / "images")
    (root / "labels").mkdir()
    order = sorted(_names(files))
    (root / "data.yaml").write_text(json.dumps({"names": [_names(files)[key] for key in order]}), encoding="utf-8")
    for image, boxes in _by_image(files):
        scale_x, scale_y = image["width"], image["height"]
        lines = [
            f"{order.index(one['category_id'])} {(x + w / 2) / scale_x:.6f} {(y + h / 2) / scale_y:.6f} "
            f"{w / scale_x:.6f} {h / scale_y:.6f}\n"
            for one in boxes
            for x, y, w, h in [one["bbox"]]
        ]
        if lines:
            path = root / "labels" / f"{Path(image['file_name']).stem}.txt"
            path.write_text("".join(lines), encoding="utf-8")
    return root


def write_labelme(files: CocoFiles, root: Path) -> Path:
    """Rectangles by any two opposite corners, and polygons, in turn; paths as Windows writes them."""
    shutil.copytree(files.img_folder, root / "pictures")
    (root / "json").mkdir()
    for image, boxes in _by_image(files):
        shapes = []
        for number, one in enumerate(boxes):
            x, y, w, h = one["bbox"]
            polygon = [[x, y + h / 2], [x + w / 2, y], [x + w, y + h / 2], [x + w / 2, y + h]]
            shape = {"label": _names(files)[one["category_id"]], "shape_type": "rectangle"}
            shape["points"] = [[x + w, y], [x, y + h]]
            if number % 2:
                shape |= {"shape_type": "polygon", "points": polygon}
            shapes.append(shape)
        content = {
            "shapes": shapes,
            "imagePath": f"..\\pictures\\{image['file_name']}",
            "imageData": None,
            "imageWidth": image["width"],
            "imageHeight": image["height"],
        }
        path = root / "json" / f"{Path(image['file_name']).stem}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
    return root


def write_tree(root: Path, images: str, files: dict[str, str]) -> Path:
    """A set as a tool exports it.

    Args:
        root: The new folder.
        images: Names of pictures of 100 x 50 pixels, with spaces between.
        files: Name -> text.
    """
    for number, name in enumerate(images.split()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (50, 100, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root
