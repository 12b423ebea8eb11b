"""YAML -> one frozen `ExperimentConfig`, or one error that lists every fault.

The order: read and merge the files (`engine.yaml_dialect`), apply `-u`, bring official freedoms into one form
(`engine.config_keys`), check every field, derive what depends on the run's length and size
(`engine.derived_values`), check the rules between fields. No data, no weights and no device are touched.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from data.config import ClassTextsConfig, DataConfig, loaders, multiscale_sides
from data.errors import UserError
from data.section import (
    LOADING,
    RULES_LATER,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PortablePath,
    PositiveInt,
    Section,
    broken_rules,
)
from engine import derived_values
from engine.config_keys import describe, drop_inactive, to_own_form
from engine.yaml_dialect import (
    OVERRIDE,
    RECIPE,
    Statement,
    get_path,
    leaves,
    merge,
    parse_overrides,
    read_with_includes,
    set_path,
    stated,
)
from models.config import ModelConfig, TextEncoderConfig, memory_tokens

Momentum = Annotated[float, Field(ge=0, lt=1)]


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise PydanticCustomError("pattern", "{text}", {"text": f"is no regular expression ({error})"}) from None
    return text


class ScalerConfig(Section):
    """Scales the loss, with fp16 only."""

    only = {"type": "GradScaler"}
    enabled: bool = True
    """False switches the scaling off."""


class EmaConfig(Section):
    """Averages the weights: decay d = decay x (1 - exp(-u / warmups)) at update u (docs/deimv2.md, AMP, EMA)."""

    only = {"type": "ModelEMA"}
    decay: Fraction = 0.9999
    """Share of the old average that an update keeps, in the end; at most 1 - 20/steps unless stated."""
    warmups: NonNegativeInt = 1000
    """Optimiser steps; 0 means the full decay from the first update on. At most steps/20 unless stated."""
    start: NonNegativeInt = 0
    """First updates to skip."""


class ParamGroupConfig(Section):
    """Gives some parameters their own settings; what it leaves out comes from the optimizer."""

    params: Annotated[str, AfterValidator(_regular_expression)]
    """Regular expression searched in full parameter names."""
    lr: NonNegativeFloat | None = None
    """Learning rate; scaled with the batch unless stated."""
    weight_decay: NonNegativeFloat | None = None
    """Decoupled weight decay."""


class OptimizerConfig(Section):
    """Sets up the optimiser."""

    only = {"type": "AdamW"}
    params: tuple[ParamGroupConfig, ...] = ()
    """Parameter groups; names that match none form the last one."""
    lr: NonNegativeFloat
    """Highest learning rate; a recipe's is scaled with the batch."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Momenta of the gradient and of its square."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""


class TextsConfig(ClassTextsConfig):
    """Chooses the class texts and their encoder, read where text is fused (own addition)."""

    encoder: TextEncoderConfig = TextEncoderConfig()


@dataclass(frozen=True)
class Provenance:
    """Where the values come from: who stated which (by dotted path), and what was derived."""

    stated: dict[str, Statement] = field(default_factory=dict)
    log: tuple[derived_values.Note, ...] = ()
    file: str | None = None
    """The config file that was asked for."""

    def statement(self, path: str) -> Statement | None:
        """Return the highest statement about `path`, a part of it, or a section that holds it."""
        path = path.partition("[")[0]
        related = (
            said
            for leaf, said in self.stated.items()
            if f"{leaf}.".startswith(f"{path}.") or f"{path}.".startswith(f"{leaf}.")
        )
        return max(related, default=None)

    def rank(self, path: str) -> int:
        """Return the rank of that statement; 0 for a recipe's or none."""
        said = self.statement(path)
        return 0 if said is None else said.rank


class ExperimentConfig(DataConfig, ModelConfig):
    """Describes the whole experiment; attributes carry the official YAML names."""

    without_effect = (
        # Built from nothing here: other backbones, encoders, decoders and losses of the official repository.
        "HGNetv2", "PResNet", "LiteEncoder", "DFINETransformer", "RTDETRTransformerv2", "DFINECriterion",
        # Without effect under the flat-cosine schedule, or bookkeeping of the original.
        "lr_scheduler", "lr_warmup_scheduler", "last_epoch", "find_unused_parameters", "checkpoint_freq",
        "print_method", "print_rank", "local_rank", "test_only",
    )  # fmt: skip
    only = {
        "task": "detection", "evaluator": {"type": "CocoEvaluator", "iou_types": ["bbox"]},
        "postprocessor": "PostProcessor", "use_focal_loss": True, "lrsheduler": "flatcosine",
    }  # fmt: skip
    texts: TextsConfig = TextsConfig()
    epoches: PositiveInt
    """Length of the run, epochs."""
    flat_epoch: NonNegativeInt = 0
    """Epoch in which the learning rate starts to fall; derived from `epoches` where no file states it."""
    no_aug_epoch: NonNegativeInt = 0
    """Last epochs, without strong augmentation and at the lowest learning rate; derived as `flat_epoch` is."""
    lr_gamma: Fraction = 0.5
    """Lowest learning rate over the highest."""
    warmup_iter: NonNegativeInt = 2000
    """Optimiser steps of the warm-up; at most 5 % of the run unless stated."""
    optimizer: OptimizerConfig
    clip_max_norm: NonNegativeFloat = 0.0
    """Largest global gradient norm; 0 switches clipping off."""
    use_amp: bool = False
    """Train in mixed precision on a GPU."""
    scaler: ScalerConfig = ScalerConfig()
    compile: bool = False
    """Train with torch.compile: seconds to minutes at the first batch of each size, faster steps then (own
    addition)."""
    use_ema: bool = False
    """Judge and keep an average of the weights."""
    ema: EmaConfig = EmaConfig()
    sync_bn: bool = False
    """SyncBatchNorm, under torchrun on GPUs only."""
    eval_interval_epochs: PositiveInt = 1
    """Epochs between evaluations (own addition)."""
    early_stopping_patience: PositiveInt | None = None
    """Epochs without a better AP after which to stop; null never stops (own addition)."""
    max_nonfinite_steps: PositiveInt = 10
    """Steps in a row with a NaN or infinite loss after which to stop (own addition)."""
    seed: NonNegativeInt = 0
    """Of weights, order and augmentation."""
    device: str = ""
    """Such as cpu or cuda:0; empty chooses."""
    print_freq: PositiveInt = 10
    """Optimiser steps between log lines (never more than 10)."""
    output_dir: PortablePath = Path("outputs")
    """Run folder; outputs/NAME of the config file where no file states it."""
    summary_dir: PortablePath | None = None
    """TensorBoard folder; null puts it into the run folder."""
    loggers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """Where curves and pictures go beside log.jsonl; MLflow and Weights & Biases (wandb) where the package is installed
    (own addition)."""
    resume: PortablePath | None = None
    """Checkpoint to go on from exactly."""
    tuning: PortablePath | None = None
    """Checkpoint or weight file to start a new run from."""
    tuning_class_map: dict[str, str] = {}
    """Class of the data set: class of the weights of `tuning` whose rows of the heads it starts from (own addition)."""

    _provenance: Provenance = Provenance()
    """Empty in a config out of a checkpoint."""

    @property
    def file(self) -> str | None:
        """The file it was loaded from; None for a config out of a checkpoint."""
        return self._provenance.file

    def origin(self, key: str) -> str | None:
        """Say who gave a dotted key its value; None where nobody did, or nobody is known."""
        derived = [
            note.text for note in self._provenance.log if note.text.startswith((f"{key}:", f"{key}[", f"{key}."))
        ]
        said = self._provenance.statement(key)
        if derived:
            return f"derived: {derived[-1].removeprefix(f'{key}: ')}"
        return said and f"{'from the recipe' if said.rank == RECIPE else 'stated by'} {said.source}"

    def derived_in_use(self) -> list[derived_values.Note]:
        """List what was derived, but for values of what is switched off (MixUp of probability 0, say)."""
        values = config_to_dict(self)
        return [note for note in self._provenance.log if derived_values.is_in_use(values, note.text.partition(":")[0])]

    def __eq__(self, other: object) -> bool:
        """Equal settings; where they came from does not count."""
        return isinstance(other, ExperimentConfig) and self.__dict__ == other.__dict__

    def rules(self) -> Iterator[str]:
        yield from ModelConfig.rules(self)
        yield from DataConfig.rules(self)
        yield from self._schedule_rules()
        yield from self._token_rules()
        yield from self._rate_rules()

    def _schedule_rules(self) -> Iterator[str]:
        epochs, flat, no_aug = self.epoches, self.flat_epoch, self.no_aug_epoch
        advice = derived_values.Schedule.of(epochs)
        fix = (
            f"for {epochs} epochs try flat_epoch={advice.flat} no_aug_epoch={advice.no_aug}, leave both out of the "
            f"config files to have them derived, or give -u epoches={epochs} to have them rescaled"
        )
        if no_aug >= epochs:
            yield f"no_aug_epoch: {no_aug} leaves no epoch of epoches {epochs} with augmentation; {fix}"
        elif flat > epochs - no_aug:
            yield (
                f"flat_epoch: {flat} is after the last augmented epoch, epoches {epochs} - no_aug_epoch {no_aug} = "
                f"{epochs - no_aug}; {fix}"
            )
        values = config_to_dict(self)
        for key in derived_values.EPOCHS:
            value = get_path(values, key)
            last = value[-1] if isinstance(value, list) else value
            if last is not None and last > epochs and derived_values.is_in_use(values, key):
                yield (
                    f"{key}: {value} lies beyond the run's epoches {epochs}; adapt it, or leave it out of the config "
                    "file to have it derived from epoches, flat_epoch and no_aug_epoch"
                )

    def _token_rules(self) -> Iterator[str]:
        if self.DEIMTransformer is None:
            return
        queries = self.DEIMTransformer.num_queries
        for name, loader in loaders(self).items():
            if (resize := loader.dataset.transforms.resize) and (tokens := memory_tokens(*resize.size)) < queries:
                yield (
                    f"{name}.dataset.transforms.ops: Resize to {list(resize.size)} gives {tokens} tokens, fewer than "
                    f"DEIMTransformer.num_queries {queries}; lower num_queries or enlarge the images"
                )
        side = min(multiscale_sides(self.train_dataloader.collate_fn), default=None)
        if side is not None and (tokens := memory_tokens(side, side)) < queries:
            yield (
                f"train_dataloader.collate_fn.base_size: multi-scale goes down to {side} pixels, whose {tokens} tokens "
                f"are fewer than DEIMTransformer.num_queries {queries}; lower num_queries, raise base_size, or set "
                "base_size_repeat to ~"
            )

    def _rate_rules(self) -> Iterator[str]:
        factor = None if self.DINOv3STAs is None else self.DINOv3STAs.backbone_lr_factor
        groups = self.optimizer.params
        of_vit = [index for index, group in enumerate(groups) if derived_values.is_of_vit(group.params)]
        if factor is None or self.train_dataloader.total_batch_size == "auto":
            return  # with `auto`, the rates are derived later
        if not of_vit:
            yield (
                "DINOv3STAs.backbone_lr_factor: no group of optimizer.params names the ViT's parameters, whose rate it "
                "sets; take the groups of configs/deimv2/deimv2_dinov3_s_coco.yml, or remove it"
            )
        for index in of_vit:
            rate = groups[index].lr
            if rate is None or not math.isclose(rate, factor * self.optimizer.lr):
                yield (
                    f"DINOv3STAs.backbone_lr_factor: {factor} x optimizer.lr {self.optimizer.lr:g} contradicts "
                    f"optimizer.params[{index}].lr {rate}, which is stated; remove one of them"
                )


def merge_yaml(path: str | Path) -> dict[str, Any]:
    """Read a config file with its includes merged, before anything is checked or derived.

    Raises:
        UserError: A file is missing, damaged or includes itself.
    """
    return read_with_includes(Path(path))[0]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Load the experiment that `path` describes, with `overrides` (as "a.b=c") on top and everything derived.

    Reads YAML files and environment variables named in paths; no data and no weights, but for the training
    annotations where `num_classes` is `auto`.

    Raises:
        UserError: listing every fault, with dotted keys, what was found and how to mend it.
    """
    path = Path(path)
    merged, said = read_with_includes(path)
    changes = parse_overrides(overrides, merged)
    provenance = Provenance(dict(leaves(merge(said, stated(changes, Statement(OVERRIDE, "-u"))))))
    values = to_own_form(merge(merged, changes), ExperimentConfig, provenance.rank)
    unstated = [key for key in ("flat_epoch", "no_aug_epoch", "output_dir") if values.get(key) is None]
    for key in unstated:
        values.pop(key, None)
        provenance.stated.pop(key, None)
    counts = values.get("num_classes") == "auto"
    config = _checked_fields(values | ({"num_classes": 1} if counts else {}), str(path), LOADING)
    values = config_to_dict(config) | dict.fromkeys(unstated)
    notes = derived_values.at_load(values, provenance.rank, path.stem, merged.get("epoches"))
    if counts:
        from data.coco import count_classes  # configs are looked at without numpy and OpenCV

        dataset = config.train_dataloader.dataset
        dataset.require_paths("train_dataloader.dataset")
        values["num_classes"] = count_classes(dataset.ann_file, dataset.img_folder)
        text = f"num_classes: auto -> {values['num_classes']} (categories of {dataset.ann_file.as_posix()})"
        notes.append(derived_values.Note(text, overrides=False))
    return _checked(values, str(path), Provenance(provenance.stated, tuple(notes), path.as_posix()))


def apply_overrides(config: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """Put `overrides` on top of a finished config, such as a checkpoint's.

    Nothing is derived again, except that an overridden `eval_spatial_size` is the input size everywhere.

    Raises:
        UserError: as `load_config`.
    """
    values = config_to_dict(config)
    changes = parse_overrides(overrides, values)
    new = Provenance(dict(leaves(stated(changes, Statement(OVERRIDE, "-u")))))
    values = config_to_dict(
        _checked_fields(to_own_form(merge(values, changes), ExperimentConfig, new.rank), "-u", LOADING)
    )
    notes = derived_values.apply(values, derived_values.input_sizes(values, new.rank), new.rank)
    known = config._provenance
    if known.file is None:  # out of a checkpoint: nothing will be derived from who said what
        return _checked(values, "-u", known)
    return _checked(values, "-u", Provenance(known.stated | new.stated, (*known.log, *notes), known.file))


def with_batch(config: ExperimentConfig, total: int, steps: int, why: str) -> ExperimentConfig:
    """Replace `auto` in `total_batch_size` and `accumulation_steps`, and derive what follows: the learning rates."""
    values, notes, rank = config_to_dict(config), [], config._provenance.rank
    for path, number in (("train_dataloader.total_batch_size", total), ("accumulation_steps", steps)):
        if get_path(values, path) == "auto":
            set_path(values, path, number)
            notes.append(derived_values.Note(f"{path}: auto -> {number} ({why})", overrides=False))
    if config.train_dataloader.total_batch_size == "auto":
        notes += derived_values.apply(values, derived_values.learning_rates(values, rank), rank)
    return _derived(config, values, notes)


def derive_run_length(config: ExperimentConfig, steps_per_epoch: int) -> ExperimentConfig:
    """Derive what depends on the number T of optimiser steps, `epoches` x `steps_per_epoch`: warm-up and EMA.

    Warm-up becomes at most 5 % of T, the EMA's decay at most 1 - 20/T, its warm-up at most T/20, unless a
    config file or `-u` states them. A config out of a checkpoint comes back unchanged: it was derived before.
    """
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch is {steps_per_epoch}")
    if config.file is None:
        return config
    values, rank = config_to_dict(config), config._provenance.rank
    changes = derived_values.run_length(values, rank, config.epoches * steps_per_epoch)
    return _derived(config, values, derived_values.apply(values, changes, rank))


def _derived(
    config: ExperimentConfig, values: dict[str, Any], notes: Sequence[derived_values.Note]
) -> ExperimentConfig:
    known = config._provenance
    return _checked(values, "the derived config", replace(known, log=(*known.log, *notes)))


def config_to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Return every setting as plain dicts, lists and scalars, for checkpoints, YAML and JSON."""
    return config.model_dump(mode="json")


def config_from_dict(values: Mapping[str, Any]) -> ExperimentConfig:
    """Build a config from what `config_to_dict` gave: nothing is derived or filled in from the environment.

    Raises:
        UserError: listing every fault.
    """
    return _checked(drop_inactive(merge({}, values), ExperimentConfig), "the stored config", Provenance())


def _checked(values: dict[str, Any], source: str, provenance: Provenance) -> ExperimentConfig:
    config = _checked_fields(values, source, RULES_LATER)
    if problems := list(broken_rules(config)):
        raise _faults(source, problems)
    config._provenance = provenance
    return config


def _checked_fields(values: dict[str, Any], source: str, context: dict[str, str]) -> ExperimentConfig:
    """Validate strictly through JSON: lists become tuples and text paths, but "5" is no number, nor is True."""
    try:
        text = json.dumps(values)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: no plain settings ({error})") from None
    try:
        return ExperimentConfig.model_validate_json(text, strict=True, context=context)
    except ValidationError as error:
        raise _faults(source, describe(error, ExperimentConfig, values)) from None


def _faults(source: str, problems: Sequence[str]) -> UserError:
    return UserError(f"{source}: {len(problems)} fault{'s' * (len(problems) > 1)} in the config:", problems)
