"""Annotations of other tools to COCO, and one set into splits.

    python -m data.convert voc SRC DST        Pascal VOC (XML)
    python -m data.convert yolo SRC DST       YOLO (text files)
    python -m data.convert txt SRC DST --format "x1 y1 x2 y2 class"   other text files
    python -m data.convert labelme SRC DST    labelme (JSON)
    python -m data.convert coco SRC DST       COCO of other tools (JSON), repaired
    python -m data.convert split SRC.json --train 0.7 --val 0.15 --test 0.15
    python -m data.convert split SRC.json --folds 5    for a few hundred images: each validates once

DST is a new folder: `annotations/instances.json` (one for each of train, val, test where SRC has them) and `images/`.
Nothing that exists is changed. Exit code 0: done; 2: bad data, all faults listed and nothing written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.script import Report, ScriptParser, run_script

_SHOWN_PER_KIND = 10
_FORMATS = {
    "voc": "Pascal VOC",
    "yolo": "YOLO",
    "txt": "text files, a box a line",
    "labelme": "labelme",
    "coco": "COCO of other tools",
}
_PARTS = {"train": 0.7, "val": 0.15, "test": 0.15}
_ORIGIN = (
    "1: pixels counted from 1, both ends inside (VOC's own rule); 0: corners as they stand; auto: 0 if a box begins at "
    "0 or corners have fractions, else 1"
)
_FORMAT = (
    "fields of a line with what stands between them: x1 y1 x2 y2 | x y w h | cx cy w h, class (name or number), score "
    "(dropped), - (passed over); blanks, commas, semicolons or \\t"
)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = ScriptParser(prog="python -m data.convert", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in _FORMATS.items():
        add = commands.add_parser(name, help=f"{what} to COCO").add_argument
        add("source", type=Path, metavar="SRC", help="folder with images and annotations")
        add("target", type=Path, metavar="DST", help="new folder")
        stay = "leave the images where they are (default: copy them to DST/images)"
        add("--reference", action="store_true", help=stay)
        add("--classes", type=Path, metavar="FILE", help="classes in the order of their ids: data.yaml, or one a line")
        if name == "voc":
            add("--origin", choices=("auto", "0", "1"), default="auto", help=_ORIGIN)
            add("--skip-difficult", action="store_true", help="leave out objects marked difficult")
        if name == "txt":
            add("--format", required=True, metavar="FIELDS", help=_FORMAT)
            what = "of the numbers: pixels (default), or fractions of the image's sides"
            add("--units", choices=("pixels", "fractions"), default="pixels", help=what)
            what = "the first class's, where classes are numbers and --classes names them (default: 0)"
            add("--first-class", type=int, default=0, metavar="N", help=what)
            what = "what names of images have behind those of their text files, as _test"
            add("--image-ending", default="", metavar="TEXT", help=what)
    add = commands.add_parser("split", help="one COCO file into train, val and test").add_argument
    add("source", type=Path, metavar="SRC.json", help="COCO annotation file")
    for name, part in _PARTS.items():
        add(f"--{name}", type=float, metavar="F", help=f"part of the images (default: {part})")
    what = "instead: K equal parts, each of which validates a training on the others"
    add("--folds", type=int, metavar="K", help=what)
    add("--seed", type=int, default=0, help="which of equally good divisions (default: 0)")
    add("--images", type=Path, metavar="DIR", help="image folder (default: images beside SRC.json)")
    add("--output-dir", type=Path, metavar="DIR", help="folder of the new files (default: SRC.json's)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    return run_script(partial(_run, arguments))


def _run(arguments: Sequence[str] | None, report: Report) -> None:
    options = parse_arguments(arguments)
    from data.problems import problem_lines

    try:
        lines, warnings = (_split if options.command == "split" else _convert)(options, report)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}). Correct its permissions.") from error
    found = problem_lines(warnings, _SHOWN_PER_KIND)
    report.warnings += found
    lines += [f"warning: {line}" for line in found]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _convert(options: argparse.Namespace, report: Report) -> tuple[list[str], Sequence[Any]]:
    from data.convert.coco import read_coco
    from data.convert.common import write_coco
    from data.convert.labelme import read_labelme
    from data.convert.txt import read_txt
    from data.convert.voc import read_voc
    from data.convert.yolo import read_yolo
    from data.convert.yolo_config import read_class_file

    readers = {"voc": read_voc, "yolo": read_yolo, "txt": read_txt, "labelme": read_labelme, "coco": read_coco}
    common = ("command", "source", "target", "reference", "classes", "json")
    own = {key: value for key, value in vars(options).items() if key not in common}
    names = None if options.classes is None else read_class_file(options.classes)
    gathered = readers[options.command](options.source, class_names=names, **own)  # type: ignore[operator]
    converted = write_coco(gathered, options.target, copy_images=not options.reference)
    report.wrote(images=converted.img_folder, **{path.stem: path for path in converted.ann_files})
    report.metrics |= {"images": converted.num_images, "boxes": converted.num_boxes}
    ids = ", ".join(f"{number}={name}" for number, name in enumerate(converted.class_names, start=1))
    lines = [
        f"{converted.num_images} images, {converted.num_boxes} boxes; classes: {ids}",
        *(f"ann_file: {path.as_posix()}" for path in converted.ann_files),
        f"img_folder: {converted.img_folder.as_posix()}",
        *converted.notes,
    ]
    return lines, converted.warnings


def _split(options: argparse.Namespace, report: Report) -> tuple[list[str], Sequence[Any]]:
    from data.convert.split import split_set

    given = {name: value for name in _PARTS if (value := getattr(options, name)) is not None}
    return split_set(
        options.source,
        given if options.folds is not None else _PARTS | given,
        folds=options.folds,
        img_folder=options.images,
        output_dir=options.output_dir,
        seed=options.seed,
        report=report,
    )


if __name__ == "__main__":
    sys.exit(main())
