"""Evaluate a checkpoint: `python evaluate_deimv2.py -r outputs/neu_det/best.pth`."""

import argparse
import sys
from pathlib import Path

from data.signals import leaving_quietly

with leaving_quietly():
    from analysis.evaluate import AnalysisOptions, evaluate_checkpoint
    from engine.cli import (
        add_config_argument,
        add_device_argument,
        add_overrides_argument,
        run_script,
        setup_logging,
    )
    from engine.distributed import cleanup, init_distributed
    from engine.results import format_results


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-r", "--resume", type=Path, required=True, metavar="CKPT", help="checkpoint to evaluate")
    add_config_argument(parser, required=False, help_text="YAML config (default: the one in the checkpoint)")
    parser.add_argument("--split", choices=("val", "test", "train"), default="val", help="split (default: val)")
    add_overrides_argument(parser)
    add_device_argument(parser)
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="folder of results.json, report.html, ... (default: eval_<split>_<checkpoint> beside the checkpoint)",
    )
    parser.add_argument("--use-amp", action="store_true", help="mixed precision on a GPU (default: float32)")
    add_analysis_arguments(parser.add_argument_group("analysis"))
    return parser.parse_args()


def add_analysis_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--lang", choices=("es", "en"), default="en", help="language of figures and report (default: en)"
    )
    group.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="resamples of the images for 95%% intervals, 0 for none (default: 1000)",
    )
    group.add_argument(
        "--confusion-iou",
        type=float,
        default=0.5,
        metavar="IOU",
        help="least IoU of the confusion matrix (default: 0.5)",
    )
    group.add_argument(
        "--confusion-score",
        type=float,
        metavar="SCORE",
        help="least score of the confusion matrix (default: the threshold with the best F1)",
    )
    group.add_argument(
        "--nms",
        type=float,
        metavar="IOU",
        help="of boxes of one class that overlap more, judge only the best (default: judge all, as DEIMv2 does)",
    )
    group.add_argument("--no-report", action="store_true", help="no figures, gallery and report.html")
    group.add_argument("--no-cost", action="store_true", help="do not measure FLOPs, time and memory")


def main() -> int:
    arguments = parse_arguments()
    setup_logging()
    options = AnalysisOptions(
        lang=arguments.lang,
        samples=arguments.bootstrap,
        confusion_iou=arguments.confusion_iou,
        confusion_score=arguments.confusion_score,
        report=not arguments.no_report,
        cost=not arguments.no_cost,
        nms_iou=arguments.nms,
    )
    dist = init_distributed(arguments.device)
    setup_logging(is_main=dist.is_main)
    try:
        evaluation = evaluate_checkpoint(
            arguments.resume,
            dist,
            config_path=arguments.config,
            overrides=arguments.update,
            split=arguments.split,
            output_dir=arguments.output_dir,
            use_amp=arguments.use_amp,
            options=options,
        )
    finally:
        cleanup()
    if dist.is_main:
        sys.stdout.write(
            f"{format_results(evaluation.result, evaluation.analysis)}\n\nWritten to {evaluation.folder}\n"
        )
        if evaluation.report is not None:
            sys.stdout.write(f"Report: {evaluation.report}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
