"""Check a data set before training: `python check_data.py -c configs/neu_det.yml --show 12`.

Exit code 0: no errors (there may be warnings); 3: errors in the data; 2: bad config or arguments.
"""

import argparse
import sys
from pathlib import Path

from data.script import Report, ScriptParser, leaving_quietly, run_script

with leaving_quietly():
    from engine import cli

_SHOWN_PER_KIND = 50


def parse_arguments() -> argparse.Namespace:
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_config_argument(parser, required=True, help_text="YAML config, e.g. configs/neu_det.yml")
    cli.add_data_argument(parser)
    cli.add_overrides_argument(parser)
    shown = "also write a picture of N training samples per stage, and the objects' sizes (PNG)"
    parser.add_argument("--show", type=int, default=0, metavar="N", help=shown)
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="folder of the pictures (default: <run folder>_samples)"
    )
    parser.add_argument("--all", action="store_true", help=f"list all problems, not {_SHOWN_PER_KIND} of each kind")
    cli.add_language_argument(parser, "the console")
    arguments = parser.parse_args()
    if arguments.show < 0:
        parser.error(f"--show {arguments.show}: expected a number of samples, 0 for none")
    return arguments


def main(report: Report) -> None:
    arguments = parse_arguments()
    with leaving_quietly():
        from engine.config import load_config
        from engine.data_check import check_data, write_training_sheets
    cli.setup_logging()
    config = load_config(arguments.config, [*cli.data_overrides(arguments.data), *arguments.update])
    # Not the run's own folder: a run that starts in one with content moves that content aside.
    folder = arguments.output_dir or config.output_dir.with_name(f"{config.output_dir.name}_samples")
    if arguments.show:
        cli.require_output_folder(folder)
    limit = None if arguments.all else _SHOWN_PER_KIND
    sys.stdout.write(check_data(config, report, limit_per_kind=limit, lang=arguments.lang) + "\n")
    sys.stdout.flush()
    if arguments.show:
        for path, text in write_training_sheets(config, folder, arguments.show, arguments.lang):
            sys.stdout.write(f"{path}: {text}\n")
            report.wrote(**{path.stem: path})


if __name__ == "__main__":
    sys.exit(run_script(main))
