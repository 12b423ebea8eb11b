"""Export a checkpoint: `python export_deimv2.py -r outputs/quickstart/best.pth --format onnx hub`."""

import argparse
import sys
from pathlib import Path

from data.signals import leaving_quietly

with leaving_quietly():
    from deploy.export import FORMATS, export_checkpoint
    from engine.cli import add_config_argument, add_overrides_argument, run_script, setup_logging


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-r", "--resume", type=Path, required=True, metavar="CKPT", help="checkpoint to export")
    parser.add_argument(
        "--format",
        nargs="+",
        required=True,
        choices=FORMATS,
        dest="formats",
        help="official: a .pth for the official DEIMv2; hub: a folder for the Hugging Face hub; onnx: "
        'pip install -e ".[export]"; openvino: pip install -e ".[openvino]"',
    )
    add_config_argument(parser, required=False, help_text="YAML config (default: the one in the checkpoint)")
    add_overrides_argument(parser)
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="folder (default: export_<checkpoint> beside the checkpoint)"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="input of the graphs in pixels, multiples of 32 (default: eval_spatial_size)",
    )
    parser.add_argument("--dynamic-size", action="store_true", help="graphs that take any size (multiples of 32)")
    parser.add_argument("--no-check", action="store_true", help="do not compare the graphs with PyTorch")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    setup_logging()
    written = export_checkpoint(
        arguments.resume,
        arguments.formats,
        config_path=arguments.config,
        overrides=arguments.update,
        output_dir=arguments.output_dir,
        size_hw=tuple(arguments.size) if arguments.size else None,
        dynamic_size=arguments.dynamic_size,
        check=not arguments.no_check,
    )
    for one in written:
        checked = one.agreement
        note = (
            "" if checked is None else f"  (agrees with PyTorch: scores {checked.score:.1g}, boxes {checked.box:.1g})"
        )
        sys.stdout.write(f"{one.format:13} {one.path}{note}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
