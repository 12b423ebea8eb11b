"""The data's part of the config: names and defaults of DEIMv2's YAML dialect (spec sections 10 and 11).

Paths may start with `~` and contain environment variables, written `$NAME` or `${NAME}` on every platform (an
addition of ours to the dialect). `engine.config.load_config` replaces those that are set and leaves the others as they
stand, so that a model can be built or a config looked at without the data; `require_variables`, called by whoever is
about to use them, names the variable that is missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from data.errors import UserError
from data.synthetic_config import SyntheticConfig

PositiveInt = Annotated[int, Field(ge=1, le=1_000_000)]
NonNegativeInt = Annotated[int, Field(ge=0, le=1_000_000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PortablePath = Annotated[Path, PlainSerializer(lambda path: path.as_posix(), return_type=str)]
"""A path, dumped with forward slashes: a config written on Windows can be read elsewhere."""
Range = tuple[float, float]
_VARIABLE = re.compile(r"\$(?=\{\w+\}|[^\W\d])\{?(\w+)\}?")


def expand_path(text: str) -> str:
    """`text` with `~` and the environment variables that are set written out."""
    return _VARIABLE.sub(lambda match: os.environ.get(match[1]) or match[0], os.path.expanduser(text))


def require_variables(paths: Mapping[str, Path]) -> None:
    """Raise UserError if a path still holds `$NAME`, that is, NAME was not set when the config was read.

    Args:
        paths: By dotted key, for the message.
    """
    problems = [
        f"{key}: {path.as_posix()} needs the environment variable {name}; set {name} to the data's folder, or give the "
        f"path: -u {key}=PATH"
        for key, path in paths.items()
        if not os.path.exists(path)
        for name in _VARIABLE.findall(str(path))
    ]
    if problems:
        raise UserError("The config does not say where the data are:", problems)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MosaicOp(_Section):
    """Four images on one canvas, turned and scaled (spec section 10.2)."""

    type: Literal["Mosaic"] = "Mosaic"
    output_size: PositiveInt = 320
    """Shorter side of each of the four images, pixels."""
    rotation_range: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Largest angle to either side, degrees."""
    translation_range: tuple[Fraction, Fraction] = (0.1, 0.1)
    """Largest shift in x and y, fraction of the canvas."""
    scaling_range: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.5, 1.5)
    probability: Fraction = 1.0
    """On top of `mosaic_prob`."""
    fill_value: Annotated[int, Field(ge=0, le=255)] = 0
    use_cache: bool = True
    max_cached_images: Annotated[int, Field(ge=4)] = 50
    random_pop: bool = True
    """Which cached image goes when the cache is full: a random one, or the oldest."""


class RandomPhotometricDistortOp(_Section):
    """Brightness, contrast, saturation, hue, channel order; each with its own coin."""

    type: Literal["RandomPhotometricDistort"] = "RandomPhotometricDistort"
    brightness: Range = (0.875, 1.125)
    contrast: Range = (0.5, 1.5)
    saturation: Range = (0.5, 1.5)
    hue: Range = (-0.05, 0.05)
    p: Fraction = 0.5


class RandomZoomOutOp(_Section):
    """The image at a random place of a larger canvas."""

    type: Literal["RandomZoomOut"] = "RandomZoomOut"
    fill: Annotated[int, Field(ge=0, le=255)] = 0
    side_range: tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=1)]] = (1.0, 4.0)
    p: Fraction = 0.5


class RandomIoUCropOp(_Section):
    """A random crop that keeps at least one box centre."""

    type: Literal["RandomIoUCrop"] = "RandomIoUCrop"
    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.3
    max_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_aspect_ratio: Annotated[float, Field(gt=0)] = 0.5
    max_aspect_ratio: Annotated[float, Field(gt=0)] = 2.0
    sampler_options: tuple[float, ...] | None = None
    """Minimum IoUs to draw from; null means 0, 0.1, 0.3, 0.5, 0.7, 0.9, 1."""
    trials: PositiveInt = 40
    p: Fraction = 1.0


class SanitizeBoundingBoxesOp(_Section):
    """Drops boxes that became too small."""

    type: Literal["SanitizeBoundingBoxes"] = "SanitizeBoundingBoxes"
    min_size: NonNegativeFloat = 1.0
    """Pixels."""
    min_area: NonNegativeFloat = 1.0
    """Square pixels."""


class RandomHorizontalFlipOp(_Section):
    """Left becomes right."""

    type: Literal["RandomHorizontalFlip"] = "RandomHorizontalFlip"
    p: Fraction = 0.5


class RandomVerticalFlipOp(_Section):
    """Top becomes bottom: for surfaces without an up and down."""

    type: Literal["RandomVerticalFlip"] = "RandomVerticalFlip"
    p: Fraction = 0.5


class RandomRotate90Op(_Section):
    """One, two or three quarter turns: for surfaces without a direction."""

    type: Literal["RandomRotate90"] = "RandomRotate90"
    p: Fraction = 0.5


class RandomGammaOp(_Section):
    """Grey-level jitter: value^gamma + shift, values in [0, 1], the same for all channels."""

    type: Literal["RandomGamma"] = "RandomGamma"
    gamma: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.7, 1.4)
    """Drawn evenly on a logarithmic scale; below 1 is brighter."""
    shift: tuple[Annotated[float, Field(ge=-1, le=1)], Annotated[float, Field(ge=-1, le=1)]] = (-0.05, 0.05)
    """Fraction of the range of values."""
    p: Fraction = 0.5


class ResizeOp(_Section):
    """To a fixed size, aspect not kept, antialiased bilinear."""

    type: Literal["Resize"] = "Resize"
    size: tuple[PositiveInt, PositiveInt]
    """Height and width, pixels; multiples of 32."""


class ConvertPILImageOp(_Section):
    """Scaling to [0, 1] in float32: done on the device here, stated for the dialect's sake."""

    type: Literal["ConvertPILImage"] = "ConvertPILImage"
    dtype: Literal["float32"] = "float32"
    scale: Literal[True] = True


class NormalizeOp(_Section):
    """Mean and standard deviation per RGB channel, in units of [0, 1]; done on the device here."""

    type: Literal["Normalize"] = "Normalize"
    mean: tuple[float, float, float]
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class ConvertBoxesOp(_Section):
    """Boxes to cxcywh in [0, 1]."""

    type: Literal["ConvertBoxes"] = "ConvertBoxes"
    fmt: Literal["cxcywh"] = "cxcywh"
    normalize: Literal[True] = True


Op = Annotated[
    MosaicOp
    | RandomPhotometricDistortOp
    | RandomZoomOutOp
    | RandomIoUCropOp
    | SanitizeBoundingBoxesOp
    | RandomHorizontalFlipOp
    | RandomVerticalFlipOp
    | RandomRotate90Op
    | RandomGammaOp
    | ResizeOp
    | ConvertPILImageOp
    | NormalizeOp
    | ConvertBoxesOp,
    Field(discriminator="type"),
]
OpName = Literal[
    "Mosaic",
    "RandomPhotometricDistort",
    "RandomZoomOut",
    "RandomIoUCrop",
    "SanitizeBoundingBoxes",
    "RandomHorizontalFlip",
    "RandomVerticalFlip",
    "RandomRotate90",
    "RandomGamma",
    "Resize",
    "ConvertPILImage",
    "Normalize",
    "ConvertBoxes",
]


class PolicyConfig(_Section):
    """When the strong augmentations are on (spec section 10.3)."""

    name: Literal["stop_epoch", "default"] = "default"
    """`default`: always on."""
    epoch: NonNegativeInt | tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] = 0
    """[start, flat, stop]; one number means: off from that epoch on."""
    ops: tuple[OpName, ...] = ()


class TransformsConfig(_Section):
    """The transforms of one image, in order."""

    type: Literal["Compose"] = "Compose"
    ops: tuple[Op, ...] = ()
    policy: PolicyConfig | None = None
    mosaic_prob: Fraction = 0.0
    """Chance per image of the Mosaic op, while the policy has it on."""

    @property
    def resize(self) -> ResizeOp | None:
        """The Resize op, which fixes the size that leaves the data set."""
        return next((op for op in self.ops if isinstance(op, ResizeOp)), None)

    @property
    def mosaic(self) -> MosaicOp | None:
        """The Mosaic op, if there is one."""
        return next((op for op in self.ops if isinstance(op, MosaicOp)), None)

    @property
    def normalize(self) -> NormalizeOp | None:
        """The Normalize op, if there is one."""
        return next((op for op in self.ops if isinstance(op, NormalizeOp)), None)


class DatasetConfig(_Section):
    """A folder of images and its COCO annotation file."""

    type: Literal["CocoDetection"] = "CocoDetection"
    img_folder: PortablePath
    ann_file: PortablePath
    return_masks: Literal[False] = False
    transforms: TransformsConfig = TransformsConfig()
    cache_mib: NonNegativeInt = 1024
    """Memory for decoded training images, MiB, shared by the workers of a process; at most half of what is free.
    0 reads every image from its file each time. Never changes a result."""

    def require_paths(self, section: str) -> None:
        """Raise UserError if a path needs an environment variable; `section` is this section's dotted name."""
        require_variables({f"{section}.img_folder": self.img_folder, f"{section}.ann_file": self.ann_file})


class CollateConfig(_Section):
    """What happens to a whole batch: MixUp, CopyBlend, multi-scale (spec section 10.4)."""

    type: Literal["BatchImageCollateFunction"] = "BatchImageCollateFunction"
    stop_epoch: NonNegativeInt | None = None
    """First epoch without multi-scale; null means never."""
    ema_restart_decay: Fraction = 0.9999
    base_size: Annotated[int, Field(ge=32, le=8192)] = 640
    """Side of the square that multi-scale varies around, pixels."""
    base_size_repeat: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Weight of `base_size` among the sizes; null switches multi-scale off."""
    mixup_prob: Fraction = 0.0
    mixup_epochs: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)
    """First epoch with, first epoch without."""
    copyblend_prob: Fraction = 0.0
    copyblend_epochs: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)
    """First epoch with, first epoch without."""
    copyblend_type: Literal["blend", "paste"] = "blend"
    """`paste` overwrites instead of blending."""
    area_threshold: NonNegativeFloat = 100.0
    """Smallest box to copy, square pixels."""
    num_objects: PositiveInt = 3
    with_expand: bool = False
    expand_ratios: tuple[NonNegativeFloat, NonNegativeFloat] = (0.1, 0.25)
    random_num_objects: bool = False


class LoaderConfig(_Section):
    """One split and how it is read."""

    type: Literal["DataLoader"] = "DataLoader"
    dataset: DatasetConfig
    shuffle: bool = False
    num_workers: NonNegativeInt = 0
    """Worker processes; 0 reads in the main process."""
    drop_last: bool = False
    collate_fn: CollateConfig = CollateConfig()
    total_batch_size: PositiveInt | None = None
    """Images per optimiser step: processes x micro-batch x accumulation steps."""
    batch_size: PositiveInt | None = None
    """Images per micro-batch and process; instead of `total_batch_size`."""
    repeat_factor_threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """Training only: images with a class that fewer than this fraction of the images hold come more often,
    sqrt(threshold / fraction) times on average (LVIS, Gupta et al. 2019). null: every image once an epoch."""


class DataConfig(_Section):
    """Everything that data sets and loaders are built from."""

    num_classes: PositiveInt
    remap_mscoco_category: bool = False
    """Official key, without effect: category ids are always mapped to labels by ascending id, COCO's 80 included."""
    train_dataloader: LoaderConfig
    val_dataloader: LoaderConfig
    test_dataloader: LoaderConfig | None = None
    """What it leaves out is taken from `val_dataloader`."""
    num_workers: NonNegativeInt = 0
    """Worker processes of loaders that state none themselves."""
    accumulation_steps: PositiveInt = 1
    """Micro-batches per optimiser step."""
    normal_boxes: Literal["keep", "as_negative"] = "keep"
    """Boxes of the class NORMAL: kept as a class, or dropped so that their images become negatives."""
    on_bad_data: Literal["error", "skip"] = "error"
    """Faulty images and annotations: stop, or leave them out with a warning."""
    allow_split_overlap: bool = False
    """Accept the same image in two splits."""
    synthetic: SyntheticConfig | None = None
    """Draw this data set first, if it is not there."""

    @model_validator(mode="after")
    def check_rules(self, info: ValidationInfo) -> Self:
        """Rules between fields, all at once."""
        problems = data_problems(self)
        if problems:
            raise PydanticCustomError("rules", "{problems}", {"problems": problems})
        return self


def loaders(config: DataConfig) -> dict[str, LoaderConfig]:
    """The loader sections there are, by key."""
    named = {"train_dataloader": config.train_dataloader, "val_dataloader": config.val_dataloader}
    return named if config.test_dataloader is None else {**named, "test_dataloader": config.test_dataloader}


def multiscale_sides(collate: CollateConfig) -> list[int]:
    """Sides, in pixels, that a training batch may be resized to; empty without multi-scale.

    Each in one copy, `base_size` in `base_size_repeat` copies (spec section 10.4).
    """
    if collate.base_size_repeat is None:
        return []
    base = collate.base_size
    low, high = int(base * 0.75 / 32) * 32, int(base * 1.25 / 32) * 32
    steps = range((base - low) // 32)
    return [
        *(low + 32 * i for i in steps),
        *([base] * collate.base_size_repeat),
        *(high - 32 * i for i in steps),
    ]


def data_problems(config: DataConfig) -> list[str]:
    """What cannot be read or trained on, one line each: dotted key, what is wrong, how to mend it."""
    problems = []
    for name, loader in loaders(config).items():
        problems += _loader_problems(name, loader)
        problems += _transform_problems(f"{name}.dataset.transforms", loader.dataset.transforms)
    problems += _train_problems(config)
    problems += [
        f"{name}.repeat_factor_threshold: every image is judged once; remove it here, it is for train_dataloader"
        for name, loader in loaders(config).items()
        if name != "train_dataloader" and loader.repeat_factor_threshold is not None
    ]
    normalizations = {name: loader.dataset.transforms.normalize for name, loader in loaders(config).items()}
    if len({str(normalization) for normalization in normalizations.values()}) > 1:
        problems.append(
            f"{', '.join(f'{name}.dataset.transforms.ops' for name in normalizations)}: Normalize differs between "
            "the splits (mean, std, or absent in one); the model must see all of them alike"
        )
    return problems


def _loader_problems(name: str, loader: LoaderConfig) -> list[str]:
    if loader.total_batch_size is not None and loader.batch_size is not None:
        return [f"{name}: total_batch_size and batch_size are both given; keep one and set the other to ~"]
    if loader.total_batch_size is None and loader.batch_size is None:
        return [f"{name}.total_batch_size: missing; give it (or batch_size, per process)"]
    return []


def _transform_problems(path: str, transforms: TransformsConfig) -> list[str]:
    problems = []
    resizes = [op for op in transforms.ops if isinstance(op, ResizeOp)]
    if not transforms.ops:
        problems.append(
            f"{path}.ops: empty; a file with `ops: ~` (such as dataset/custom_detection.yml) must be included before "
            "the recipe, or list the ops"
        )
    elif len(resizes) != 1:
        problems.append(f"{path}.ops: found {len(resizes)} Resize ops, expected exactly one")
    for resize in resizes:
        if resize.size[0] % 32 or resize.size[1] % 32:
            problems.append(f"{path}.ops: Resize to {list(resize.size)}; height and width must be multiples of 32")
    for op in transforms.ops:
        if isinstance(op, MosaicOp) and op.scaling_range[0] > op.scaling_range[1]:
            problems.append(f"{path}.ops: Mosaic scaling_range {list(op.scaling_range)} must rise")
        if isinstance(op, RandomGammaOp) and (op.gamma[0] > op.gamma[1] or op.shift[0] > op.shift[1]):
            problems.append(f"{path}.ops: RandomGamma gamma {list(op.gamma)} and shift {list(op.shift)} must rise")
        if isinstance(op, RandomZoomOutOp) and op.side_range[0] > op.side_range[1]:
            problems.append(f"{path}.ops: RandomZoomOut side_range {list(op.side_range)} must rise")
        if isinstance(op, RandomIoUCropOp) and (
            op.min_scale > op.max_scale or op.min_aspect_ratio > op.max_aspect_ratio
        ):
            problems.append(f"{path}.ops: RandomIoUCrop has a minimum above its maximum")
        if isinstance(op, RandomPhotometricDistortOp):
            for key in ("brightness", "contrast", "saturation", "hue"):
                low, high = getattr(op, key)
                if low > high or (low < 0 and key != "hue") or (key == "hue" and not -0.5 <= low <= high <= 0.5):
                    problems.append(f"{path}.ops: RandomPhotometricDistort {key} [{low}, {high}] is no possible range")
    return problems


def _train_problems(config: DataConfig) -> list[str]:
    train, problems = config.train_dataloader, []
    steps = config.accumulation_steps
    if train.total_batch_size is not None and train.total_batch_size % steps:
        problems.append(
            f"train_dataloader.total_batch_size: {train.total_batch_size} cannot be split into accumulation_steps "
            f"{steps}; choose a multiple of {steps}, or other accumulation_steps"
        )
    resize = train.dataset.transforms.resize
    base, repeat = train.collate_fn.base_size, train.collate_fn.base_size_repeat
    if resize is not None and repeat is not None and resize.size != (base, base):
        problems.append(
            f"train_dataloader.collate_fn.base_size: multi-scale resizes to squares around {base} pixels, but the op "
            f"Resize makes {list(resize.size)}; let both follow eval_spatial_size by stating only that, make them "
            "equal, or set base_size_repeat to ~"
        )
    policy = train.dataset.transforms.policy
    if policy is not None and isinstance(policy.epoch, tuple) and list(policy.epoch) != sorted(policy.epoch):
        problems.append(
            f"train_dataloader.dataset.transforms.policy.epoch: {list(policy.epoch)} must rise (start, flat, stop)"
        )
    for key in ("mixup_epochs", "copyblend_epochs"):
        first, last = getattr(train.collate_fn, key)
        if first > last:
            problems.append(
                f"train_dataloader.collate_fn.{key}: [{first}, {last}] must rise (first with, first without)"
            )
    low, high = train.collate_fn.expand_ratios
    if low > high:
        problems.append(f"train_dataloader.collate_fn.expand_ratios: [{low}, {high}] must rise")
    return problems
