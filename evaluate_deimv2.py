"""Evaluate a checkpoint: `python evaluate_deimv2.py -r outputs/neu_det/best.pth`."""

import sys
from pathlib import Path

from data.script import Report, leaving_quietly, run_script

with leaving_quietly():
    from engine import cli


def main(report: Report) -> int:
    parser = cli.checkpoint_parser(__doc__, "evaluate")
    cli.add_device_argument(parser)
    add = parser.add_argument
    add("--split", choices=("val", "test", "train"), default="val", help="split (default: val)")
    what = "folder of results.json, report.html, ... (default: eval_<split>_<checkpoint> beside the checkpoint)"
    add("--output-dir", type=Path, metavar="DIR", help=what)
    cli.add_speed_arguments(add)
    cli.add_analysis_arguments(parser)
    arguments = parser.parse_args()
    cli.setup_logging()
    with leaving_quietly():
        from analysis.evaluate import AnalysisOptions, evaluate_checkpoint, format_results
        from engine.distributed import cleanup, init_distributed
    options, dist = AnalysisOptions.of(vars(arguments)), init_distributed(arguments.device)
    cli.setup_logging(is_main=dist.is_main)
    try:
        evaluation = evaluate_checkpoint(
            arguments.resume,
            dist,
            config_path=arguments.config,
            overrides=arguments.update,
            split=arguments.split,
            output_dir=arguments.output_dir,
            use_amp=arguments.use_amp,
            compiled=arguments.compile,
            options=options,
        )
    finally:
        cleanup()
    if evaluation.analysis is not None:
        config = ["-c", arguments.config] if arguments.config else []
        look = cli.command_line("visualize_attention.py", "-r", arguments.resume, *config, "--from-val", 6)
        place = evaluation.decision or evaluation.report or evaluation.folder
        numbers = format_results(evaluation.analysis.results, arguments.lang)
        sys.stdout.write(f"{numbers}\n\n{cli.ending(arguments.lang, place, look)}")
        results = evaluation.folder / "results.json"
        report.wrote(folder=evaluation.folder, results=results, report=evaluation.report, decision=evaluation.decision)
        report.take(results, "metrics")
        if options.max_miss_rate is not None and evaluation.decision is None:
            report.problems.append("no decision.json: there are too few images for the promise of --max-miss-rate")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
