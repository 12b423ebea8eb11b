"""Annotations of other tools to COCO, and one set into splits.

    python -m data.convert voc SRC DST        Pascal VOC (XML)
    python -m data.convert yolo SRC DST       YOLO (text files)
    python -m data.convert labelme SRC DST    labelme (JSON)
    python -m data.convert coco SRC DST       COCO of other tools (JSON), repaired
    python -m data.convert split SRC.json --train 0.7 --val 0.15 --test 0.15

DST is a new folder: `annotations/instances.json` (one for each of train, val, test where SRC has them) and `images/`.
Nothing that exists is changed. Exit code 0: done; 2: bad data, all faults listed and nothing written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.convert.coco import read_coco
from data.convert.common import Converted, Gathered, write_coco
from data.convert.labelme import read_labelme
from data.convert.split import SplitResult, split_set
from data.convert.voc import read_voc
from data.convert.yolo import read_yolo
from data.convert.yolo_config import read_class_file
from data.errors import UserError
from data.problems import Problem, problem_lines

_SHOWN_PER_KIND = 10


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("voc", "Pascal VOC"),
        ("yolo", "YOLO"),
        ("labelme", "labelme"),
        ("coco", "COCO of other tools"),
    ):
        command = commands.add_parser(name, help=f"{what} to COCO")
        command.add_argument("source", type=Path, metavar="SRC", help="folder with images and annotations")
        command.add_argument("target", type=Path, metavar="DST", help="new folder")
        command.add_argument(
            "--reference",
            action="store_true",
            help="leave the images where they are (default: copy them to DST/images)",
        )
        command.add_argument(
            "--classes", type=Path, metavar="FILE", help="classes in the order of their ids: data.yaml, or one a line"
        )
        if name == "voc":
            command.add_argument(
                "--origin",
                choices=("auto", "0", "1"),
                default="auto",
                help="1: pixels counted from 1, both ends inside (VOC's own rule); 0: corners as they stand; "
                "auto: 0 if a box begins at 0 or corners have fractions, else 1",
            )
            command.add_argument("--skip-difficult", action="store_true", help="leave out objects marked difficult")
    split = commands.add_parser("split", help="one COCO file into train, val and test")
    split.add_argument("source", type=Path, metavar="SRC.json", help="COCO annotation file")
    for name, part in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        split.add_argument(
            f"--{name}", type=float, default=part, metavar="F", help=f"part of the images (default: {part})"
        )
    split.add_argument("--seed", type=int, default=0, help="which of equally good divisions (default: 0)")
    split.add_argument("--images", type=Path, metavar="DIR", help="image folder (default: images beside SRC.json)")
    split.add_argument("--output-dir", type=Path, metavar="DIR", help="folder of the new files (default: SRC.json's)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = parse_arguments(arguments)
    try:
        if options.command == "split":
            parts = {"train": options.train, "val": options.val, "test": options.test}
            result = split_set(
                options.source, parts, img_folder=options.images, output_dir=options.output_dir, seed=options.seed
            )
            sys.stdout.write(_describe_split(result))
        else:
            converted = write_coco(_read(options), options.target, copy_images=not options.reference)
            sys.stdout.write(_describe(converted))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"error: {error.filename}: cannot be read ({error.strerror}). Correct its permissions.\n")
        return 2
    return 0


def _read(options: argparse.Namespace) -> Gathered:
    names = None if options.classes is None else read_class_file(options.classes)
    if options.command == "voc":
        return read_voc(options.source, class_names=names, origin=options.origin, skip_difficult=options.skip_difficult)
    readers = {"yolo": read_yolo, "labelme": read_labelme, "coco": read_coco}
    return readers[options.command](options.source, class_names=names)


def _describe(converted: Converted) -> str:
    ids = ", ".join(f"{number}={name}" for number, name in enumerate(converted.class_names, start=1))
    lines = [
        f"{converted.num_images} images, {converted.num_boxes} boxes; classes: {ids}",
        *(f"ann_file: {path.as_posix()}" for path in converted.ann_files),
        f"img_folder: {converted.img_folder.as_posix()}",
        *converted.notes,
        *_warning_lines(converted.warnings),
    ]
    return "".join(f"{line}\n" for line in lines)


def _describe_split(result: SplitResult) -> str:
    lines = []
    for name, path in result.ann_files.items():
        pairs = zip(result.class_names, result.boxes_per_class[name], strict=True)
        boxes = ", ".join(f"{label} {count}" for label, count in pairs)
        lines.append(f"{name}: {result.num_images[name]} images; boxes: {boxes}; {path.as_posix()}")
    if result.num_groups:
        size = f"up to {result.largest_group} images"
        lines.append(f"{result.num_groups} groups of images that look alike ({size}) stayed together")
    lines.append(f"img_folder: {result.img_folder.as_posix()}")
    return "".join(f"{line}\n" for line in [*lines, *_warning_lines(result.warnings)])


def _warning_lines(warnings: Sequence[Problem]) -> list[str]:
    return [f"warning: {line}" for line in problem_lines(warnings, _SHOWN_PER_KIND)]


if __name__ == "__main__":
    sys.exit(main())
