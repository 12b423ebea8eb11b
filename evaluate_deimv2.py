"""Evaluate a checkpoint: `python evaluate_deimv2.py -r outputs/neu_det/best.pth`."""

import argparse
import sys
from pathlib import Path

from engine.cli import (
    add_config_argument,
    add_device_argument,
    add_overrides_argument,
    run_script,
    setup_logging,
)
from engine.distributed import cleanup, init_distributed
from engine.evaluation_run import evaluate_checkpoint
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
        help="folder of results.json and predictions.json (default: eval_<split>_<checkpoint> beside the checkpoint)",
    )
    parser.add_argument("--use-amp", action="store_true", help="mixed precision on a GPU (default: float32)")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    setup_logging()
    dist = init_distributed(arguments.device)
    setup_logging(is_main=dist.is_main)
    try:
        result, folder = evaluate_checkpoint(
            arguments.resume,
            dist,
            config_path=arguments.config,
            overrides=arguments.update,
            split=arguments.split,
            output_dir=arguments.output_dir,
            use_amp=arguments.use_amp,
        )
    finally:
        cleanup()
    if dist.is_main:
        sys.stdout.write(f"{format_results(result)}\n\nWritten to {folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
