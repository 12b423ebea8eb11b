"""Adapt the ViT to your images without labels: `python adapt_backbone.py -c configs/neu_det.yml --images photos/`.

It learns to name the image that an augmented view is of (DIET). The result is a weight file for training:
`-u DINOv3STAs.weights_path=FOLDER/backbone.pt`. Started again with the same folder, it goes on where it was stopped.
"""

import argparse
import sys
from pathlib import Path

from data.script import Report, ScriptParser, leaving_quietly, run_script

with leaving_quietly():
    from engine import cli


def main(report: Report) -> None:
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    what = "YAML config: the ViT, the weights to begin with, the image size"
    cli.add_config_argument(parser, required=True, help_text=what)
    add("--images", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders with images; no labels needed")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, metavar="N", help="how long (default: 10)")
    length.add_argument("--epochs", type=int, metavar="N", help="how long, instead of --minutes")
    add("--batch-size", type=int, default=32, metavar="N", help="images of a step, over all processes (default: 32)")
    cli.add_overrides_argument(parser)
    cli.add_device_argument(parser)
    add("--use-amp", action="store_true", help="mixed precision on a GPU (default: float32)")
    add("--seed", type=int, default=0, help="seed of order and augmentation (default: 0)")
    add("--output-dir", type=Path, metavar="DIR", help="folder (default: <run folder>_backbone)")
    cli.add_language_argument(parser, "the console")
    arguments = parser.parse_args()
    cli.setup_logging()
    with leaving_quietly():
        from engine.adapt import adapt
        from engine.distributed import cleanup, init_distributed
    given, dist = {k: v for k, v in vars(arguments).items() if v is not None}, init_distributed(arguments.device)
    cli.setup_logging(is_main=dist.is_main)
    try:
        where = {"overrides": arguments.update, "output_dir": arguments.output_dir}
        lines = adapt(arguments.config, dist, given, report, **where)
    finally:
        cleanup()
    if dist.is_main:
        sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    sys.exit(run_script(main))
