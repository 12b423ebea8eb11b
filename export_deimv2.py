"""Export a checkpoint: `python export_deimv2.py -r outputs/quickstart/best.pth --format onnx hub`."""

import sys
from pathlib import Path

from data.script import Report, leaving_quietly, run_script

with leaving_quietly():
    from engine import cli

FORMATS = ("official", "safetensors", "hub", "torch_export", "onnx", "openvino")


def main(report: Report) -> None:
    parser = cli.checkpoint_parser(__doc__, "export")
    add = parser.add_argument
    what = (
        "official: a .pth for the official DEIMv2; hub: a folder for the Hugging Face hub; onnx: "
        'pip install -e ".[export]"; openvino: pip install -e ".[openvino]"'
    )
    add("--format", nargs="+", required=True, choices=FORMATS, dest="formats", help=what)
    what = "folder (default: export_<checkpoint> beside the checkpoint)"
    add("--output-dir", type=Path, metavar="DIR", help=what)
    what = "input of the graphs in pixels, multiples of 32 (default: eval_spatial_size)"
    add("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help=what)
    add("--dynamic-size", action="store_true", help="graphs that take any size (multiples of 32)")
    what = "as predict_deimv2.py --nms: an IoU, none, or auto, what the evaluation found best (default: auto)"
    add("--nms", default="auto", metavar="IOU", help=what)
    add("--no-check", action="store_true", help="do not compare the graphs with PyTorch")
    cli.add_language_argument(parser, "the console")
    arguments = parser.parse_args()
    cli.setup_logging()
    with leaving_quietly():
        from deploy.export import export_checkpoint, format_exports
    written = export_checkpoint(
        arguments.resume,
        arguments.formats,
        config_path=arguments.config,
        overrides=arguments.update,
        output_dir=arguments.output_dir,
        size_hw=tuple(arguments.size) if arguments.size else None,
        dynamic_size=arguments.dynamic_size,
        check=not arguments.no_check,
        nms=arguments.nms,
    )
    sys.stdout.write(format_exports(written, arguments.lang, arguments.resume))
    report.wrote(**{one.format: one.path for one in written})
    report.metrics |= {one.format: one.agreement._asdict() for one in written if one.agreement}


if __name__ == "__main__":
    sys.exit(run_script(main))
