"""See what a detector looked at: `python visualize_attention.py -r outputs/neu_det/best.pth --from-val 4`."""

import argparse
import sys
from pathlib import Path

from data.signals import leaving_quietly

with leaving_quietly():
    from attention.faithfulness import ScoreOptions
    from attention.run import PARTS, ViewOptions, Visualisation, visualize
    from attention.score import score
    from attention.sources import find_images
    from engine.cli import (
        add_config_argument,
        add_device_argument,
        add_overrides_argument,
        require_output_folder,
        resolve_device,
        run_script,
        setup_logging,
    )
    from engine.detector import load_detector


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-r", "--resume", type=Path, required=True, metavar="CKPT", help="checkpoint to look at")
    add_config_argument(parser, required=False, help_text="YAML config (default: the one in the checkpoint)")
    parser.add_argument(
        "--images", type=Path, nargs="+", default=[], metavar="PATH", help="image files, or folders of them"
    )
    parser.add_argument(
        "--from-val", type=int, default=0, metavar="N", help="N images of the validation split, with ground truth"
    )
    add_view_arguments(parser)
    parser.add_argument("--lang", choices=("es", "en"), default="en", help="language of the figures (default: en)")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="folder (default: attention_<checkpoint> beside the checkpoint)"
    )
    add_overrides_argument(parser)
    add_device_argument(parser)
    add_score_arguments(parser.add_argument_group("can the maps be trusted?"))
    return parser.parse_args()


def add_view_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--what", nargs="+", choices=("all", *PARTS), default=["all"], help="parts to draw (default: all)"
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        type=layer,
        default=[],
        metavar="K",
        help="ViT blocks, from 0 as in the config, or `all` (default: those the detector reads)",
    )
    parser.add_argument(
        "--evidence-layer",
        metavar="LAYER",
        help="where class evidence is taken, e.g. vit.5 (default: the encoder's maps; a baseline's: fpn)",
    )
    parser.add_argument(
        "--query", nargs="+", type=int, default=[], metavar="Q", help="queries to draw (default: the best objects)"
    )
    parser.add_argument("--top", type=int, default=3, metavar="N", help="objects an image (default: 3)")
    parser.add_argument(
        "--min-score", type=float, default=0.3, metavar="S", help="least score of these objects (default: 0.3)"
    )
    parser.add_argument(
        "--point",
        nargs=2,
        type=float,
        metavar=("X", "Y"),
        help="pixel of the original image whose patch is followed (default: the patches of the best object)",
    )


def add_score_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--score", type=int, metavar="N", help="judge every kind of map on N images of the validation split"
    )
    group.add_argument(
        "--score-steps", type=int, default=12, metavar="N", help="steps of deletion and insertion (default: 12)"
    )
    group.add_argument(
        "--score-baseline", choices=("blur", "mean"), default="blur", help="what removed pixels become (default: blur)"
    )
    group.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="resamples of the images for 95%% intervals, 0 for none (default: 1000)",
    )
    group.add_argument(
        "--seed", type=int, default=0, help="of the choice of images and all that is random (default: 0)"
    )


def layer(text: str) -> int | str:
    return text if text == "all" else int(text)


def main() -> int:
    arguments = parse_arguments()
    setup_logging()
    options = ViewOptions(
        what=PARTS if "all" in arguments.what else tuple(part for part in PARTS if part in arguments.what),
        layers=tuple(number for number in arguments.layers if number != "all"),
        all_layers="all" in arguments.layers,
        queries=tuple(arguments.query),
        top=arguments.top,
        min_score=arguments.min_score,
        evidence_layer=arguments.evidence_layer,
        point=None if arguments.point is None else (arguments.point[0], arguments.point[1]),
        lang=arguments.lang,
    )
    scoring = ScoreOptions(
        steps=arguments.score_steps,
        baseline=arguments.score_baseline,
        score_threshold=arguments.min_score,
        samples=arguments.bootstrap,
        seed=arguments.seed,
    )
    folder = arguments.output_dir or arguments.resume.parent / f"attention_{arguments.resume.stem}"
    require_output_folder(folder)
    detector = load_detector(
        arguments.resume,
        device=resolve_device(arguments.device),
        config_path=arguments.config,
        overrides=arguments.update,
    )
    exit_code = 0
    if arguments.images or arguments.from_val or arguments.score is None:
        images = find_images(arguments.images, arguments.from_val, detector)
        done = visualize(detector, images, folder, options, command=sys.argv)
        report(done, options.min_score)
        exit_code = 1 if done.left_out else 0
    if arguments.score is not None:
        table = score(
            detector,
            arguments.score,
            folder / "score",
            lang=arguments.lang,
            layer=arguments.evidence_layer,
            options=scoring,
        )
        sys.stdout.write(f"{table}\nWritten to {folder / 'score'}\n")
    return exit_code


def report(done: Visualisation, min_score: float) -> None:
    sys.stdout.write(f"{done.num_figures} figures of {done.num_images} images written to {done.folder}\n")
    if done.without_object:
        named = ", ".join(done.without_object[:10]) + (", ..." if len(done.without_object) > 10 else "")
        count = len(done.without_object)
        sys.stdout.write(f"No object with a score of {min_score:g} or more (--min-score) in {count} of them: {named}\n")
    if done.left_out:
        lines = "".join(f"  - {line}\n" for line in done.left_out)
        sys.stdout.write(f"{len(done.left_out)} images left out:\n{lines}")


if __name__ == "__main__":
    sys.exit(run_script(main))
