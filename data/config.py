"""The data's part of the config and the sections' base class, `Section` (docs/deimv2.md, Configuration dialect).

Paths may start with `~` and contain environment variables, written `$NAME` or `${NAME}` on every platform (an
addition of ours to the dialect). `engine.config.load_config` replaces those that are set and leaves the others as they
stand, so that a model can be built or a config looked at without the data; `require_variables`, called by whoever is
about to use them, names the variable that is missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from data.class_descriptions import Language
from data.errors import UserError

RULES_LATER = {"rules": "later"}
"""Context of a validation after which `broken_rules` is called."""
LOADING = RULES_LATER | {"paths": "expand"}
"""The same, writing out `~` and environment variables in paths."""
_MAX_NAME_BYTES = 255
"""Of a file or folder, on all common file systems."""
_VARIABLE = re.compile(r"\$(?=\{\w+\}|[^\W\d])\{?(\w+)\}?")
_Text = TypeVar("_Text", str, Path)


def expand_path(text: str) -> str:
    """Write out `~` and the environment variables that are set."""
    return _VARIABLE.sub(lambda match: os.environ.get(match[1]) or match[0], os.path.expanduser(text))


def checked_path(value: _Text, info: ValidationInfo) -> _Text:
    """Refuse what no file can be called; while loading, write out what stands for something else."""
    text = str(value)
    if info.context == LOADING and (expanded := expand_path(text)) != text:
        text, value = expanded, type(value)(Path(expanded).as_posix())
    if "\0" in text or any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in Path(text).parts):
        fault = f"{text[:40]!r}... is no path; a name in it has a NUL or more than {_MAX_NAME_BYTES} bytes"
        raise PydanticCustomError("rule", "{fault}", {"fault": fault})
    return value


PositiveInt = Annotated[int, Field(ge=1, le=1_000_000)]
NonNegativeInt = Annotated[int, Field(ge=0, le=1_000_000_000)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Chance = Annotated[Fraction, Field(description="Chance per image.")]
Grey = Annotated[int, Field(ge=0, le=255)]
Pair = tuple[float, float]
PortablePath = Annotated[
    Path, AfterValidator(checked_path), PlainSerializer(lambda path: path.as_posix(), return_type=str)
]
"""A path, dumped with forward slashes: a config written on Windows can be read elsewhere."""


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


class Section(BaseModel):
    """A part of the config: frozen, and strict about its keys.

    Its docstring and those below its fields are what docs/reference/config.md says about it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    rising: ClassVar[tuple[str, ...]] = ()
    """Ranges that must not end before they start."""

    def rules(self) -> Iterator[str]:
        """Yield "key: fault" for each broken rule between fields, the key as seen from this section."""
        for key in self.rising:
            if list(numbers := getattr(self, key)) != sorted(numbers):
                yield f"{key}: {list(numbers)} must rise"

    @model_validator(mode="after")
    def _check_rules(self, info: ValidationInfo) -> Self:
        """Refuse broken rules, unless whoever validates the whole config lists those of all sections together."""
        if not (info.context and "rules" in info.context) and (faults := list(self.rules())):
            raise ValueError("; ".join(faults))
        return self


def broken_rules(section: Section, prefix: str = "") -> Iterator[str]:
    """Yield a line, with its dotted key, for each broken rule of a section and of the sections inside it."""
    for name, value in section:
        inside = {f"[{i}]": item for i, item in enumerate(value)} if isinstance(value, tuple) else {"": value}
        for index, item in inside.items():
            if isinstance(item, Section):
                yield from broken_rules(item, f"{prefix}{name}{index}.")
    yield from (prefix + fault for fault in section.rules())


class _Op(Section):
    def rules(self) -> Iterator[str]:
        for fault in super().rules():
            key, _, text = fault.partition(": ")
            yield f"{key}: {self.__class__.__name__.removesuffix('Op')} {key} {text}"


class MosaicOp(_Op):
    """Puts four images on one canvas, turned and scaled (docs/deimv2.md, Mosaic)."""

    rising = ("scaling_range",)
    type: Literal["Mosaic"] = "Mosaic"
    output_size: PositiveInt = 320
    """Shorter side of each of the four images, pixels."""
    rotation_range: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Largest angle to either side, degrees."""
    translation_range: tuple[Fraction, Fraction] = (0.1, 0.1)
    """Largest shift in x and y, fraction of the canvas."""
    scaling_range: tuple[PositiveFloat, PositiveFloat] = (0.5, 1.5)
    """Least and largest scale of the canvas."""
    probability: Fraction = 1.0
    """Chance per image, on top of `mosaic_prob`."""
    fill_value: Grey = 0
    """Grey level where no image is."""


class RandomPhotometricDistortOp(_Op):
    """Changes brightness, contrast, saturation, hue and the order of the channels; each with its own coin."""

    type: Literal["RandomPhotometricDistort"] = "RandomPhotometricDistort"
    brightness: Pair = (0.875, 1.125)
    """Range of the factor of the brightness."""
    contrast: Pair = (0.5, 1.5)
    """Range of the factor of the contrast."""
    saturation: Pair = (0.5, 1.5)
    """Range of the factor of the saturation."""
    hue: Pair = (-0.05, 0.05)
    """Range of the shift of the hue, turns of the colour circle, -0.5 to 0.5."""
    p: Fraction = 0.5
    """Chance of each change."""

    def rules(self) -> Iterator[str]:
        for key in ("brightness", "contrast", "saturation", "hue"):
            low, high = getattr(self, key)
            if low > high or (low < 0 and key != "hue") or (key == "hue" and not -0.5 <= low <= high <= 0.5):
                yield f"{key}: RandomPhotometricDistort {key} [{low}, {high}] is no possible range"


class RandomZoomOutOp(_Op):
    """Puts the image at a random place of a larger canvas."""

    rising = ("side_range",)
    type: Literal["RandomZoomOut"] = "RandomZoomOut"
    fill: Grey = 0
    """Grey level of the canvas."""
    side_range: tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=1)]] = (1.0, 4.0)
    """Range of the canvas' sides over the image's."""
    p: Chance = 0.5


class RandomIoUCropOp(_Op):
    """Crops the image at random so that at least one box centre is left."""

    type: Literal["RandomIoUCrop"] = "RandomIoUCrop"
    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Least width and height of the crop, fraction of the image's."""
    max_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Largest width and height of the crop, fraction of the image's."""
    min_aspect_ratio: PositiveFloat = 0.5
    """Least width over height of the crop."""
    max_aspect_ratio: PositiveFloat = 2.0
    """Largest width over height of the crop."""
    sampler_options: tuple[float, ...] | None = None
    """Minimum IoUs to draw from; null means 0, 0.1, 0.3, 0.5, 0.7, 0.9, 1."""
    trials: PositiveInt = 40
    """Crops tried for each minimum IoU."""
    p: Chance = 1.0

    def rules(self) -> Iterator[str]:
        for key in ("scale", "aspect_ratio"):
            if getattr(self, f"min_{key}") > getattr(self, f"max_{key}"):
                yield f"min_{key}: RandomIoUCrop has a minimum above its maximum"


class SanitizeBoundingBoxesOp(_Op):
    """Drops boxes that became too small."""

    type: Literal["SanitizeBoundingBoxes"] = "SanitizeBoundingBoxes"
    min_size: NonNegativeFloat = 1.0
    """Least width and height, pixels."""
    min_area: NonNegativeFloat = 1.0
    """Least area, square pixels."""


class RandomHorizontalFlipOp(_Op):
    """Mirrors left and right."""

    type: Literal["RandomHorizontalFlip"] = "RandomHorizontalFlip"
    p: Chance = 0.5


class RandomVerticalFlipOp(_Op):
    """Mirrors top and bottom: for surfaces without an up and down."""

    type: Literal["RandomVerticalFlip"] = "RandomVerticalFlip"
    p: Chance = 0.5


class RandomRotate90Op(_Op):
    """Makes one, two or three quarter turns: for surfaces without a direction."""

    type: Literal["RandomRotate90"] = "RandomRotate90"
    p: Chance = 0.5


class RandomGammaOp(_Op):
    """Varies the grey levels: value^gamma + shift, values in [0, 1], the same for all channels."""

    rising = ("gamma", "shift")
    type: Literal["RandomGamma"] = "RandomGamma"
    gamma: tuple[PositiveFloat, PositiveFloat] = (0.7, 1.4)
    """Range of the exponent, drawn evenly on a logarithmic scale; below 1 is brighter."""
    shift: tuple[Annotated[float, Field(ge=-1, le=1)], Annotated[float, Field(ge=-1, le=1)]] = (-0.05, 0.05)
    """Range of the shift, fraction of the range of values."""
    p: Chance = 0.5


class ResizeOp(_Op):
    """Resizes to a fixed size, aspect not kept, antialiased bilinear."""

    type: Literal["Resize"] = "Resize"
    size: tuple[PositiveInt, PositiveInt]
    """Height and width, pixels; multiples of 32."""


class ConvertPILImageOp(_Op):
    """Scales to [0, 1] in float32: done on the device here, stated for the dialect's sake."""

    type: Literal["ConvertPILImage"] = "ConvertPILImage"
    dtype: Literal["float32"] = "float32"
    scale: Literal[True] = True


class NormalizeOp(_Op):
    """Subtracts the mean and divides by the standard deviation of each RGB channel; done on the device here."""

    type: Literal["Normalize"] = "Normalize"
    mean: tuple[float, float, float]
    """Means of red, green and blue, in units of [0, 1]."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """Standard deviations of red, green and blue, in units of [0, 1]."""


class ConvertBoxesOp(_Op):
    """Converts boxes to cxcywh in [0, 1]."""

    type: Literal["ConvertBoxes"] = "ConvertBoxes"
    fmt: Literal["cxcywh"] = "cxcywh"
    normalize: Literal[True] = True


Op = Annotated[
    MosaicOp | RandomPhotometricDistortOp | RandomZoomOutOp | RandomIoUCropOp | SanitizeBoundingBoxesOp
    | RandomHorizontalFlipOp | RandomVerticalFlipOp | RandomRotate90Op | RandomGammaOp | ResizeOp | ConvertPILImageOp
    | NormalizeOp | ConvertBoxesOp,
    Field(discriminator="type"),
]  # fmt: skip
OpName = Literal[
    "Mosaic", "RandomPhotometricDistort", "RandomZoomOut", "RandomIoUCrop", "SanitizeBoundingBoxes",
    "RandomHorizontalFlip", "RandomVerticalFlip", "RandomRotate90", "RandomGamma", "Resize", "ConvertPILImage",
    "Normalize", "ConvertBoxes",
]  # fmt: skip


class PolicyConfig(Section):
    """Says when the strong augmentations are on (docs/deimv2.md, When is each op active)."""

    name: Literal["stop_epoch", "default"] = "default"
    """`stop_epoch` goes by `epoch`; `default`: always on."""
    epoch: NonNegativeInt | tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] = 0
    """[start, flat, stop]; one number means: off from that epoch on."""
    ops: tuple[OpName, ...] = ()
    """The ops that this holds for."""

    def rules(self) -> Iterator[str]:
        if isinstance(self.epoch, tuple) and list(self.epoch) != sorted(self.epoch):
            yield f"epoch: {list(self.epoch)} must rise (start, flat, stop)"


class TransformsConfig(Section):
    """Lists the transforms of one image, in order."""

    type: Literal["Compose"] = "Compose"
    ops: tuple[Op, ...] = ()
    """The transforms; see "Ops" below."""
    policy: PolicyConfig | None = None
    """When the strong ones are on; null: always."""
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


class DatasetConfig(Section):
    """Names a folder of images and its COCO annotation file."""

    type: Literal["CocoDetection"] = "CocoDetection"
    img_folder: PortablePath
    """Folder of the images."""
    ann_file: PortablePath
    """COCO annotations of the split, JSON."""
    return_masks: Literal[False] = False
    transforms: TransformsConfig = TransformsConfig()
    cache_mib: NonNegativeInt = 1024
    """Memory for decoded training images, MiB, shared by the workers of a process; at most half of what is free.
    0 reads every image from its file each time. Never changes a result."""

    def require_paths(self, section: str) -> None:
        """Raise UserError if a path needs an environment variable; `section` is this section's dotted name."""
        require_variables({f"{section}.img_folder": self.img_folder, f"{section}.ann_file": self.ann_file})

    def rules(self) -> Iterator[str]:
        resizes = [op for op in self.transforms.ops if isinstance(op, ResizeOp)]
        if not self.transforms.ops:
            yield (
                "transforms.ops: empty; a file with `ops: ~` (such as dataset/custom_detection.yml) must be included "
                "before the recipe, or list the ops"
            )
        elif len(resizes) != 1:
            yield f"transforms.ops: found {len(resizes)} Resize ops, expected exactly one"
        for resize in resizes:
            if resize.size[0] % 32 or resize.size[1] % 32:
                yield f"transforms.ops: Resize to {list(resize.size)}; height and width must be multiples of 32"


class CollateConfig(Section):
    """Says what happens to a whole batch: MixUp, CopyBlend, multi-scale (docs/deimv2.md, Collate)."""

    rising = ("mixup_epochs", "copyblend_epochs", "expand_ratios")
    type: Literal["BatchImageCollateFunction"] = "BatchImageCollateFunction"
    stop_epoch: NonNegativeInt | None = None
    """First epoch without multi-scale; null means never."""
    ema_restart_decay: Fraction = 0.9999
    """Decay of the EMA from `stop_epoch` on."""
    base_size: Annotated[int, Field(ge=32, le=8192)] = 640
    """Side of the square that multi-scale varies around, pixels."""
    base_size_repeat: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Weight of `base_size` among the sizes; null switches multi-scale off."""
    mixup_prob: Fraction = 0.0
    """Chance per batch that its images are blended in pairs."""
    mixup_epochs: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)
    """First epoch with MixUp, first epoch without."""
    copyblend_prob: Fraction = 0.0
    """Chance per batch that objects are copied between its images, where MixUp is not."""
    copyblend_epochs: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)
    """First epoch with CopyBlend, first epoch without."""
    copyblend_type: Literal["blend", "paste"] = "blend"
    """`paste` overwrites instead of blending."""
    area_threshold: NonNegativeFloat = 100.0
    """Smallest box to copy, square pixels."""
    num_objects: PositiveInt = 3
    """Objects copied into an image."""
    with_expand: bool = False
    """Copy some surroundings along."""
    expand_ratios: tuple[NonNegativeFloat, NonNegativeFloat] = (0.1, 0.25)
    """Range of the surroundings' width, fraction of the box."""
    random_num_objects: bool = False
    """Copy 1 to `num_objects` objects instead of exactly so many."""


class LoaderConfig(Section):
    """Describes one split and how it is read."""

    type: Literal["DataLoader"] = "DataLoader"
    dataset: DatasetConfig
    shuffle: bool = False
    """Draw a new order each epoch."""
    num_workers: NonNegativeInt = 0
    """Worker processes; 0 reads in the main process."""
    drop_last: bool = False
    """Leave out the last batch of an epoch where it is not full."""
    collate_fn: CollateConfig = CollateConfig()
    total_batch_size: PositiveInt | None = None
    """Images per optimiser step: processes x micro-batch x accumulation steps."""
    batch_size: PositiveInt | None = None
    """Images per micro-batch and process; instead of `total_batch_size`."""
    repeat_factor_threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """Training only: images with a class that fewer than this fraction of the images hold come more often,
    sqrt(threshold / fraction) times on average (LVIS, Gupta et al. 2019). null: every image once an epoch."""


DefectName = Literal["PERFORACIONES", "RAYONES", "ROTURA", "DEFORMACIONES", "CONTAMINACION"]
TextureName = Literal[
    "brushed_metal", "rolled_metal", "cast_metal", "matte_plastic", "speckled_plastic", "grained_plastic",
    "orange_peel_paint", "smooth_paint",
]  # fmt: skip


class SyntheticConfig(Section):
    """Generates a six-class data set of surface defects, written once and reused.

    Ranges are (low, high). Sizes are fractions of the image side; a grey level is 1/255 of full scale.
    """

    root: PortablePath = Path("datasets/quickstart")
    """Folder of the data set: `images/<split>/*.jpg` and `annotations/instances_<split>.json`."""
    seed: NonNegativeInt = 0
    """Same seed, same files. Each image has its own random stream (seed, split, index)."""
    num_train: PositiveInt = 1200
    """Images of the training split."""
    num_val: PositiveInt = 300
    """Images of the validation split."""
    num_test: NonNegativeInt = 0
    """Images of a test split; 0 writes none."""
    image_size: int = Field(default=160, ge=64, le=2048)
    """Width and height of every image, in pixels."""
    normal_fraction: Fraction = 0.15
    """Share of defect-free images (exact up to rounding, spread at random over the split)."""
    objects_per_image: tuple[float, ...] = Field(default=(0.45, 0.3, 0.2, 0.05), min_length=1, max_length=8)
    """Weights of 1, 2, 3, ... defects in an image that has any. Crowded images may hold fewer than drawn."""
    class_weights: dict[DefectName, float] = {name: 1.0 for name in get_args(DefectName)}
    """How often each defect is drawn, relative to the others; an absent one is never drawn."""
    texture_weights: dict[TextureName, float] = {name: 1.0 for name in get_args(TextureName)}
    """How often each surface is drawn, relative to the others; an absent one is never drawn."""
    size_range: Pair = (0.04, 0.5)
    """Longer side of a defect's box, as a fraction of the image side."""
    size_mode: float = 0.2
    """Most frequent size: sizes follow a triangular distribution in log(size) with its peak here."""
    min_box_side: NonNegativeFloat = 0.03
    """Shorter side of a defect's box, at least, as a fraction of the image side: a sliver of one or two
    pixels has no box that could be found to IoU 0.5."""
    contrast_range: Pair = (0.12, 0.6)
    """Strength of a defect, log-uniform: the 95th percentile over its visible pixels of the change against
    the clean surface (largest channel), as a fraction of full scale, before noise."""
    contrast_floor: dict[DefectName, float] = {"PERFORACIONES": 0.35, "ROTURA": 0.2}
    """Least contrast of a class where it is above contrast_range's: an opening is dark, it has no surface."""
    visible_levels: PositiveFloat = 8.0
    """A pixel belongs to a defect if it changed by more than this many grey levels ..."""
    visible_share: float = Field(default=0.2, ge=0.0, lt=1.0)
    """... and by more than this share of the defect's contrast. The box encloses exactly these pixels."""
    light_range: Pair = (0.05, 0.4)
    """Unevenness of the light: brightness range of gradient, vignette and spot together, over the mean."""
    blur_sigma_px: Pair = (0.0, 0.6)
    """Standard deviation of the optical blur, pixels."""
    noise_levels: Pair = (1.0, 5.0)
    """Standard deviation of the sensor noise, grey levels."""
    jpeg_quality: tuple[int, int] = (80, 95)
    """Range of the JPEG quality, 1 to 100."""

    def rules(self) -> Iterator[str]:
        limits: dict[str, Pair] = {
            "size_range": (0.02, 0.8), "contrast_range": (0.05, 0.9), "light_range": (0.0, 0.8),
            "blur_sigma_px": (0.0, 5.0), "noise_levels": (0.0, 50.0), "jpeg_quality": (1, 100),
        }  # fmt: skip
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                yield f"{name}: [{low}, {high}], expected {least} <= low <= high <= {most}"
        if not self.size_range[0] <= self.size_mode <= self.size_range[1]:
            yield f"size_mode: {self.size_mode}, expected a value inside size_range"
        if self.min_box_side > self.size_range[0]:
            yield f"min_box_side: {self.min_box_side}, expected at most size_range's low end"
        for defect, floor in self.contrast_floor.items():
            if not 0.0 <= floor <= self.contrast_range[1]:
                yield f"contrast_floor.{defect}: {floor}, expected at most contrast_range's high end"
        for name in ("objects_per_image", "class_weights", "texture_weights"):
            weights = getattr(self, name)
            values = weights.values() if isinstance(weights, dict) else weights
            if min(values, default=0.0) < 0.0 or not 0.0 < sum(values) < float("inf"):
                yield f"{name}: expected weights >= 0 with a positive sum"


def _has_one_place(value: str | None) -> str | None:
    if value is not None and value.count("{}") != 1:
        raise PydanticCustomError("pattern", "must hold {place} once, where the text goes", {"place": "{}"})
    return value


class ClassTextsConfig(Section):
    """Says which texts describe the classes."""

    language: Language = "en"
    """Of the built-in texts. CLIP understands English; for Spanish take a multilingual encoder (SigLIP 2)."""
    use_phrasings: bool = True
    """False takes one built-in text per class instead of several that are averaged."""
    template: Annotated[str | None, AfterValidator(_has_one_place)] = None
    """Put around every text, such as "a photo of {}"; `{}` stands for the text."""
    own: dict[str, str | tuple[str, ...] | dict[Language, str | tuple[str, ...]]] = {}
    """Class name -> own text, list of texts, or these per language; replaces the built-in texts of the class."""


class DataConfig(Section):
    """Holds everything that data sets and loaders are built from."""

    num_classes: PositiveInt
    """Number of classes."""
    remap_mscoco_category: bool = False
    """Official key, without effect: category ids are always mapped to labels by ascending id, COCO's 80 included."""
    train_dataloader: LoaderConfig
    """The training split."""
    val_dataloader: LoaderConfig
    """The validation split."""
    test_dataloader: LoaderConfig | None = None
    """The test split; what it leaves out is taken from `val_dataloader`."""
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

    def rules(self) -> Iterator[str]:
        train, steps = self.train_dataloader, self.accumulation_steps
        if train.total_batch_size is not None and train.total_batch_size % steps:
            yield (
                f"train_dataloader.total_batch_size: {train.total_batch_size} cannot be split into accumulation_steps "
                f"{steps}; choose a multiple of {steps}, or other accumulation_steps"
            )
        resize, base = train.dataset.transforms.resize, train.collate_fn.base_size
        if resize is not None and train.collate_fn.base_size_repeat is not None and resize.size != (base, base):
            yield (
                f"train_dataloader.collate_fn.base_size: multi-scale resizes to squares around {base} pixels, but the "
                f"op Resize makes {list(resize.size)}; let both follow eval_spatial_size by stating only that, make "
                "them equal, or set base_size_repeat to ~"
            )
        for name, loader in loaders(self).items():
            given = (loader.total_batch_size is not None) + (loader.batch_size is not None)
            if given == 2:
                yield f"{name}: total_batch_size and batch_size are both given; keep one and set the other to ~"
            if given == 0:
                yield f"{name}.total_batch_size: missing; give it (or batch_size, per process)"
            if name != "train_dataloader" and loader.repeat_factor_threshold is not None:
                advice = "every image is judged once; remove it here, it is for train_dataloader"
                yield f"{name}.repeat_factor_threshold: {advice}"
        if len({str(loader.dataset.transforms.normalize) for loader in loaders(self).values()}) > 1:
            keys = ", ".join(f"{name}.dataset.transforms.ops" for name in loaders(self))
            yield (
                f"{keys}: Normalize differs between the splits (mean, std, or absent in one); the model must see all "
                "of them alike"
            )


def loaders(config: DataConfig) -> dict[str, LoaderConfig]:
    """Return the loader sections there are, by key."""
    named = {"train_dataloader": config.train_dataloader, "val_dataloader": config.val_dataloader}
    return named if config.test_dataloader is None else {**named, "test_dataloader": config.test_dataloader}


def multiscale_sides(collate: CollateConfig) -> list[int]:
    """List the sides, in pixels, that a training batch may be resized to; empty without multi-scale.

    Each in one copy, `base_size` in `base_size_repeat` copies (docs/deimv2.md, Collate).
    """
    if collate.base_size_repeat is None:
        return []
    base = collate.base_size
    low, high = int(base * 0.75 / 32) * 32, int(base * 1.25 / 32) * 32
    steps = range((base - low) // 32)
    return [*(low + 32 * i for i in steps), *([base] * collate.base_size_repeat), *(high - 32 * i for i in steps)]
