"""Train the ViT on further images without labels: what `adapt_backbone.py` does.

In the manner of DIET (Ibrahim et al., DIET: The Datum IndEx as its Target, 2024; continued pre-training: DIET-CP, arXiv
2509.06990): every image is a class of its own, and the network names the image that an augmented view is of. One linear
layer, cross-entropy with label smoothing; no teacher, no pairs, hardly anything to set.

Legend: I images, B of a batch, H x W the detector's input, F features of an image.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm import tqdm

from data.errors import UserError, printable
from data.files import file_sha256, write_json
from data.images import IMAGE_SUFFIXES, is_image, read_image, resize_antialiased
from data.industrial_dataset import pixel_mean_std
from data.progress import progress_bar
from data.script import Report
from data.transforms import output_size_hw
from engine.acceleration import choose_amp_dtype
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.cli import command_line, ending, require_output_folder
from engine.config import ExperimentConfig, load_config
from engine.distributed import Distributed
from engine.interrupt import StopSignal
from engine.optim import ModelEma, step_seed
from engine.options import Options
from engine.run_folder import FolderLock
from models.detector import DEIM, build_detector, normalize_images
from models.vit import VisionTransformer
from models.weights import load_backbone_weights
from texts import Language, texts_of

log = logging.getLogger(__name__)

LABEL_SMOOTHING = 0.3
"""Chosen here, as all that docs/guide/adaptation.md does not name as DIET's; public code of DIET takes 0.8."""
WEIGHT_DECAY = 0.05
_RATE = {True: 1e-4, False: 1e-3}
"""Learning rate from pre-trained weights, and from random ones."""
_WARM_UP = 0.05
"""Share of the time."""
_SAVE_EVERY_SECONDS = 60.0
_JUDGED_IMAGES = 256
_COLLAPSED_VARIANCE = 0.01
_CACHE_BYTES = 1 << 30
_PARTS = ("model", "ema", "optimizer", "scaler")
_NUMBERS = ("step", "seconds", "loss", "first_variance")
"""What last.pth holds beside the fingerprint."""


class AdaptOptions(Options):
    """How long, and on what."""

    images: tuple[Path, ...] = ()
    minutes: float = Field(10.0, gt=0, description="more than 0")
    epochs: int | None = Field(None, ge=1, description="1 or more")
    """Instead of minutes."""
    batch_size: int = Field(32, ge=2, description="2 or more")
    """Images of a step, over all processes; fewer if there are fewer."""
    seed: int = 0
    use_amp: bool = False
    lang: Language = "en"

    def share_done(self, seconds: float, epochs: float) -> float:
        """Of the whole, from 0 to 1."""
        return seconds / (60 * self.minutes) if self.epochs is None else epochs / self.epochs


class InstanceClassifier(nn.Module):
    """The ViT, and a linear layer that names the image."""

    def __init__(self, vit: VisionTransformer, num_images: int) -> None:
        super().__init__()
        self.vit = vit
        self.head = nn.Linear(vit.cls_token.shape[-1] * len(vit.returned_blocks), num_images, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [B, 3, H, W] -> logits [B, I] and features [B, F]: the mean patch of every depth that the
        detector reads."""
        pooled = [x.float().mean((2, 3)) for x in self.vit(images)]
        features = torch.cat([F.layer_norm(x, x.shape[1:]) for x in pooled], dim=1)
        return self.head(features), features


def find_images(folders: Sequence[Path], at_least: int = 2) -> list[Path]:
    """Images below the folders, sorted; what cannot be read is named in the log and left out.

    Raises:
        UserError: A folder is missing, or there are fewer images than `at_least`.
    """
    absent = [f"{folder}: no such folder" for folder in folders if not folder.is_dir()]
    below = {path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES}
    names = sorted(path for path in below if not path.name.startswith(".") and not path.is_dir())
    images = [path for path in names if is_image(path)]
    for path in sorted(set(names) - set(images)):
        _say_left_out(path)
    if absent or len(images) < at_least:
        few = f"{', '.join(map(str, folders))}: {len(images)} images that can be read; {at_least} or more are needed"
        raise UserError("--images:", absent or [few])
    return images


def _say_left_out(path: Path) -> None:
    log.warning("%s: left out, it cannot be read as an image", path)


class _Adaptation:
    """Everything an adaptation needs, and where it stands."""

    def __init__(
        self, config: ExperimentConfig, dist: Distributed, options: AdaptOptions, folder: Path, paths: Sequence[Path]
    ) -> None:
        self.options, self.dist, self.folder, self.paths = options, dist, folder, paths
        self.backbone = config.deimv2.backbone
        self.size_hw = output_size_hw(config.val_dataloader.dataset.transforms)
        self.mean_std = pixel_mean_std(config)
        names = [path.as_posix() for path in paths]
        about = names, self.backbone.model_dump(mode="json"), self.size_hw, options.batch_size
        self.fingerprint = hashlib.sha256(repr(about).encode()).hexdigest()
        """Of images, ViT and batch: what a file to go on from must agree with."""
        self.batch_size = max(min(options.batch_size, len(paths)) // dist.world_size, 1)
        """Of one process."""
        torch.manual_seed(options.seed)
        detector = cast(DEIM, build_detector(config))
        load_backbone_weights(detector, config)
        self.model = InstanceClassifier(detector.backbone.vit, len(paths)).to(dist.device)
        vit = self.model.vit.requires_grad_(True)  # a config may freeze it for training
        vit.blocks[vit.returned_blocks[-1] + 1 :].requires_grad_(False)
        self.learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.wrapped = dist.wrap(self.model)
        self.ema = ModelEma(self.model, decay=0.999, warmups=200)
        self.rate = _RATE[self.backbone.weights_path is not None]
        self.optimizer = torch.optim.AdamW(self.learning, weight_decay=WEIGHT_DECAY, fused=True)
        self.amp_dtype = choose_amp_dtype(options.use_amp, dist.device)
        self.scaler = torch.amp.GradScaler(dist.device.type, enabled=self.amp_dtype is torch.float16)
        self.augment = v2.Compose(  # views that differ in everything but what the surface is
            [
                v2.RandomResizedCrop(self.size_hw, scale=(0.2, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], p=0.3),
            ]
        )
        self._kept: dict[int, Tensor | None] = {}
        self._pool = ThreadPoolExecutor(4)
        self.step, self.seconds = 0, 0.0
        self.loss = self.first_variance = math.nan
        """Moving average over about twenty steps; `feature_variance` before the first."""

    @property
    def epochs(self) -> float:
        return self.step * self.batch_size * self.dist.world_size / len(self.paths)

    def share_done(self) -> float:
        """Of the whole, by one clock: processes that end at different steps would wait for one another for ever."""
        return self.dist.from_main(lambda: self.options.share_done(self.seconds, self.epochs))

    def _images(self, rows: Sequence[int]) -> dict[int, Tensor]:
        """Return images by number, uint8 [3, H, W]; those that turn out to be damaged are left out."""
        images = zip(rows, self._pool.map(self._image, rows), strict=True)
        sound = {row: image for row, image in images if image is not None}
        if not sound:
            raise UserError(f"--images: {len(rows)} images in a row cannot be read, e.g. {self.paths[rows[0]]}.")
        return sound

    def _image(self, row: int) -> Tensor | None:
        """From memory if it is among those kept there; None for a damaged one."""
        if row in self._kept:
            return self._kept[row]
        try:
            pixels = read_image(self.paths[row])[0]
        except UserError:  # a file that begins as an image, such as one that was cut short
            _say_left_out(self.paths[row])
            return self._kept.setdefault(row, None)
        image = torch.from_numpy(resize_antialiased(pixels, self.size_hw)).permute(2, 0, 1)
        if len(self._kept) < _CACHE_BYTES // (3 * math.prod(self.size_hw)):
            self._kept[row] = image
        return image

    def feature_variance(self) -> float:
        """How much the averaged weights tell images apart: 1 - |mean of unit features|^2; 0: all alike, collapsed."""
        rows = np.linspace(0, len(self.paths) - 1, min(len(self.paths), _JUDGED_IMAGES)).astype(int).tolist()
        images = torch.stack(list(self._images(rows).values())).to(self.dist.device)
        with torch.no_grad():
            parts = [self.ema.module(part)[1] for part in normalize_images(images, *self.mean_std).split(32)]
        features = F.normalize(torch.cat(parts).double(), dim=1)
        return float(1 - features.mean(dim=0).square().sum())

    def batch(self) -> tuple[Tensor, Tensor]:
        """This step's views and the numbers of their images; every choice follows from (seed, step, rank)."""
        every = self.batch_size * self.dist.world_size
        epoch, place = divmod(self.step, len(self.paths) // every)
        order = np.random.default_rng([self.options.seed, epoch]).permutation(len(self.paths))
        start = place * every + self.dist.rank * self.batch_size
        images = self._images(order[start : start + self.batch_size].tolist())
        torch.manual_seed(step_seed(self.options.seed, self.step, self.dist.rank))
        views, rows = torch.stack([self.augment(image) for image in images.values()]), torch.tensor([*images])
        return normalize_images(views.to(self.dist.device), *self.mean_std), rows.to(self.dist.device)

    def train_step(self, rate: float) -> None:
        """Forward, loss, backward, clip, step, EMA.

        Raises:
            UserError: The loss is not finite.
        """
        images, rows = self.batch()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.dist.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            logits, _ = self.wrapped(images)
        loss = F.cross_entropy(logits.float(), rows, label_smoothing=LABEL_SMOOTHING)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.learning, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.model)
        latest = float(self.dist.mean(loss.detach()))
        self.loss = 0.95 * self.loss + 0.05 * latest if self.step else latest
        if not math.isfinite(latest):
            raise UserError(f"The loss of step {self.step + 1} is not finite. Adapt without --use-amp.")
        self.step += 1

    def save(self) -> None:
        """Write last.pth, to go on from."""
        if self.dist.is_main:
            parts = {name: getattr(self, name).state_dict() for name in _PARTS}
            numbers = {name: getattr(self, name) for name in ("fingerprint", *_NUMBERS)}
            save_checkpoint(self.folder / "last.pth", parts | numbers)

    def restore(self) -> None:
        """Go on from last.pth, if it is there.

        Raises:
            UserError: It is damaged, or of another adaptation.
        """
        path = self.folder / "last.pth"
        if not path.is_file():
            self.first_variance = self.feature_variance()
            return
        stored = load_checkpoint(path)
        if stored.get("fingerprint") != self.fingerprint:
            raise UserError(
                f"{path}: is of an adaptation of other images, another ViT or batch size. Choose another folder with "
                "--output-dir, or remove this one."
            )
        for name in _PARTS:
            getattr(self, name).load_state_dict(stored[name])
        for name in _NUMBERS:
            setattr(self, name, stored[name])

    def fit(self, stop: StopSignal) -> None:
        """Train until the time is over.

        Raises:
            SystemExit: A stop signal came; last.pth is written.
        """
        saved, share, show = time.monotonic(), self.share_done(), self.dist.is_main
        self.wrapped.train()
        bar: tqdm[None]
        with progress_bar(None, "adapt", unit="%", total=100, initial=int(100 * share), show=show) as bar:
            while share < 1:
                started = time.monotonic()
                self.train_step(self.rate * rate_ratio(share))
                self.seconds += time.monotonic() - started
                share = self.share_done()
                bar.update(min(int(100 * share), 100) - bar.n)
                bar.set_postfix_str(f"loss {self.loss:.3f}, {self.epochs:.1f} epochs", refresh=False)
                stopping = stop.requested(self.dist)
                if stopping or time.monotonic() - saved > _SAVE_EVERY_SECONDS:
                    self.save()
                    saved = time.monotonic()
                if stopping:
                    raise stop.exit()
        self.save()

    def write(self, variance: float) -> Path:
        """Write the backbone, and its card beside it; return its path."""
        weights = self.folder / "backbone.pt"
        if not self.dist.is_main:
            return weights
        save_checkpoint(weights, cast(InstanceClassifier, self.ema.module).vit.state_dict())
        start = self.backbone.weights_path
        card = {
            "method": "DIET: every image a class of its own",
            "vit": self.backbone.name,
            "started_from": None if start is None else printable(str(start)),
            "images": len(self.paths),
            "folders": [printable(str(folder)) for folder in self.options.images],
            "first_images": [printable(path.name) for path in self.paths[:5]],
            "input_size_hw": list(self.size_hw),
            "batch_size": self.batch_size * self.dist.world_size,
            "seed": self.options.seed,
            "steps": self.step,
            "epochs": round(self.epochs, 2),
            "minutes": round(self.seconds / 60, 2),
            "loss": self.loss,
            "loss_of_guessing": math.log(len(self.paths)),
            "feature_variance": {"before": self.first_variance, "after": variance},
            "collapsed": variance < _COLLAPSED_VARIANCE,
            "sha256": file_sha256(weights),
        }
        write_json(self.folder / "backbone.json", card, what="card", indent=2)
        return weights


def rate_ratio(share: float) -> float:
    """Learning rate / base rate at a share of the whole: a short warm-up, then a cosine to 0."""
    if share < _WARM_UP:
        return (share + 1e-3) / (_WARM_UP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * min((share - _WARM_UP) / (1 - _WARM_UP), 1)))


def adapt(
    config_path: Path,
    dist: Distributed,
    given: Mapping[str, Any],
    report: Report,
    *,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
) -> list[str]:
    """Adapt the config's ViT to images; writes backbone.pt, which `DINOv3STAs.weights_path` takes, and backbone.json,
    its card. Started again with the same folder it goes on.

    The config names the ViT, the weights to begin with, the size of the input and its normalisation; `given` are the
    `AdaptOptions`, `report` gets paths and numbers, the default folder is `<run folder>_backbone`. Returns lines for
    the console.

    Raises:
        UserError: Bad input of any kind.
        SystemExit: SIGINT (130), SIGTERM (143) or SIGHUP (129), after saving.
    """
    options, config = AdaptOptions.of(given), load_config(config_path, overrides)
    if config.Baseline is not None:
        raise UserError(f"{config_path}: a baseline has no ViT to adapt; use a DEIMv2 config.")
    folder = output_dir or config.output_dir.with_name(f"{config.output_dir.name}_backbone")
    require_output_folder(folder)
    paths = find_images(options.images, at_least=max(2, dist.world_size))
    with StopSignal(texts_of(options.lang, "training")) as stop:
        with stop.at_once():
            run = _Adaptation(config, dist, options, folder, paths)
        lock = None
        if dist.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(folder)
        try:
            run.restore()
            report.wrote(last=folder / "last.pth")
            run.fit(stop)
            variance = run.feature_variance()
            weights = run.write(variance)
            card = weights.with_suffix(".json")
            report.wrote(backbone=weights, card=card)
            report.take(card, "images", "steps", "epochs", "minutes", "loss", "collapsed")
        finally:
            if lock is not None:
                lock.release(folder)
    texts = texts_of(options.lang, "adaptation")
    numbers = {"epochs": texts.number(run.epochs, 1), "minutes": texts.number(run.seconds / 60, 1)}
    lines = [texts("done", images=len(paths), **numbers)]
    lines.append(texts("variance", before=texts.number(run.first_variance), after=texts.number(variance)))
    if variance < _COLLAPSED_VARIANCE:
        lines.append(texts["collapsed"])
    given_weights = f"DINOv3STAs.weights_path={weights.as_posix()}"
    next_step = command_line("train_deimv2.py", "-c", config_path, "-u", given_weights)
    return [*lines, ending(options.lang, weights, next_step).rstrip()]
