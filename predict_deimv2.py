"""Look at images and videos: `python predict_deimv2.py -r outputs/neu_det/best.pth photos/ clip.mp4`.

SOURCE is an image (every page of a TIFF, GIF or the like: NAME, NAME_p2, ...), a folder, a pattern ("parts/*.png"), a
video file, the index of a camera or the address of a stream (rtsp://..., http://...); Ctrl-C ends these two.
Exit code 0: done; 3: some files could not be read (listed); 2: bad input; 130: Ctrl-C, tables complete until then.
"""

import sys
from pathlib import Path

from data.script import EXIT_INTERRUPTED, Report, leaving_quietly, run_script

with leaving_quietly():
    from engine import cli


def main(report: Report) -> int:
    parser = cli.checkpoint_parser(__doc__, "predict with")
    cli.add_device_argument(parser)
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="images, folders, patterns, videos, cameras, stream addresses")
    cli.add_detection_arguments(add, "images or tiles")
    what = "some of images,coco,csv,yolo,crops (default: images,coco,csv)"
    add("--save", default="images,coco,csv", metavar="FORMS", help=what)
    add("--output-dir", type=Path, metavar="DIR", help="new folder (default: predict_<checkpoint> beside it)")
    what = "cut large images into tiles of SIZE x SIZE pixels (default: as in training)"
    add("--tile", type=int, metavar="SIZE", help=what)
    what = "share of a tile its neighbour sees too (default: as in training, else 0.2)"
    add("--overlap", type=float, metavar="F", help=what)
    what = "of boxes of one class that overlap more, keep the best, or none (default: auto, the evaluation's best)"
    add("--nms", default="auto", metavar="IOU", help=what)
    cli.add_speed_arguments(add)
    add("--max-frames", type=int, metavar="N", help="stop each video or camera after N frames")
    add("--calibrate", action="store_true", help="scores are chances, by evaluate_deimv2.py --calibrate")
    add("--decision", type=Path, metavar="FILE", help="judge every image by decision.json of evaluate_deimv2.py")
    cli.add_language_argument(parser, "console and tables")
    arguments = parser.parse_args()
    cli.setup_logging()
    with leaving_quietly():
        from deploy.predict import PredictOptions, format_prediction, predict
    prediction = predict(
        arguments.resume,
        arguments.sources,
        cli.resolve_device(arguments.device),
        PredictOptions.of(vars(arguments)),
        config_path=arguments.config,
        overrides=arguments.update,
        output_dir=arguments.output_dir,
    )
    sys.stdout.write(format_prediction(prediction, arguments.lang, arguments.resume))
    folder = prediction.folder
    report.wrote(folder=folder, coco=folder / "coco.json", csv=folder / "predictions.csv")
    report.problems += prediction.failures
    report.metrics |= prediction.counts()
    return EXIT_INTERRUPTED if prediction.interrupted else 0


if __name__ == "__main__":
    sys.exit(run_script(main))
