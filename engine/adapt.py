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
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms import v2
from tqdm import tqdm

from data.errors import UserError, printable
from data.files import file_sha256, write_json
from data.images import IMAGE_SUFFIXES, is_image, read_image, resize_antialiased
from data.industrial_dataset import pixel_mean_std
from data.progress import progress_bar
from data.transforms import output_size_hw
from engine.amp import choose_amp_dtype
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.cli import command_line, ending, require_output_folder
from engine.config import ExperimentConfig, load_config
from engine.distributed import Distributed
from engine.ema import ModelEma
from engine.interrupt import StopSignal
from engine.options import Options
from engine.run_folder import FolderLock
from engine.schedule import step_seed
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
_NUMBERS = ("step", "seconds", "loss", "first_variance")


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
    names = sorted(
        {
            Path(root, name)
            for folder in folders
            for root, _, files in os.walk(folder)
            for name in files
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
        }
    )
    images = [path for path in names if is_image(path)]
    for path in sorted(set(names) - set(images)):
        log.warning("%s: left out, it cannot be read as an image", path)
    if absent or len(images) < at_least:
        few = f"{', '.join(map(str, folders))}: {len(images)} images that can be read; {at_least} or more are needed"
        raise UserError("--images:", absent or [few])
    return images


class ImageStore:
    """Reads images at the size they are cropped from; keeps up to 1 GiB of them."""

    def __init__(self, paths: Sequence[Path], size_hw: tuple[int, int]) -> None:
        self._paths = paths
        self._size_hw = size_hw
        self._kept: dict[int, Tensor] = {}
        self._room = _CACHE_BYTES // (3 * math.prod(size_hw))
        self._pool = ThreadPoolExecutor(4)

    def take(self, rows: Sequence[int]) -> Tensor:
        """uint8 [B, 3, H, W].

        Raises:
            UserError: One cannot be read.
        """
        return torch.stack(list(self._pool.map(self._one, rows)))

    def _one(self, row: int) -> Tensor:
        kept = self._kept.get(row)
        if kept is None:
            kept = torch.from_numpy(resize_antialiased(read_image(self._paths[row])[0], self._size_hw)).permute(2, 0, 1)
            if len(self._kept) < self._room:
                self._kept[row] = kept
        return kept


def strong_augmentation(size_hw: tuple[int, int]) -> v2.Transform:
    """Views that differ in everything but what the surface is."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size_hw, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], p=0.3),
        ]
    )


def feature_variance(model: InstanceClassifier, images: Tensor) -> float:
    """How much the features of different images differ: 1 - |mean of unit vectors|^2; 0: all alike, collapsed."""
    with torch.no_grad():
        parts = [model(part)[1] for part in images.split(32)]
    features = F.normalize(torch.cat(parts).double(), dim=1)
    return float(1 - features.mean(dim=0).square().sum())


@dataclass
class _Run:
    """Everything an adaptation needs, and where it stands."""

    options: AdaptOptions
    dist: Distributed
    folder: Path
    store: ImageStore
    num_images: int
    fingerprint: str
    """Of images, ViT and batch: what a file to go on from must agree with."""
    size_hw: tuple[int, int]
    mean_std: tuple[tuple[float, float, float], tuple[float, float, float]]
    model: InstanceClassifier
    wrapped: nn.Module
    ema: ModelEma
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    amp_dtype: torch.dtype | None
    rate: float
    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    """Moving average over about twenty steps."""
    first_variance: float = math.nan

    @property
    def batch_size(self) -> int:
        """Of one process."""
        return max(min(self.options.batch_size, self.num_images) // self.dist.world_size, 1)

    @property
    def epochs(self) -> float:
        return self.step * self.batch_size * self.dist.world_size / self.num_images

    def variance(self) -> float:
        """How much the averaged weights tell images apart, see `feature_variance`."""
        rows = np.linspace(0, self.num_images - 1, min(self.num_images, _JUDGED_IMAGES)).astype(int).tolist()
        self.ema.module.eval()
        images = normalize_images(self.store.take(rows).to(self.dist.device), *self.mean_std)
        return feature_variance(cast(InstanceClassifier, self.ema.module), images)

    def batch(self) -> tuple[Tensor, Tensor]:
        """This step's views and the numbers of their images; every choice follows from (seed, step, rank)."""
        every = self.batch_size * self.dist.world_size
        epoch, place = divmod(self.step, self.num_images // every)
        order = np.random.default_rng([self.options.seed, epoch]).permutation(self.num_images)
        start = place * every + self.dist.rank * self.batch_size
        rows = order[start : start + self.batch_size].tolist()
        torch.manual_seed(step_seed(self.options.seed, self.step, self.dist.rank))
        augment = strong_augmentation(self.size_hw)
        views = torch.stack([augment(image) for image in self.store.take(rows)])
        return normalize_images(views.to(self.dist.device), *self.mean_std), torch.tensor(rows, device=self.dist.device)

    def train_step(self, ratio: float) -> None:
        """Forward, loss, backward, clip, step, EMA.

        Raises:
            UserError: The loss is not finite.
        """
        images, rows = self.batch()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * ratio
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.dist.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            logits, _ = self.wrapped(images)
        loss = F.cross_entropy(logits.float(), rows, label_smoothing=LABEL_SMOOTHING)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
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
            parts = {name: getattr(self, name).state_dict() for name in ("model", "ema", "optimizer", "scaler")}
            numbers = {name: getattr(self, name) for name in ("fingerprint", *_NUMBERS)}
            save_checkpoint(self.folder / "last.pth", parts | numbers)

    def restore(self) -> None:
        """Go on from last.pth, if it is there.

        Raises:
            UserError: It is damaged, or of another adaptation.
        """
        path = self.folder / "last.pth"
        if not path.is_file():
            self.first_variance = self.variance()
            return
        stored = load_checkpoint(path)
        if stored.get("fingerprint") != self.fingerprint:
            raise UserError(
                f"{path}: is of an adaptation of other images, another ViT or batch size. Choose another folder with "
                "--output-dir, or remove this one."
            )
        for name in ("model", "ema", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(stored[name])
        for name in _NUMBERS:
            setattr(self, name, stored[name])


def rate_ratio(share: float) -> float:
    """Learning rate / base rate at a share of the whole: a short warm-up, then a cosine to 0."""
    if share < _WARM_UP:
        return (share + 1e-3) / (_WARM_UP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * min((share - _WARM_UP) / (1 - _WARM_UP), 1)))


def adapt(
    config_path: Path,
    dist: Distributed,
    given: Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
) -> list[str]:
    """Adapt the config's ViT to images; writes backbone.pt, which `DINOv3STAs.weights_path` takes, and backbone.json,
    its card. Started again with the same folder it goes on.

    Args:
        config_path: Names the ViT, the weights to begin with, the size of the input and its normalisation.
        dist: This process's place.
        given: Of `AdaptOptions`.
        overrides: `a.b=c`, on top of the config.
        output_dir: Default `<run folder>_backbone`.

    Returns:
        Lines for the console.

    Raises:
        UserError: Bad input of any kind.
        SystemExit: SIGINT (130) or SIGTERM (143), after saving.
    """
    options, config = AdaptOptions(**given), load_config(config_path, overrides)
    if config.Baseline is not None:
        raise UserError(f"{config_path}: a baseline has no ViT to adapt; use a DEIMv2 config.")
    folder = output_dir or config.output_dir.with_name(f"{config.output_dir.name}_backbone")
    require_output_folder(folder)
    paths = find_images(options.images, at_least=max(2, dist.world_size))
    with StopSignal(texts_of(options.lang, "training")) as stop:
        with stop.at_once():
            run = _build(config, dist, options, folder, paths)
        lock = None
        if dist.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(folder)
        try:
            run.restore()
            _fit(run, stop)
            return _finish(run, config_path, config, paths)
        finally:
            if lock is not None:
                lock.release(folder)


def _build(
    config: ExperimentConfig, dist: Distributed, options: AdaptOptions, folder: Path, paths: Sequence[Path]
) -> _Run:
    torch.manual_seed(options.seed)
    detector = cast(DEIM, build_detector(config))
    load_backbone_weights(detector, config)
    backbone = config.deimv2.backbone
    model = InstanceClassifier(detector.backbone.vit, len(paths)).to(dist.device)
    model.vit.requires_grad_(True)  # a config may freeze it for training
    model.vit.blocks[model.vit.returned_blocks[-1] + 1 :].requires_grad_(False)
    device_ids = [dist.device.index] if dist.device.type == "cuda" else None
    size_hw = output_size_hw(config.val_dataloader.dataset.transforms)
    amp_dtype = choose_amp_dtype(options.use_amp, dist.device)
    about = [path.as_posix() for path in paths], backbone.model_dump(mode="json"), size_hw, options.batch_size
    learning = [p for p in model.parameters() if p.requires_grad]
    return _Run(
        options=options,
        dist=dist,
        folder=folder,
        store=ImageStore(paths, size_hw),
        num_images=len(paths),
        fingerprint=hashlib.sha256(repr(about).encode()).hexdigest(),
        size_hw=size_hw,
        mean_std=pixel_mean_std(config),
        model=model,
        wrapped=DistributedDataParallel(model, device_ids=device_ids) if dist.world_size > 1 else model,
        ema=ModelEma(model, decay=0.999, warmups=200),
        optimizer=torch.optim.AdamW(learning, weight_decay=WEIGHT_DECAY, fused=True),
        scaler=torch.amp.GradScaler(dist.device.type, enabled=amp_dtype is torch.float16),
        amp_dtype=amp_dtype,
        rate=_RATE[backbone.weights_path is not None],
    )


def _fit(run: _Run, stop: StopSignal) -> None:
    """Train until the time is over.

    Raises:
        SystemExit: A stop signal came; last.pth is written.
    """
    saved = time.monotonic()
    share = run.options.share_done(run.seconds, run.epochs)
    bar: tqdm[None] = progress_bar(None, "adapt", unit="%", total=100, initial=int(100 * share), show=run.dist.is_main)
    run.wrapped.train()
    with bar:
        while share < 1:
            started = time.monotonic()
            run.train_step(rate_ratio(share))
            run.seconds += time.monotonic() - started
            # One clock decides: processes that end at different steps would wait for one another for ever.
            share = run.dist.from_main(lambda: run.options.share_done(run.seconds, run.epochs))
            bar.update(min(int(100 * share), 100) - bar.n)
            bar.set_postfix_str(f"loss {run.loss:.3f}, {run.epochs:.1f} epochs", refresh=False)
            if stop.requested(run.dist):
                run.save()
                raise stop.exit()
            if time.monotonic() - saved > _SAVE_EVERY_SECONDS:
                run.save()
                saved = time.monotonic()
    run.save()


def _finish(run: _Run, config_path: Path, config: ExperimentConfig, paths: Sequence[Path]) -> list[str]:
    """Write the backbone and its card; say what came of it."""
    variance, weights = run.variance(), run.folder / "backbone.pt"
    backbone = config.deimv2.backbone
    if run.dist.is_main:
        save_checkpoint(weights, cast(InstanceClassifier, run.ema.module).vit.state_dict())
        card = {
            "method": "DIET: every image a class of its own",
            "vit": backbone.name,
            "started_from": None if backbone.weights_path is None else printable(str(backbone.weights_path)),
            "images": len(paths),
            "folders": [printable(str(folder)) for folder in run.options.images],
            "first_images": [printable(path.name) for path in paths[:5]],
            "input_size_hw": list(run.size_hw),
            "batch_size": run.batch_size * run.dist.world_size,
            "seed": run.options.seed,
            "steps": run.step,
            "epochs": round(run.epochs, 2),
            "minutes": round(run.seconds / 60, 2),
            "loss": run.loss,
            "loss_of_guessing": math.log(run.num_images),
            "feature_variance": {"before": run.first_variance, "after": variance},
            "collapsed": variance < _COLLAPSED_VARIANCE,
            "sha256": file_sha256(weights),
        }
        write_json(run.folder / "backbone.json", card, what="card", indent=2)
    texts = texts_of(run.options.lang, "adaptation")
    numbers = {"epochs": texts.number(run.epochs, 1), "minutes": texts.number(run.seconds / 60, 1)}
    lines = [texts("done", images=len(paths), **numbers)]
    lines.append(texts("variance", before=texts.number(run.first_variance), after=texts.number(variance)))
    if variance < _COLLAPSED_VARIANCE:
        lines.append(texts["collapsed"])
    next_step = command_line(
        "train_deimv2.py", "-c", config_path, "-u", f"DINOv3STAs.weights_path={weights.as_posix()}"
    )
    return [*lines, ending(run.options.lang, weights, next_step).rstrip()]
