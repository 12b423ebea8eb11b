"""One training run: its parts, where it stands, and how it is saved and restored."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from data.box_sizes import object_scale
from data.errors import UserError
from data.loader import EvalLoader, TrainLoader, build_eval_loader, build_train_loader, steps_per_epoch
from data.section import require_variables
from data.splits import DataBundle, build_datasets
from data.synthetic import is_filled
from data.tiles import tiled
from engine.acceleration import choose_amp_dtype, compiler
from engine.batch_size import decide_batch
from engine.checkpoint import check_classes, checkpoint_config, load_checkpoint, save_checkpoint, start_from
from engine.cli import require_output_folder
from engine.config import ExperimentConfig, config_to_dict, derive_run_length
from engine.detector import Detector
from engine.distributed import Distributed
from engine.loggers import require_loggers
from engine.monitor import Monitor
from engine.multimodal import finish_model, optimizer_with_fusion, prepare_texts
from engine.optim import FlatCosine, ModelEma, build_optimizer
from engine.resume import Position, restore
from engine.run_folder import FolderLock, prepare_run_folder, require_unlocked, write_yaml
from engine.text_embeddings import store_embeddings
from models.criterion import build_criterion
from models.detector import DEIM, build_detector
from models.text_encoder import TextEmbeddings
from models.weights import load_backbone_weights, load_state_dict_strict
from texts import Language, Texts, texts_of

log = logging.getLogger(__name__)

_ORDER_KEYS = (
    "seed",
    "accumulation_steps",
    "tiles",
    *(f"train_dataloader.{key}" for key in ("shuffle", "drop_last", "repeat_factor_threshold")),
)
"""Settings that decide, with the batch size, which images a half-trained epoch still has to show."""
_BOOKKEEPING = {"output_dir", "summary_dir", "resume", "tuning", "device", "print_freq", "loggers"}


@dataclass
class Run:
    """Everything a run needs; built once by `build_run`."""

    config: ExperimentConfig
    dist: Distributed
    folder: Path
    config_file: str | None
    """The file the run was started with; None where nobody knows."""
    data: DataBundle
    train_loader: TrainLoader
    val_loader: EvalLoader
    model: nn.Module
    """Raw weights."""
    wrapped: nn.Module
    """The same model inside DistributedDataParallel where there are several processes."""
    ema: ModelEma | None
    criterion: nn.Module
    """Takes the model's training outputs, see `build_criterion`."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    amp_dtype: torch.dtype | None
    monitor: Monitor
    lock: FolderLock | None
    """Of the folder, in the main process."""
    position: Position
    text: Texts
    """What the console says, in the user's language."""
    changed: list[str]
    """Settings that differ from those of the checkpoint that is resumed, one line each."""
    saved: tuple[Path, Position] | None
    """The latest checkpoint to go on from, and where it stands; in the main process."""
    kept_nonfinite: bool = False
    """Whether a step that was not finite has been kept for replay: the first one of this process."""

    @cached_property
    def schedule(self) -> FlatCosine:
        """The learning rate's."""
        return FlatCosine.of(self.config, self.train_loader.steps_per_epoch)

    @property
    def images_per_batch(self) -> int:
        """Images of one micro-batch, over all processes."""
        return _images_per_batch(self.config, self.dist.world_size)

    @property
    def is_over(self) -> bool:
        """Whether every epoch is trained, or none has been better for `early_stopping_patience` epochs."""
        return _is_over(self.config, self.position)

    @property
    def stop_epoch(self) -> int:
        """First epoch of stage 2, without strong augmentation."""
        stop = self.config.train_dataloader.collate_fn.stop_epoch
        return self.config.epoches if stop is None else stop

    @property
    def detector(self) -> Detector:
        """With the weights that are evaluated: the EMA's where there is one."""
        model = self.ema.module if self.ema is not None else self.model
        return Detector(model, self.config, self.data.classes, self.dist.device)

    def close(self) -> None:
        """Close the files, end the data workers and let other trainings into the folder."""
        self.monitor.close()
        self.train_loader.close()
        self.val_loader.close()
        if self.lock is not None:
            self.lock.release(self.folder)


def build_run(
    config: ExperimentConfig,
    dist: Distributed,
    folder: Path,
    *,
    resume: Path | None,
    tuning: Path | None,
    text_cache: Path | None = None,
    lang: Language = "en",
    dry: bool = False,
) -> Run:
    """All parts of a run. Whatever can fail on bad input comes before the first file is written; `dry`: none is."""
    _require_places(config, folder)
    torch.manual_seed(config.seed)
    checkpoint = {} if resume is None else load_checkpoint(resume)
    config, data, train_loader, val_loader = _build_data(config, dist, checkpoint, resume)
    stored = None if resume is None else (checkpoint, resume)
    config, texts = prepare_texts(config, data.classes, dist, text_cache or folder, stored=stored, tuning=tuning)
    config = derive_run_length(config, train_loader.steps_per_epoch)
    model = _build_model(config, dist, data, texts, checkpoint, resume=resume, tuning=tuning)
    wrapped, amp_dtype = dist.wrap(model), choose_amp_dtype(config.use_amp, dist.device)
    optimizer = build_optimizer(model, optimizer_with_fusion(config, model))
    scaler = torch.amp.GradScaler(dist.device.type, enabled=amp_dtype is torch.float16 and config.scaler.enabled)
    ema = ModelEma(model, **config.ema.model_dump()) if config.use_ema else None
    position, changed = Position(), []
    if resume is not None:
        changed = _changes_since(checkpoint, resume, config, train_loader, dist.world_size)
        parts: dict[str, Any] = {"optimizer": optimizer, "ema": ema, "scaler": scaler, "train_loader": train_loader}
        position = restore(checkpoint, resume, **parts, changed=changed)

    lock, earlier_log = (None, None) if dry else _open_folder(config, dist, folder, position, resume)
    if dist.is_main and texts is not None and not dry:
        store_embeddings(texts, config, data.classes, folder)
    dist.barrier()
    text, steps_per_epoch = texts_of(lang, "training"), train_loader.steps_per_epoch
    return Run(
        config=config,
        dist=dist,
        folder=folder,
        config_file=checkpoint.get("config_file", config.file),
        data=data,
        train_loader=train_loader,
        val_loader=val_loader,
        model=model,
        wrapped=wrapped,
        ema=ema,
        criterion=build_criterion(config).to(dist.device),
        optimizer=optimizer,
        scaler=scaler,
        amp_dtype=amp_dtype,
        monitor=Monitor(
            *(config, folder, data.classes, text, steps_per_epoch, position),
            enabled=dist.is_main and not dry,
            earlier_log=earlier_log,
        ),
        lock=lock,
        position=position,
        text=text,
        changed=changed,
        saved=None if resume is None else (resume, position),
    )


def _build_model(
    config: ExperimentConfig,
    dist: Distributed,
    data: DataBundle,
    texts: TextEmbeddings | None,
    checkpoint: Mapping[str, Any],
    *,
    resume: Path | None,
    tuning: Path | None,
) -> nn.Module:
    """The network as it starts, on its device."""
    model: nn.Module = build_detector(config)
    if resume is not None:
        check_classes(checkpoint, data.classes, resume)
        load_state_dict_strict(model, checkpoint["model"], source=resume)
    elif tuning is not None:
        start_from(model, config, data.classes, tuning)
    elif config.tuning_class_map:
        raise UserError("tuning_class_map: chooses rows of the weights to tune from, so it needs them: -t CKPT.")
    else:
        _warn_of_frozen_noise(config)
        load_backbone_weights(model, config)
    finish_model(config, model, texts)
    model.to(dist.device)
    if dist.world_size > 1 and dist.device.type == "cuda" and config.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.compile and (backend := compiler(model, dist.device)):
        cast(DEIM, model).compile_training(backend)
    return model


def _open_folder(
    config: ExperimentConfig, dist: Distributed, folder: Path, position: Position, resume: Path | None
) -> tuple[FolderLock | None, Path | None]:
    """Make the run folder, with the config in it; its lock, and the log of another folder whose run goes on here."""
    elsewhere = resume is not None and resume.resolve().parent != folder.resolve()
    lock = None
    if dist.is_main:
        lock = prepare_run_folder(folder, keep_existing=resume is not None and not elsewhere)
        if elsewhere or not _is_over(config, position):  # else nothing is trained with this config
            write_yaml(folder / "config.yaml", config_to_dict(config))
    return lock, resume.parent / "log.jsonl" if resume is not None and elsewhere else None


def _require_places(config: ExperimentConfig, folder: Path) -> None:
    require_loggers(config.loggers)
    require_output_folder(folder)
    if config.summary_dir is not None:
        require_output_folder(config.summary_dir, "summary_dir")


def rehearse(
    config: ExperimentConfig,
    dist: Distributed,
    folder: Path,
    *,
    resume: Path | None,
    tuning: Path | None,
    lang: Language = "en",
) -> Run | None:
    """Refuse what a training would refuse before its first step, without writing anything; return the run, closed.

    Generated data that are not drawn yet leave what needs data for the start to check, and no run.

    Raises:
        UserError: As the training.
    """
    _require_places(config, folder)
    dist.from_main(lambda: require_unlocked(folder))
    if config.synthetic is not None and not is_filled(config.synthetic.root):
        return None
    run = build_run(config, dist, folder, resume=resume, tuning=tuning, lang=lang, dry=True)
    run.close()
    return run


def planned_config(config: ExperimentConfig) -> ExperimentConfig:
    """What a run would write as its config.yaml, as far as the data are there to tell."""
    try:
        config = derive_run_length(config, steps_per_epoch(config))
    except UserError as error:
        log.warning("warm-up and EMA are not shown as the run will have them, they follow from its data: %s", error)
    return config


def _is_over(config: ExperimentConfig, position: Position) -> bool:
    patience = config.early_stopping_patience
    is_stuck = patience is not None and position.epoch - 1 - position.selection.top_epoch >= patience
    return position.epoch >= config.epoches or is_stuck


def _images_per_batch(config: ExperimentConfig, world_size: int) -> int:
    return config.train_dataloader.images_per_batch(world_size * config.micro_batches) * world_size


def _changes_since(
    checkpoint: Mapping[str, Any], path: Path, config: ExperimentConfig, train_loader: TrainLoader, world_size: int
) -> list[str]:
    """List what is set otherwise than in the checkpoint's own config, where it has one.

    Raises:
        UserError: It was written within an epoch, and the rest of that epoch would show the wrong images.
    """
    stored = checkpoint.get("config")
    if not isinstance(stored, dict):
        return []
    ours = config_to_dict(config)
    changed = list(_changes(stored, ours))
    if checkpoint.get("batch_in_epoch"):
        problems = [line for key, line in changed if key in _ORDER_KEYS or key.startswith("tiles.")]
        images, epoch_images = _images_per_batch(config, world_size), train_loader.epoch_images
        if (before := checkpoint.get("images_per_batch", images)) != images:
            problems.append(f"images of a batch (over all processes): {before} -> {images}")
        if not problems and checkpoint.get("epoch_images", epoch_images) != epoch_images:
            ann_file = config.train_dataloader.dataset.ann_file
            problems.append(f"{ann_file}: other training images than then, or in another order")
        if problems:
            raise UserError(
                f"{path}: was written in the middle of an epoch, and these settings decide which of its images are "
                "still to come. Resume with those of the checkpoint and change them once the epoch is over, or start "
                f"a new run from its weights with -t {path}:",
                problems,
            )
    return [line for key, line in changed if key.partition(".")[0] not in _BOOKKEEPING]


def _changes(then: Any, now: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted keys whose values differ and what to say of them; of lists, such as the ops, their elements.
    Keys that only one version of the program knows are passed over.
    """
    if isinstance(then, dict) and isinstance(now, dict) and then.get("type") == now.get("type"):
        for name in now:
            if name in then:
                yield from _changes(then[name], now[name], f"{key}.{name}".lstrip("."))
    elif isinstance(then, list) and isinstance(now, list) and any(isinstance(one, dict) for one in (*then, *now)):
        kinds = [[one.get("type") for one in side if isinstance(one, dict)] for side in (then, now)]
        gone, new = ([one for one in side if one not in other] for side, other in ((then, now), (now, then)))
        if kinds[0] == kinds[1]:
            for index, (one, other) in enumerate(zip(then, now, strict=True)):
                yield from _changes(one, other, f"{key}[{index}]")
        elif gone or new:
            yield key, f"{key}: {', '.join([*(f'- {one}' for one in gone), *(f'+ {one}' for one in new)])}"
        else:
            yield key, f"{key}: {kinds[0]} -> {kinds[1]}"
    elif then != now:
        yield key, f"{key}: {then} -> {now}"


def _build_data(
    config: ExperimentConfig, dist: Distributed, checkpoint: Mapping[str, Any], resume: Path | None
) -> tuple[ExperimentConfig, DataBundle, TrainLoader, EvalLoader]:
    folders = {"output_dir": config.output_dir, "summary_dir": config.summary_dir or config.output_dir}
    require_variables(folders)
    data = build_datasets(config)
    is_open = "auto" in (config.train_dataloader.total_batch_size, config.accumulation_steps)
    stored = checkpoint_config(checkpoint, resume) if is_open and resume is not None else None
    config = decide_batch(config, dist, tiled(data.splits["train"], config.tiles), stored)
    rank, world_size, pin = dist.rank, dist.world_size, dist.device.type == "cuda"
    train_loader = build_train_loader(
        config, data.splits["train"], data.classes, seed=config.seed, rank=rank, world_size=world_size, pin_memory=pin
    )
    val_loader = build_eval_loader(
        config, data.splits["val"], data.classes, rank=rank, world_size=world_size, pin_memory=pin
    )
    return config, data, train_loader, val_loader


def save(run: Run, name: str, *, finished_epoch: int | None = None) -> None:
    """Write a checkpoint of the present state, atomically, on rank 0; best.pth is for use and has no optimiser state.

    `finished_epoch` is the epoch that is complete with this state; None inside or right after an epoch.
    """
    if not run.dist.is_main:
        return
    position = run.position
    if finished_epoch is not None:
        position = position.but(last_epoch=finished_epoch, batch_in_epoch=0)
    state: dict[str, Any] = {
        "date": datetime.now().isoformat(timespec="seconds"),
        "model": run.model.state_dict(),
        "criterion": {},
        "postprocessor": {},
        "config": config_to_dict(run.config),
        "config_file": run.config_file,
        "classes": run.data.classes.to_dict(),
        "seed": run.config.seed,
        **position.model_dump(),
        "images_per_batch": run.images_per_batch,
        "epoch_images": run.train_loader.epoch_images,
        "object_scale": object_scale(
            run.data.splits["train"], run.config.val_dataloader.dataset.transforms, run.config.tiles
        ),
    }
    if run.ema is not None:
        state["ema"] = run.ema.state_dict()
    if name != "best.pth":
        state["optimizer"] = run.optimizer.state_dict()
        if run.scaler.is_enabled():
            state["scaler"] = run.scaler.state_dict()
    save_checkpoint(run.folder / name, state)
    if name == "last.pth":
        run.saved = run.folder / name, position


def _warn_of_frozen_noise(config: ExperimentConfig) -> None:
    """A run that starts from no detector keeps for ever what it freezes of random weights."""
    backbone = config.DINOv3STAs
    if backbone is None or (backbone.finetune and backbone.freeze == "none"):
        return
    if backbone.weights_path is None:
        log.warning("DINOv3STAs: frozen at random weights, which never learn; give weights_path, or -t CKPT")
    elif backbone.freeze == "all":
        log.warning(
            "DINOv3STAs.freeze: all freezes the detail branch and the convolutions behind the ViT at random weights, "
            "for weights_path holds the ViT alone; start from a whole detector (-t CKPT), or set finetune: False "
            "instead, which freezes the ViT"
        )
