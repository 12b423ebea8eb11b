"""Compare evaluated models: `python compare_models.py outputs/resnet18 outputs/deimv2_s --lang es`."""

import argparse
import sys
from pathlib import Path

from data.signals import leaving_quietly

with leaving_quietly():
    from engine import cli


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    what = "run folder, or folder of an evaluation; the others are compared with the first. Runs of one config with "
    what += "different seeds become one row"
    add("runs", nargs="+", type=Path, metavar="RUN", help=what)
    what = "one per RUN (runs with the same label become one row), or one per row"
    add("--labels", nargs="+", default=[], metavar="LABEL", help=what)
    folder, what = Path("outputs/comparison"), "folder of the tables and plots (default: outputs/comparison)"
    add("--output-dir", type=Path, default=folder, metavar="DIR", help=what)
    cli.add_language_argument(parser, "console, tables and plots")
    cli.add_caption_argument(parser)
    add("--samples", type=int, default=1000, metavar="N", help="bootstrap resamples (default: 1000)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the bootstrap (default: 0)")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    cli.setup_logging()
    cli.require_output_folder(arguments.output_dir)
    with leaving_quietly():
        from analysis.compare import compare_runs
        from analysis.compare_report import write_comparison

    comparison = compare_runs(arguments.runs, labels=arguments.labels, samples=arguments.samples, seed=arguments.seed)
    markdown = write_comparison(comparison, arguments.output_dir, arguments.lang, captions=arguments.captions)
    table = f"\\input{{{(arguments.output_dir / 'comparison.tex').as_posix()}}}"
    sys.stdout.write(f"{markdown}\n{cli.ending(arguments.lang, arguments.output_dir, table)}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
