"""See what a detector looked at: `python visualize_attention.py -r outputs/neu_det/best.pth --from-val 4`."""

import sys
from pathlib import Path

from data.script import Report, leaving_quietly, run_script

with leaving_quietly():
    from engine import cli


def main(report: Report) -> None:
    parser = cli.checkpoint_parser(__doc__, "look at")
    cli.add_device_argument(parser)
    add = parser.add_argument
    add("--images", type=Path, nargs="+", default=[], metavar="PATH", help="image files, or folders of them")
    add("--from-val", type=int, default=0, metavar="N", help="N images of the validation split, with ground truth")
    parts = ("all", "backbone", "decoder", "evidence")
    add("--what", nargs="+", choices=parts, default=["all"], help="parts to draw (default: all)")
    text = "ViT blocks, from 0 as in the config, or `all` (default: those the detector reads)"
    add("--layers", nargs="+", default=[], metavar="K", help=text)
    text = "where class evidence is taken, e.g. vit.5 (default: the encoder's maps; a baseline's: fpn)"
    add("--evidence-layer", metavar="LAYER", help=text)
    text = "queries to draw (default: the best objects)"
    add("--query", dest="queries", nargs="+", type=int, default=[], metavar="Q", help=text)
    add("--top", type=int, default=3, metavar="N", help="objects an image (default: 3)")
    add("--min-score", type=float, default=0.3, metavar="S", help="least score of these objects (default: 0.3)")
    text = "pixel of the original image whose patch is followed (default: the patches of the best object)"
    add("--point", nargs=2, type=float, metavar=("X", "Y"), help=text)
    cli.add_language_argument(parser, "console and figures")
    cli.add_caption_argument(parser)
    text = "maps over the greyed image, smoothed, with contours (default: as they are, unsmoothed)"
    add("--overlay", action="store_true", help=text)
    add("--output-dir", type=Path, metavar="DIR", help="folder (default: attention_<checkpoint> beside the checkpoint)")
    add = parser.add_argument_group("faithfulness of the maps").add_argument
    add("--score", type=int, metavar="N", help="judge every kind of map on N images of the validation split")
    text = "steps of deletion and insertion (default: 12)"
    add("--score-steps", dest="steps", type=int, default=12, metavar="N", help=text)
    text = "what removed pixels become (default: blur)"
    add("--score-baseline", dest="baseline", choices=("blur", "mean"), default="blur", help=text)
    text = "what is explained: hits (tp), false alarms (fp), misses (fn) (default: tp)"
    add("--on", nargs="+", choices=("tp", "fp", "fn"), default=["tp"], help=text)
    text = "random masks of D-RISE: so many passes an image, times 4 with the check of weights; 0: none (default: 256)"
    add("--drise-masks", type=int, default=256, metavar="N", help=text)
    text = "resamples of the images for 95%% intervals, 0 for none (default: 1000)"
    add("--bootstrap", dest="samples", type=int, default=1000, metavar="N", help=text)
    add("--seed", type=int, default=0, help="of the choice of images and all that is random (default: 0)")
    arguments = parser.parse_args()
    cli.setup_logging()
    with leaving_quietly():
        from attention.score import look
    look(vars(arguments), sys.argv, sys.stdout.write, report)


if __name__ == "__main__":
    sys.exit(run_script(main))
