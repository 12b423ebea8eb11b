"""Compare evaluated models: `python compare_models.py outputs/resnet18 outputs/deimv2_s --lang es`."""

import argparse
import sys
from pathlib import Path

from data.script import Report, ScriptParser, leaving_quietly, run_script

with leaving_quietly():
    from engine import cli


def parse_arguments() -> argparse.Namespace:
    parser = ScriptParser(description=__doc__)
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


def main(report: Report) -> int:
    arguments = parse_arguments()
    cli.setup_logging()
    cli.require_output_folder(arguments.output_dir)
    with leaving_quietly():
        from analysis.compare import compare_runs
        from analysis.compare_report import write_comparison
        from analysis.tables import say_tables

    comparison = compare_runs(arguments.runs, labels=arguments.labels, samples=arguments.samples, seed=arguments.seed)
    folder = arguments.output_dir
    markdown = write_comparison(comparison, folder, arguments.lang, captions=arguments.captions)
    sys.stdout.write(say_tables(markdown, folder, "comparison", arguments.lang, report))
    report.metrics |= comparison.values()
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
