"""Does text help? Trains modes of text fusion with several seeds from one phase 1 checkpoint and compares them.

`python ablate_text.py -c configs/neu_det_small_multimodal.yml -r outputs/neu_det_small/best.pth`: the same command goes
on after an interruption and skips what is finished.
"""

import argparse
import sys
from pathlib import Path

from data.script import Report, ScriptParser, leaving_quietly, run_script

with leaving_quietly():
    from engine import cli

MODES = ("cosine", "concat", "cross_attention", "learned", "random", "shuffled", "waffle", "none")


def parse_arguments() -> argparse.Namespace:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    cli.add_config_argument(parser, required=True, help_text="YAML config of phase 2, a *_multimodal.yml")
    add("-r", "--resume", type=Path, metavar="PHASE1", help="phase 1 checkpoint or run; not with parts of the data")
    what = f"of {', '.join(MODES)} (default: all); verdicts need none, and learned to tell texts from parameters"
    add("--modes", nargs="+", default=list(MODES), metavar="MODE", help=what)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="seeds of every mode (default: 0 1 2)")
    add("--fractions", nargs="+", type=float, metavar="F", help="train on shares of the images, such as 0.1 0.25 1")
    add("--rare", nargs="+", metavar="CLASS=N", help="train with N images of a class, and judge it")
    add("--held-out", nargs="+", metavar="CLASS", help="train without a class, and judge it by its text alone")
    add("--output-dir", type=Path, metavar="DIR", help="of runs and tables (default: outputs/<config name>_ablation)")
    cli.add_language_argument(parser, "console, tables and figure")
    cli.add_caption_argument(parser)
    add("--samples", type=int, default=1000, metavar="N", help="bootstrap resamples (default: 1000)")
    add("--margin", type=float, default=0.005, metavar="AP", help="of the equivalence test (default: 0.005)")
    cli.add_overrides_argument(parser)
    cli.add_device_argument(parser)
    return parser.parse_args()


def main(report: Report) -> None:
    arguments = parse_arguments()
    arguments.output_dir = arguments.output_dir or Path("outputs") / f"{arguments.config.stem}_ablation"
    cli.setup_logging()
    with leaving_quietly():
        from analysis.ablate import ablate
        from analysis.tables import say_tables
        from engine.distributed import cleanup, init_distributed
    dist = init_distributed(arguments.device)
    cli.setup_logging(is_main=dist.is_main)
    try:
        markdown = ablate(vars(arguments), dist)
    finally:
        cleanup()
    if markdown is not None:
        of_parts = arguments.fractions or arguments.rare or arguments.held_out
        tables = "labels" if of_parts else "ablation"
        sys.stdout.write(say_tables(markdown, arguments.output_dir, tables, arguments.lang, report))


if __name__ == "__main__":
    sys.exit(run_script(main))
