"""What every script at the root shares: logging, common arguments, choice of the device."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError, printable
from data.script import ScriptParser
from texts import LANGUAGES, Language, missing_texts, texts_of

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


class _BarFriendlyHandler(logging.Handler):
    """Writes to stderr above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # with torch below: a script answers --help before it loads anything

        try:
            # Names of files and classes come from outside: none of them shall steer the terminal.
            tqdm.write("\n".join(map(printable, self.format(record).split("\n"))), file=sys.stderr)
        except (OSError, ValueError):  # stderr is closed
            self.handleError(record)


def setup_logging(*, is_main: bool = True, level: int = logging.INFO) -> None:
    """Log to stderr: everything from `level` on in the main process, warnings and worse in the others.

    Only scripts call this. Calling it again replaces the earlier set-up instead of doubling every line.
    """
    handler = _BarFriendlyHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _BarFriendlyHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level if is_main else logging.WARNING)
    # They report every glyph that matplotlib puts into a PDF, and every stage of COCO's evaluation.
    for chatty in ("fontTools", "faster_coco_eval"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def add_config_argument(parser: argparse.ArgumentParser, *, required: bool, help_text: str) -> None:
    """`-c/--config FILE`, as `args.config: Path | None`."""
    parser.add_argument("-c", "--config", type=Path, required=required, metavar="CONFIG", help=help_text)


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """`--data FOLDER`, as `args.data: Path | None`; see `data_overrides`."""
    what = "use the data in this folder: COCO, YOLO, Pascal VOC or labelme under the usual names, any classes"
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=what)


def data_overrides(folder: Path | None) -> list[str]:
    """Return the overrides that put the data in `folder` into a config; says in the log where they are."""
    if folder is None:
        return []
    from data.own_data import find_data
    from engine.yaml_dialect import as_override

    overrides = ["synthetic=null", "num_classes=auto"]
    for name, split in find_data(folder).items():
        paths = {"img_folder": split.img_folder, "ann_file": split.ann_file}
        overrides += [as_override(f"{name}_dataloader.dataset.{key}", path.as_posix()) for key, path in paths.items()]
    return overrides


def add_overrides_argument(parser: argparse.ArgumentParser) -> None:
    """`-u a.b=c d=e`, also given several times, as `args.update: list[str]`."""
    parser.add_argument(
        "-u",
        "--update",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override config values, e.g. -u epoches=10 val_dataloader.total_batch_size=8",
    )


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """`-d/--device NAME`, as `args.device: str | None`."""
    parser.add_argument(
        "-d", "--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: cuda where there is one, else cpu)"
    )


def add_amp_argument(parser: argparse.ArgumentParser, help_text: str) -> None:
    """`--use-amp/--no-use-amp`, as `args.use_amp: bool | None`; None leaves the decision to the config."""
    parser.add_argument("--use-amp", action=argparse.BooleanOptionalAction, default=None, help=help_text)


def checkpoint_parser(description: str | None, purpose: str) -> argparse.ArgumentParser:
    """Make the parser of a script that loads a detector: `-r CKPT`, the checkpoint to `purpose`, `-c` and `-u`."""
    parser = ScriptParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    what = f"checkpoint to {purpose}, or a run folder, for its best.pth"
    add("-r", "--resume", type=Path, required=True, metavar="CKPT", help=what)
    add_config_argument(parser, required=False, help_text="YAML config (default: the one in the checkpoint)")
    add_overrides_argument(parser)
    return parser


def add_language_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """`--lang es|en`, as `args.lang`; DEIMV2_LANG states it once for all scripts."""
    default = os.environ.get("DEIMV2_LANG", "en")
    if default not in LANGUAGES:
        parser.error(f"DEIMV2_LANG is {default!r} in the environment; expected one of {', '.join(LANGUAGES)}")
    text = f"language of {what} (default: DEIMV2_LANG of the environment, else en)"
    parser.add_argument("--lang", type=_language, choices=LANGUAGES, default=default, help=text)


def _language(name: str) -> str:
    """Read the texts before anything starts that may need them hours later."""
    try:
        missing = [key for language in LANGUAGES if language == name for key in missing_texts(language)]
    except ValueError as error:
        raise UserError(str(error)) from None
    if missing:
        raise UserError(f"texts/{name}.yml has no text for {', '.join(missing)}; write one, as the other language has.")
    return name


def add_detection_arguments(add: Callable[..., object], what: str) -> None:
    """Options of scripts that detect in a user's images: least scores, images at once, folders in folders."""
    default = "(default: best F1 per class of the evaluation, else 0.5)"
    add("--score", type=float, metavar="S", help=f"least score {default}")
    add("--score-per-class", nargs="+", action="extend", default=[], metavar="NAME=S", help="least score of a class")
    add("--batch-size", type=int, metavar="N", help=f"{what} at once (default: 8, on a CPU 4)")
    add("--recursive", action="store_true", help="look into the folders' folders too")


def add_speed_arguments(add: Callable[..., object]) -> None:
    """Options of scripts that only look: `--use-amp`, `--compile`."""
    add("--use-amp", action="store_true", help="mixed precision on a GPU (default: float32)")
    add("--compile", action="store_true", help="compile the network first: seconds to minutes, then faster")


def command_line(script: str, *arguments: object) -> str:
    """Return what to type: `python SCRIPT ARGUMENTS`, quoted where a shell needs it."""
    words = [argument.as_posix() if isinstance(argument, Path) else str(argument) for argument in arguments]
    return shlex.join(["python", script, *words])


def ending(lang: Language, folder: Path, next_step: str = "") -> str:
    """Return the last lines of a script's output: where everything is, and what to do next."""
    texts = texts_of(lang, "common")
    lines = [texts("written", folder=folder), *([texts("next", command=next_step)] if next_step else [])]
    return "\n".join(map(printable, lines)) + "\n"


def add_caption_argument(parser: argparse.ArgumentParser) -> None:
    """`--no-caption`, as `args.captions: bool`."""
    text = "no caption in figures: the text goes into a .txt beside each, as LaTeX has \\caption"
    parser.add_argument("--no-caption", dest="captions", action="store_false", help=text)


def add_analysis_arguments(parser: argparse.ArgumentParser) -> None:
    """What an evaluation does with detections, under the names of `AnalysisOptions`."""
    add = parser.add_argument_group("analysis").add_argument
    add_language_argument(parser, "console, figures and report")
    add_caption_argument(parser)
    add("--bootstrap", type=int, default=1000, metavar="N", help="resamples for intervals, 0: none (default: 1000)")
    what = "least IoU of the confusion matrix (default: 0.5)"
    add("--confusion-iou", type=float, default=0.5, metavar="IOU", help=what)
    what = "least score of the confusion matrix (default: the threshold with the best F1)"
    add("--confusion-score", type=float, metavar="SCORE", help=what)
    what = "of boxes of one class that overlap more, judge only the best (default: judge all, as DEIMv2 does)"
    add("--nms", metavar="IOU", help=what)
    add("--no-report", dest="report", action="store_false", help="no figures, gallery and report.html")
    add("--no-cost", dest="cost", action="store_false", help="do not measure FLOPs, time and memory")
    add = parser.add_argument_group("acceptance (docs/guide/acceptance.md)").add_argument
    what = "curves that turn scores into chances, for predict_deimv2.py --calibrate (default: none)"
    add("--calibrate", choices=("none", "temperature", "isotonic"), default="none", help=what)
    add("--cost-miss", type=float, metavar="C", help="cost of a missed defective image: finds the cheapest threshold")
    what = "cost of a good image that is rejected (default: 1)"
    add("--cost-false-alarm", type=float, default=1.0, metavar="C", help=what)
    what = "write decision.json, which lets at most this share of defective images pass, e.g. 0.02"
    add("--max-miss-rate", type=float, metavar="F", help=what)
    add("--confidence", type=float, default=0.95, metavar="F", help="how sure that is to be (default: 0.95)")
    add("--promise-per-class", action="store_true", help="keep it for the images of each class")


def training_arguments(description: str | None) -> argparse.Namespace:
    """Parse the command line of the two training scripts."""
    parser = ScriptParser(description=description)
    add_config_argument(parser, required=False, help_text="YAML config, e.g. configs/neu_det.yml")
    add_data_argument(parser)
    add_overrides_argument(parser)
    add_device_argument(parser)
    add_amp_argument(parser, "mixed precision on a GPU (default: the config's use_amp)")
    parser.add_argument("--seed", type=int, help="seed of weights, order and augmentation (default: the config's, 0)")
    parser.add_argument(
        "-r", "--resume", type=Path, metavar="CKPT", help="checkpoint, or run folder, to go on from exactly"
    )
    parser.add_argument("-t", "--tuning", type=Path, metavar="CKPT", help="start a new run from these weights")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="run folder (default: the config's; of -r: the checkpoint's)"
    )
    parser.add_argument("--test-only", action="store_true", help="evaluate -r CKPT on the validation split and stop")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="repeat a run's nonfinite_step.pt, say where it begins, and stop"
    )
    add_language_argument(parser, "the console")
    parser.add_argument("--verbose", action="store_true", help="list every derived value of the config")
    parser.add_argument("--explain", metavar="KEY", help="say what a key means, its value and who stated it, and stop")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config, check all that a start would, stop"
    )
    arguments = parser.parse_args()
    if not arguments.config and not arguments.replay:
        parser.error("the following arguments are required: -c/--config")
    if arguments.resume and arguments.tuning:
        parser.error("-r resumes a run, -t starts a new one from weights: give one of them")
    if arguments.test_only and not arguments.resume:
        parser.error("--test-only needs the checkpoint to evaluate: -r CKPT")
    return arguments


def training_overrides(arguments: argparse.Namespace) -> list[str]:
    """Return `-u`'s overrides and those that other options of `training_arguments` stand for."""
    from engine.yaml_dialect import as_override

    options = {"use_amp": arguments.use_amp, "seed": arguments.seed}
    overrides = [*data_overrides(arguments.data), *arguments.update]
    overrides += [*(f"{key}={value}" for key, value in options.items() if value is not None)]
    paths = {"output_dir": arguments.output_dir, "tuning": arguments.tuning}
    return overrides + [as_override(key, path.as_posix()) for key, path in paths.items() if path is not None]


def resolve_device(name: str | None = None) -> torch.device:
    """The device to compute on.

    Args:
        name: `cpu`, `cuda` or `cuda:N`; None or empty takes the first CUDA device, or else the CPU, loudly if there
            is an NVIDIA card that goes unused.

    Raises:
        UserError: The name is none of these, or the CUDA device is not there.
    """
    import torch

    if not name:
        if torch.cuda.is_available():
            return torch.device("cuda")
        unused = unused_card_advice()
        if unused is not None:
            log.warning("RUNNING ON THE CPU, many times slower than the GPU of this machine. %s", unused)
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"Device {name!r} is not supported: expected cpu, cuda or cuda:N.")
    if device.type == "cuda" and not torch.cuda.is_available():
        advice = unused_card_advice() or "No NVIDIA card was found (nvidia-smi lists none); use -d cpu."
        raise UserError(f"Device {name!r} was asked for, but torch {torch.__version__} cannot use CUDA here. {advice}")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise UserError(f"Device {name!r} was asked for, but this machine has {count}: cuda:0 to cuda:{count - 1}.")
    return device


def unused_card_advice() -> str | None:
    """How to make torch use this machine's NVIDIA card; None where there is no card or torch uses it already."""
    import torch

    if torch.cuda.is_available():
        return None
    card = _nvidia_card()
    if card is None:
        return None
    if torch.version.cuda is None:
        return (
            f"This machine has an NVIDIA card ({card}), but the installed torch {torch.__version__} was built without "
            "CUDA. Fix: pip uninstall torch torchvision, then install both from pytorch.org's CUDA index with "
            "pip install torch torchvision --index-url ...; see the selector on pytorch.org for the exact line."
        )
    return (
        f"This machine has an NVIDIA card ({card}), but torch {torch.__version__} (built for CUDA "
        f"{torch.version.cuda}) cannot use it. Update the NVIDIA driver, or install a torch for an older CUDA (see the "
        f"selector on pytorch.org); CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')!r}."
    )


def _nvidia_card() -> str | None:
    """Name of the first NVIDIA card according to its driver's own tool, which Windows installs on PATH too."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        question = [tool, "--query-gpu=name", "--format=csv,noheader"]
        answer = subprocess.run(question, capture_output=True, text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = answer.stdout.strip().splitlines()
    return lines[0].strip() if answer.returncode == 0 and lines else None


def require_output_folder(folder: Path, option: str = "--output-dir") -> None:
    """Check before long work that `folder`, which `option` names, can be written, without creating anything.

    Raises:
        UserError: It, or the part of its path that exists, is a file or not writable.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(
            f"Output folder {folder}: {existing} is a file; rename it or choose another folder with {option}."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"Output folder {folder}: {existing} is not writable; check its permissions or choose another folder "
            f"with {option}."
        )
