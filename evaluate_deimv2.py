"""Evaluate a checkpoint: `python evaluate_deimv2.py -r outputs/neu_det/best.pth`."""

import sys
from pathlib import Path

from data.signals import leaving_quietly

with leaving_quietly():
    from engine import cli


def main() -> None:
    parser = cli.checkpoint_parser(__doc__, "evaluate")
    cli.add_device_argument(parser)
    add = parser.add_argument
    add("--split", choices=("val", "test", "train"), default="val", help="split (default: val)")
    what = "folder of results.json, report.html, ... (default: eval_<split>_<checkpoint> beside the checkpoint)"
    add("--output-dir", type=Path, metavar="DIR", help=what)
    add("--use-amp", action="store_true", help="mixed precision on a GPU (default: float32)")
    add("--compile", action="store_true", help="compile the network first: seconds to minutes, then faster")
    add = parser.add_argument_group("analysis").add_argument
    cli.add_language_argument(parser, "console, figures and report")
    cli.add_caption_argument(parser)
    add("--bootstrap", type=int, default=1000, metavar="N", help="resamples for intervals, 0: none (default: 1000)")
    what = "least IoU of the confusion matrix (default: 0.5)"
    add("--confusion-iou", type=float, default=0.5, metavar="IOU", help=what)
    what = "least score of the confusion matrix (default: the threshold with the best F1)"
    add("--confusion-score", type=float, metavar="SCORE", help=what)
    what = "of boxes of one class that overlap more, judge only the best (default: judge all, as DEIMv2 does)"
    add("--nms", type=float, metavar="IOU", help=what)
    add("--no-report", dest="report", action="store_false", help="no figures, gallery and report.html")
    add("--no-cost", dest="cost", action="store_false", help="do not measure FLOPs, time and memory")
    arguments = parser.parse_args()
    cli.setup_logging()
    with leaving_quietly():
        from analysis.evaluate import AnalysisOptions, evaluate_checkpoint, format_results
        from engine.distributed import cleanup, init_distributed
    options, dist = AnalysisOptions(**vars(arguments)), init_distributed(arguments.device)
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
        place = evaluation.report or evaluation.folder
        numbers = format_results(evaluation.analysis.results, arguments.lang)
        sys.stdout.write(f"{numbers}\n\n{cli.ending(arguments.lang, place, look)}")


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
