"""Suggest labels: what to correct, what to label next, and labels by the network itself.

python suggest_labels.py errors -r outputs/neu_det/best.pth                        likely label errors (val)
python suggest_labels.py errors -c configs/neu_det.yml --folds 3                   the same in the training split
python suggest_labels.py errors --output-dir FOLDER --accept 1-20,25               a corrected copy of the file
python suggest_labels.py next -r outputs/neu_det/best.pth --images photos/         which images to label first
python suggest_labels.py pseudo -r outputs/neu_det/best.pth --images photos/       labels for a second training
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from data.script import Report, ScriptParser, leaving_quietly, run_script

with leaving_quietly():
    from engine import cli


def main(report: Report) -> None:
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("task", choices=("errors", "next", "pseudo"), help="what to suggest")
    add("-r", "--resume", type=Path, metavar="CKPT", help="checkpoint to suggest with, or a run folder")
    cli.add_config_argument(parser, required=False, help_text="YAML config (default: the one in the checkpoint)")
    cli.add_overrides_argument(parser)
    cli.add_device_argument(parser)
    add("--output-dir", type=Path, metavar="DIR", help="folder (default: <labels|next|pseudo>_<checkpoint> beside it)")
    add("--count", type=int, metavar="N", help="errors on the page, or next images (default: 100 errors, 50 images)")
    cli.add_language_argument(parser, "console and page")
    add = parser.add_argument_group("errors").add_argument
    add("--split", choices=("train", "val", "test"), help="annotations in doubt (default: val; of --folds: train)")
    add("--folds", type=int, metavar="K", help="train K networks, each without the part of the images that it judges")
    add("--predictions", type=Path, metavar="DIR", help="take predictions.json of this evaluation or run folder")
    what = "write corrected.json with these suggestions of --output-dir followed: 1-20,25, or a file of numbers"
    add("--accept", nargs="+", metavar="LIST", help=what)
    add = parser.add_argument_group("next, pseudo").add_argument
    add("--images", nargs="+", metavar="SOURCE", help="unlabelled images, folders, patterns")
    add("--order", choices=("information", "random"), default="information", help="of next; random is the control")
    add("--seed", type=int, default=0, help="of the random order (default: 0)")
    cli.add_detection_arguments(add, "images")
    arguments = parser.parse_args()
    cli.setup_logging()
    with leaving_quietly():
        from analysis.suggest import suggest_errors
        from deploy.suggest import suggest_images
    suggest = suggest_errors if arguments.task == "errors" else partial(suggest_images, arguments.task)
    device, given = cli.resolve_device(arguments.device), {k: v for k, v in vars(arguments).items() if v is not None}
    where = {"config_path": arguments.config, "overrides": arguments.update, "output_dir": arguments.output_dir}
    lines = suggest(arguments.resume, device, given, report, **where)
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    sys.exit(run_script(main))
