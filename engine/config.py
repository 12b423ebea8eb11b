"""YAML -> one frozen `ExperimentConfig`, or one error that lists every fault.

The order: read and merge the files (`engine.yaml_dialect`), apply `-u`, drop official keys that mean nothing
here, check every field, derive what depends on the run's length and size (`engine.derive`), check the rules
between fields. No data, no weights and no device are touched.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from data.config import DataConfig, PortablePath, data_problems, expand_path, loaders, multiscale_sides
from data.errors import UserError
from data.text_config import ClassTextsConfig
from engine import derive
from engine.config_errors import describe
from engine.official_keys import to_own_form
from engine.yaml_dialect import (
    OVERRIDE,
    OWN_FILE,
    leaves,
    merge,
    parse_overrides,
    ranked,
    read_with_includes,
    set_path,
)
from models.config import DEIMV2_KEYS, ModelConfig, TextEncoderConfig, memory_tokens, model_problems

log = logging.getLogger(__name__)

PositiveInt = Annotated[int, Field(ge=1, le=1_000_000)]
NonNegativeInt = Annotated[int, Field(ge=0, le=1_000_000_000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EvaluatorConfig(_Section):
    """Section `evaluator`."""

    type: Literal["CocoEvaluator"] = "CocoEvaluator"
    iou_types: tuple[Literal["bbox"]] = ("bbox",)


class ScalerConfig(_Section):
    """Section `scaler`: loss scaling, used with fp16 only."""

    type: Literal["GradScaler"] = "GradScaler"
    enabled: bool = True


class EmaConfig(_Section):
    """Section `ema`: decay d = decay x (1 - exp(-u / warmups)) at update u (spec section 9.4)."""

    type: Literal["ModelEMA"] = "ModelEMA"
    decay: Fraction = 0.9999
    warmups: NonNegativeInt = 1000
    """Optimiser steps; 0 means the full decay from the first update on."""
    start: NonNegativeInt = 0
    """First updates to skip."""


class ParamGroupConfig(_Section):
    """One entry of `optimizer.params`; what it leaves out comes from the optimizer."""

    params: str
    """Regular expression searched in full parameter names."""
    lr: NonNegativeFloat | None = None
    weight_decay: NonNegativeFloat | None = None

    @field_validator("params")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError) as error:
            raise PydanticCustomError("pattern", "{text}", {"text": f"is no regular expression ({error})"}) from None
        return value


class OptimizerConfig(_Section):
    """Section `optimizer`."""

    type: Literal["AdamW"] = "AdamW"
    params: tuple[ParamGroupConfig, ...] = ()
    """Parameter groups; names that match none form the last one."""
    lr: NonNegativeFloat
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.01


class TextsConfig(ClassTextsConfig):
    """Section `texts`: the class texts and their encoder, read where text is fused (own addition)."""

    encoder: TextEncoderConfig = TextEncoderConfig()


@dataclass(frozen=True)
class Provenance:
    """Where the values come from: who stated which (rank by dotted path), and what was derived."""

    stated: dict[str, int]
    log: tuple[derive.Note, ...] = ()

    def rank(self, path: str) -> int:
        """The highest rank that stated `path`, a part of it, or a section that holds it; 0 for a recipe or nobody."""
        return max(
            (
                rank
                for leaf, rank in self.stated.items()
                if leaf == path or leaf.startswith(f"{path}.") or path.startswith(f"{leaf}.")
            ),
            default=0,
        )


class ExperimentConfig(DataConfig, ModelConfig):
    """The whole experiment; attributes carry the official YAML names."""

    task: Literal["detection"] = "detection"
    evaluator: EvaluatorConfig = EvaluatorConfig()
    texts: TextsConfig = TextsConfig()
    epoches: PositiveInt
    """Length of the run, epochs."""
    flat_epoch: NonNegativeInt
    """Epoch in which the learning rate starts to fall."""
    no_aug_epoch: NonNegativeInt
    """Last epochs, without strong augmentation and at the lowest learning rate."""
    lrsheduler: Literal["flatcosine"] = "flatcosine"
    lr_gamma: Fraction = 0.5
    """Lowest learning rate over the highest."""
    warmup_iter: NonNegativeInt = 2000
    """Optimiser steps."""
    optimizer: OptimizerConfig
    clip_max_norm: NonNegativeFloat = 0.0
    """Largest global gradient norm; 0 switches clipping off."""
    use_amp: bool = False
    scaler: ScalerConfig = ScalerConfig()
    use_ema: bool = False
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
    device: str = ""
    """Such as cpu or cuda:0; empty chooses."""
    print_freq: PositiveInt = 10
    """Optimiser steps between log lines (never more than 10)."""
    output_dir: PortablePath
    """Run folder."""
    summary_dir: PortablePath | None = None
    """TensorBoard folder; null puts it into the run folder."""
    resume: PortablePath | None = None
    tuning: PortablePath | None = None
    tuning_class_map: dict[str, str] = {}
    """Class of the data set: class of the weights of `tuning` whose rows of the heads it starts from (own addition)."""

    _provenance: Provenance | None = PrivateAttr(default=None)

    @property
    def derivation_log(self) -> tuple[str, ...]:
        """What `load_config` derived, one line each; empty for a config out of a checkpoint."""
        return tuple(note.text for note in self._provenance.log) if self._provenance else ()

    def log_derived(self) -> None:
        """Say what was derived; as a warning where a person had stated something else."""
        for note in self._provenance.log if self._provenance else ():
            log.log(logging.WARNING if note.overrides else logging.INFO, "derived: %s", note.text)

    def __eq__(self, other: object) -> bool:
        """Equal settings; where they came from does not count."""
        return isinstance(other, ExperimentConfig) and self.__dict__ == other.__dict__

    @model_validator(mode="after")
    def check_rules(self, info: ValidationInfo) -> Self:
        """Rules between fields, all at once; left out for the draft that derivations start from."""
        if info.context == _DRAFT:
            return self
        problems = [*model_problems(self), *data_problems(self), *run_problems(self)]
        if problems:
            raise PydanticCustomError("rules", "{problems}", {"problems": problems})
        return self


_DRAFT = {"draft": True}
_MAX_NAME_BYTES = 255
"""Of a file or folder, on all common file systems."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The experiment that `path` describes, with `overrides` (as "a.b=c") on top and everything derived.

    Reads YAML files and environment variables named in paths; no data and no weights.

    Raises:
        UserError: listing every fault, with dotted keys, what was found and how to mend it.
    """
    path = Path(path)
    merged, ranks = read_with_includes(path)
    changes = parse_overrides(overrides, merged)
    rank = Provenance(stated := dict(leaves(merge(ranks, ranked(changes, OVERRIDE))))).rank
    values = _without_inactive_model(to_own_form(merge(merged, changes), rank), rank)
    provisional = derive.fill_missing(values)
    draft = _build(values, str(path), draft=True)
    before = merged.get("epoches")
    values, notes = derive.at_load(draft, _expanded(draft), rank, provisional, path.stem, before)
    config = _build(values, str(path))
    config._provenance = Provenance(stated, tuple(notes))
    return config


def apply_overrides(config: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """A finished config, such as a checkpoint's, with `overrides` on top.

    Nothing is derived again, except that an overridden `eval_spatial_size` is the input size everywhere.

    Raises:
        UserError: as `load_config`.
    """
    values = config_to_dict(config)
    changes = parse_overrides(overrides, values)
    rank = Provenance(stated := dict(leaves(ranked(changes, OVERRIDE)))).rank
    values = _without_inactive_model(to_own_form(merge(values, changes), rank), rank)
    draft = _build(values, "-u", draft=True)
    values, notes = derive.input_size(draft, _expanded(draft), rank)
    result = _build(values, "-u")
    if config._provenance is not None:
        result._provenance = Provenance(config._provenance.stated | stated, (*config._provenance.log, *notes))
    return result


def derive_run_length(config: ExperimentConfig, steps_per_epoch: int) -> tuple[ExperimentConfig, list[str]]:
    """What depends on the number of optimiser steps: warm-up and EMA (T = `epoches` x `steps_per_epoch`).

    Warm-up becomes at most 5 % of T, the EMA's decay at most 1 - 20/T, its warm-up at most T/20, unless a
    config file or `-u` states them. A config out of a checkpoint comes back unchanged: it was derived before.

    Returns:
        The new config and one line of text per changed value.
    """
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch is {steps_per_epoch}")
    known = config._provenance
    if known is None:
        return config, []
    values, notes = derive.for_length(config, config_to_dict(config), known.rank, config.epoches * steps_per_epoch)
    result = config_from_dict(values)
    result._provenance = Provenance(known.stated, (*known.log, *notes))
    return result, [note.text for note in notes]


def config_to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Every setting as plain dicts, lists and scalars, for checkpoints, YAML and JSON."""
    return config.model_dump(mode="json")


def config_from_dict(values: dict[str, Any]) -> ExperimentConfig:
    """Inverse of `config_to_dict`: nothing is derived or filled in from the environment.

    Raises:
        UserError: listing every fault.
    """
    return _build(values, "the stored config")


def run_problems(config: ExperimentConfig) -> list[str]:
    """What cannot work about schedule and sizes, one line each: dotted key, what is wrong, how to mend it."""
    return [
        *_schedule_problems(config),
        *_epoch_problems(config),
        *_size_problems(config),
        *_path_problems(config),
    ]


def _paths(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and text of every path of a config."""
    for name, value in section:
        key = f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from _paths(value, f"{key}.")
        elif isinstance(value, Path) or key == "texts.encoder.name":
            yield key, str(value)


def _expanded(config: ExperimentConfig) -> dict[str, Any]:
    """`config` as plain values, with `~` and environment variables in its paths written out."""
    values = config_to_dict(config)
    for key, text in _paths(config):
        if expand_path(text) != text:
            set_path(values, key, Path(expand_path(text)).as_posix())
    return values


def _path_problems(config: ExperimentConfig) -> list[str]:
    return [
        f"{key}: {text[:40]!r}... is no path; a name in it has a NUL or more than {_MAX_NAME_BYTES} bytes"
        for key, text in _paths(config)
        if "\0" in text or any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in Path(text).parts)
    ]


def _schedule_problems(config: ExperimentConfig) -> list[str]:
    epochs, flat, no_aug = config.epoches, config.flat_epoch, config.no_aug_epoch
    advice = derive.Schedule.of(epochs)
    fix = (
        f"for {epochs} epochs try flat_epoch={advice.flat} no_aug_epoch={advice.no_aug}, "
        f"leave both out of the config files to have them derived, or give -u epoches={epochs} to have them rescaled"
    )
    if no_aug >= epochs:
        return [f"no_aug_epoch: {no_aug} leaves no epoch of epoches {epochs} with augmentation; {fix}"]
    if flat > epochs - no_aug:
        return [
            f"flat_epoch: {flat} is after the last augmented epoch, epoches {epochs} - no_aug_epoch {no_aug} = "
            f"{epochs - no_aug}; {fix}"
        ]
    return []


def _epoch_problems(config: ExperimentConfig) -> list[str]:
    train, criterion, epochs = config.train_dataloader, config.DEIMCriterion, config.epoches
    collate, policy = train.collate_fn, train.dataset.transforms.policy
    prefix = "train_dataloader.collate_fn"
    ends: list[tuple[str, object, int | None]] = [
        (f"{prefix}.stop_epoch", collate.stop_epoch, collate.stop_epoch),
        (f"{prefix}.mixup_epochs", list(collate.mixup_epochs), collate.mixup_epochs[1]),
        (f"{prefix}.copyblend_epochs", list(collate.copyblend_epochs), collate.copyblend_epochs[1]),
    ]
    if policy is not None and policy.name == "stop_epoch":
        last = policy.epoch[-1] if isinstance(policy.epoch, tuple) else policy.epoch
        ends.append(("train_dataloader.dataset.transforms.policy.epoch", policy.epoch, last))
    if criterion is not None and criterion.matcher.change_matcher:
        last = criterion.matcher.matcher_change_epoch
        ends.append(("DEIMCriterion.matcher.matcher_change_epoch", last, last))
    return [
        f"{path}: {value} lies beyond the run's epoches {epochs}; adapt it, or leave it out of the config file "
        "to have it derived from epoches, flat_epoch and no_aug_epoch"
        for path, value, last in ends
        if last is not None and last > epochs
    ]


def _size_problems(config: ExperimentConfig) -> list[str]:
    collate, problems = config.train_dataloader.collate_fn, list[str]()
    if config.DEIMTransformer is None:
        return []
    queries = config.DEIMTransformer.num_queries
    for name, loader in loaders(config).items():
        resize = loader.dataset.transforms.resize
        if resize is None or resize.size[0] % 32 or resize.size[1] % 32:
            continue
        if memory_tokens(*resize.size) < queries:
            problems.append(
                f"{name}.dataset.transforms.ops: Resize to {list(resize.size)} gives {memory_tokens(*resize.size)} "
                f"tokens, fewer than DEIMTransformer.num_queries {queries}; lower num_queries or enlarge the images"
            )
    sides = multiscale_sides(collate)
    if sides and memory_tokens(min(sides), min(sides)) < queries:
        problems.append(
            f"train_dataloader.collate_fn.base_size: multi-scale goes down to {min(sides)} pixels, whose "
            f"{memory_tokens(min(sides), min(sides))} tokens are fewer than DEIMTransformer.num_queries {queries}; "
            "lower num_queries, raise base_size, or set base_size_repeat to ~"
        )
    return problems


def _without_inactive_model(values: dict[str, Any], rank: Callable[[str], int]) -> dict[str, Any]:
    """With `Baseline`, null for what included files say of DEIMv2: without effect, it has no place in the record.

    What the `-c` file itself or `-u` says stays, so that the rules refuse it.
    """
    if values.get("Baseline") is None:
        return values
    for key in DEIMV2_KEYS:
        if rank(key) < OWN_FILE:
            values[key] = None
    return values


def _build(values: dict[str, Any], source: str, draft: bool = False) -> ExperimentConfig:
    """Validate strictly through JSON: lists become tuples and text paths, but "5" is no number, nor is True."""
    try:
        text = json.dumps(values)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: no plain settings ({error})") from None
    try:
        return ExperimentConfig.model_validate_json(text, strict=True, context=_DRAFT if draft else None)
    except ValidationError as error:
        problems = describe(error, ExperimentConfig, values)
        raise UserError(
            f"{source}: {len(problems)} fault{'s' * (len(problems) > 1)} in the config:", problems
        ) from None
