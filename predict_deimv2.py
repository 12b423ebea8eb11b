"""Look at images and videos: `python predict_deimv2.py -r outputs/neu_det/best.pth photos/ clip.mp4`.

SOURCE is an image (every page of a TIFF, GIF or the like: NAME, NAME_p2, ...), a folder, a pattern ("parts/*.png"), a
video file, the index of a camera or the address of a stream (rtsp://..., http://...); Ctrl-C ends these two.
Exit code 0: done; 1: done, but some files could not be read (they are listed); 2: bad input; 130: stopped by Ctrl-C,
the tables are complete up to there.
"""

import argparse
import sys
from pathlib import Path

from data.signals import leaving_quietly

with leaving_quietly():
    from deploy.predict import DEFAULT_FORMS, PredictOptions, format_prediction, parse_forms, predict
    from deploy.tiling import Tiling
    from deploy.writers import FORMS
    from engine.cli import (
        EXIT_INTERRUPTED,
        add_config_argument,
        add_device_argument,
        add_overrides_argument,
        resolve_device,
        run_script,
        setup_logging,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", "--resume", type=Path, required=True, metavar="CKPT", help="checkpoint to predict with")
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="images, folders, patterns, videos, camera indices, stream addresses",
    )
    add_config_argument(parser, required=False, help_text="YAML config (default: the one in the checkpoint)")
    add_overrides_argument(parser)
    add_device_argument(parser)
    parser.add_argument(
        "--score", type=float, metavar="S", help="least score (default: best F1 per class of the evaluation, else 0.5)"
    )
    parser.add_argument(
        "--score-per-class", nargs="+", action="extend", default=[], metavar="NAME=S", help="least score of a class"
    )
    parser.add_argument(
        "--save",
        default=",".join(DEFAULT_FORMS),
        metavar="FORMS",
        help=f"some of {','.join(FORMS)} (default: {','.join(DEFAULT_FORMS)})",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="new folder (default: predict_<checkpoint> beside the checkpoint)",
    )
    parser.add_argument("--tile", type=int, metavar="SIZE", help="cut large images into tiles of SIZE x SIZE pixels")
    parser.add_argument(
        "--overlap", type=float, default=0.2, metavar="F", help="share of a tile its neighbour sees too (default: 0.2)"
    )
    parser.add_argument(
        "--nms",
        type=float,
        metavar="IOU",
        help="of boxes of one class that overlap more, keep the best (default: keep all, as the evaluation does)",
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images or tiles at once (default: 8)")
    parser.add_argument("--use-amp", action="store_true", help="mixed precision on a GPU (default: float32)")
    parser.add_argument("--recursive", action="store_true", help="look into the folders' folders too")
    parser.add_argument("--max-frames", type=int, metavar="N", help="stop each video or camera after N frames")
    parser.add_argument("--lang", choices=("es", "en"), default="en", help="language of tables and texts (default: en)")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    setup_logging()
    options = PredictOptions(
        score=arguments.score,
        score_per_class=tuple(arguments.score_per_class),
        forms=parse_forms(arguments.save),
        tiling=None if arguments.tile is None else Tiling(arguments.tile, arguments.overlap),
        nms_iou=arguments.nms,
        batch_size=arguments.batch_size,
        use_amp=arguments.use_amp,
        lang=arguments.lang,
        recursive=arguments.recursive,
        max_frames=arguments.max_frames,
    )
    prediction = predict(
        arguments.resume,
        arguments.sources,
        resolve_device(arguments.device),
        options=options,
        config_path=arguments.config,
        overrides=arguments.update,
        output_dir=arguments.output_dir,
    )
    sys.stdout.write(f"{format_prediction(prediction, arguments.lang)}\n")
    if prediction.interrupted:
        return EXIT_INTERRUPTED
    return 1 if prediction.failures else 0


if __name__ == "__main__":
    sys.exit(run_script(main))
