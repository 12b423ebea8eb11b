"""The data's part of the config (docs/deimv2.md, Configuration dialect)."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field, WithJsonSchema, create_model

from data.augmentations import AUGMENTATIONS, Augmentation
from data.section import (
    RISING,
    Fraction,
    Grey,
    NonNegativeFloat,
    NonNegativeInt,
    Pair,
    PortablePath,
    PositiveFloat,
    PositiveInt,
    Section,
    must,
    require_variables,
    within,
)
from texts import Language


class Op(Section):
    """One transform of an image; `type` says which."""

    type: str

    def rules(self) -> Iterator[str]:
        values = dict(self)
        for key in values:
            if key.startswith("min_") and values[key] > values.get(f"max_{key[4:]}", values[key]):
                yield f"{key}: {self.type} has a minimum above its maximum"


def _op_of(name: str, augmentation: Augmentation) -> type[Op]:
    """Make the section of an augmentation: its keyword parameters are the keys, its docstring is the meaning."""
    parameters = inspect.signature(augmentation, eval_str=True).parameters
    keys: dict[str, Any] = {key: (p.annotation, p.default) for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    keys |= {"type": (Literal[name], name)}
    quick = {"use_attribute_docstrings": False}  # there are none, and looking for some takes 0.2 s of every start
    module, doc = __name__, augmentation.__doc__
    return create_model(f"{name}Op", __base__=Op, __module__=module, __doc__=doc, __cls_kwargs__=quick, **keys)


AUGMENTATION_OPS = {name: _op_of(name, augmentation) for name, augmentation in AUGMENTATIONS.items()}
globals().update({op.__name__: op for op in AUGMENTATION_OPS.values()})  # where pickle looks for a class


class MosaicOp(Op):
    """Puts four images on one canvas, turned and scaled (docs/deimv2.md, Mosaic)."""

    # Its partners come from the whole data set by the sample's own seed, whatever a worker has seen before.
    without_effect = ("use_cache", "max_cached_images", "random_pop")
    type: Literal["Mosaic"] = "Mosaic"
    output_size: PositiveInt = 320
    """Shorter side of each of the four images, pixels."""
    rotation_range: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Largest angle to either side, degrees."""
    translation_range: tuple[Fraction, Fraction] = (0.1, 0.1)
    """Largest shift in x and y, fraction of the canvas."""
    scaling_range: Annotated[tuple[PositiveFloat, PositiveFloat], RISING] = (0.5, 1.5)
    """Least and largest scale of the canvas."""
    probability: Fraction = 1.0
    """Chance per image, on top of `mosaic_prob`."""
    fill_value: Grey = 0
    """Grey level where no image is."""


class SanitizeBoundingBoxesOp(Op):
    """Drops boxes that became too small."""

    type: Literal["SanitizeBoundingBoxes"] = "SanitizeBoundingBoxes"
    min_size: NonNegativeFloat = 1.0
    """Least width and height, pixels."""
    min_area: NonNegativeFloat = 1.0
    """Least area, square pixels."""


class ResizeOp(Op):
    """Resizes to a fixed size, aspect not kept, antialiased bilinear."""

    type: Literal["Resize"] = "Resize"
    size: tuple[PositiveInt, PositiveInt]
    """Height and width, pixels; multiples of 32."""


class ConvertPILImageOp(Op):
    """Scales to [0, 1] in float32: done on the device here, stated for the dialect's sake."""

    only = {"dtype": "float32", "scale": True}
    type: Literal["ConvertPILImage"] = "ConvertPILImage"


class NormalizeOp(Op):
    """Subtracts the mean and divides by the standard deviation of each RGB channel; done on the device here."""

    type: Literal["Normalize"] = "Normalize"
    mean: tuple[float, float, float]
    """Means of red, green and blue, in units of [0, 1]."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """Standard deviations of red, green and blue, in units of [0, 1]."""


class ConvertBoxesOp(Op):
    """Converts boxes to cxcywh in [0, 1]."""

    only = {"fmt": "cxcywh", "normalize": True}
    type: Literal["ConvertBoxes"] = "ConvertBoxes"


OPS = (
    MosaicOp, *AUGMENTATION_OPS.values(), SanitizeBoundingBoxesOp, ResizeOp, ConvertPILImageOp, NormalizeOp,
    ConvertBoxesOp,
)  # fmt: skip
if TYPE_CHECKING:
    AnyOp = Op
    OpName = str
else:
    AnyOp = Annotated[functools.reduce(operator.or_, OPS), Field(discriminator="type")]
    OpName = Literal[tuple(op.model_fields["type"].default for op in OPS)]


class PolicyConfig(Section):
    """Says when the strong augmentations are on (docs/deimv2.md, When is each op active)."""

    name: Literal["stop_epoch", "default"] = "default"
    """`stop_epoch` goes by `epoch`; `default`: always on."""
    epoch: Annotated[
        NonNegativeInt | tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt],
        must(lambda value: isinstance(value, int) or list(value) == sorted(value), "{} must rise (start, flat, stop)"),
    ] = 0
    """[start, flat, stop]; one number means: off from that epoch on."""
    ops: tuple[OpName, ...] = ()
    """The ops that this holds for."""


class TransformsConfig(Section):
    """Lists the transforms of one image, in order."""

    only = {"type": "Compose"}
    ops: tuple[AnyOp, ...] = ()
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

    only = {"type": "CocoDetection", "return_masks": False}
    repeats = ("remap_mscoco_category",)
    img_folder: PortablePath
    """Folder of the images."""
    ann_file: PortablePath
    """COCO annotations of the split, JSON."""
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


class TilesConfig(Section):
    """Cuts large images into overlapping tiles: the network sees these in training, evaluation and prediction alike."""

    size: Annotated[int, Field(ge=32, le=8192)]
    """Side of a tile, pixels of the image; resized to `eval_spatial_size`, so an equal one keeps all details. Images
    that are no larger stay whole."""
    overlap: Annotated[float, Field(ge=0.05, le=0.8)] = 0.2
    """Least share of a tile that its neighbour sees too; objects smaller than that are whole in one of them."""
    keep_empty: Fraction = 0.25
    """Training only: share of the tiles without an object that an epoch shows, by turns."""
    min_visible: Fraction = 0.4
    """Training only: a tile that shows less of an object (of its area, or of what fits into a tile) has no box for it,
    unless no tile shows more."""


class CollateConfig(Section):
    """Says what happens to a whole batch: MixUp, CopyBlend, multi-scale (docs/deimv2.md, Collate)."""

    without_effect = ("conflict_with_mixup", "data_vis", "vis_save")
    only = {"type": "BatchImageCollateFunction"}
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
    mixup_epochs: Annotated[tuple[NonNegativeInt, NonNegativeInt], RISING] = (0, 0)
    """First epoch with MixUp, first epoch without."""
    copyblend_prob: Fraction = 0.0
    """Chance per batch that objects are copied between its images, where MixUp is not."""
    copyblend_epochs: Annotated[tuple[NonNegativeInt, NonNegativeInt], RISING] = (0, 0)
    """First epoch with CopyBlend, first epoch without."""
    copyblend_type: Literal["blend", "paste"] = "blend"
    """`paste` overwrites instead of blending."""
    area_threshold: NonNegativeFloat = 100.0
    """Smallest box to copy, square pixels."""
    num_objects: PositiveInt = 3
    """Objects copied into an image."""
    with_expand: bool = False
    """Copy some surroundings along."""
    expand_ratios: Annotated[tuple[NonNegativeFloat, NonNegativeFloat], RISING] = (0.1, 0.25)
    """Range of the surroundings' width, fraction of the box."""
    random_num_objects: bool = False
    """Copy 1 to `num_objects` objects instead of exactly so many."""


class LoaderConfig(Section):
    """Describes one split and how it is read."""

    only = {"type": "DataLoader"}
    dataset: DatasetConfig
    shuffle: bool = False
    """Draw a new order each epoch."""
    num_workers: NonNegativeInt = 0
    """Worker processes; 0 reads in the main process."""
    drop_last: bool = False
    """Leave out the last batch of an epoch where it is not full."""
    collate_fn: CollateConfig = CollateConfig()
    total_batch_size: PositiveInt | Literal["auto"] | None = None
    """Images per optimiser step: processes x micro-batch x accumulation steps. In training also `auto`: the largest
    power of two up to 32 that takes at most 60 % of the GPU's memory in a trial step."""
    batch_size: PositiveInt | None = None
    """Images per micro-batch and process; instead of `total_batch_size`."""
    repeat_factor_threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """Training only: images with a class that fewer than this fraction of the images hold come more often,
    sqrt(threshold / fraction) times on average (LVIS, Gupta et al. 2019). null: every image once an epoch."""

    @property
    def images_per_step(self) -> int | None:
        """`total_batch_size`, None while it is `auto`."""
        return self.total_batch_size if isinstance(self.total_batch_size, int) else None

    def images_per_batch(self, parts: int = 1) -> int:
        """Return the images that a process takes at once; `total_batch_size` is for so many parts: processes times, in
        training, accumulation steps."""
        return self.batch_size or max(1, (self.images_per_step or 1) // parts)


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
    size_range: Annotated[Pair, within(0.02, 0.8)] = (0.04, 0.5)
    """Longer side of a defect's box, as a fraction of the image side."""
    size_mode: float = 0.2
    """Most frequent size: sizes follow a triangular distribution in log(size) with its peak here."""
    min_box_side: NonNegativeFloat = 0.03
    """Shorter side of a defect's box, at least, as a fraction of the image side: a sliver of one or two
    pixels has no box that could be found to IoU 0.5."""
    contrast_range: Annotated[Pair, within(0.05, 0.9)] = (0.12, 0.6)
    """Strength of a defect, log-uniform: the 95th percentile over its visible pixels of the change against
    the clean surface (largest channel), as a fraction of full scale, before noise."""
    contrast_floor: dict[DefectName, float] = {"PERFORACIONES": 0.35, "ROTURA": 0.2}
    """Least contrast of a class where it is above contrast_range's: an opening is dark, it has no surface."""
    visible_levels: PositiveFloat = 8.0
    """A pixel belongs to a defect if it changed by more than this many grey levels ..."""
    visible_share: float = Field(default=0.2, ge=0.0, lt=1.0)
    """... and by more than this share of the defect's contrast. The box encloses exactly these pixels."""
    light_range: Annotated[Pair, within(0, 0.8)] = (0.05, 0.4)
    """Unevenness of the light: brightness range of gradient, vignette and spot together, over the mean."""
    blur_sigma_px: Annotated[Pair, within(0, 5)] = (0.0, 0.6)
    """Standard deviation of the optical blur, pixels."""
    noise_levels: Annotated[Pair, within(0, 50)] = (1.0, 5.0)
    """Standard deviation of the sensor noise, grey levels."""
    jpeg_quality: Annotated[tuple[int, int], within(1, 100)] = (80, 95)
    """Range of the JPEG quality, 1 to 100."""

    def rules(self) -> Iterator[str]:
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


_ONE_PLACE = must(
    lambda text: text is None or text.count("{}") == 1, 'found "{}": must hold {{}} once, where the text goes'
)


class ClassTextsConfig(Section):
    """Says which texts describe the classes."""

    language: Language = "en"
    """Of the built-in texts. CLIP understands English; for Spanish take a multilingual encoder (SigLIP 2)."""
    use_phrasings: bool = True
    """False takes one built-in text per class instead of several that are averaged."""
    template: Annotated[str | None, _ONE_PLACE] = None
    """Put around every text, such as "a photo of {}"; `{}` stands for the text."""
    own: dict[str, str | tuple[str, ...] | dict[Language, str | tuple[str, ...]]] = {}
    """Class name -> own text, list of texts, or these per language; replaces the built-in texts of the class."""


_ClassCount = Annotated[PositiveInt, WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]})]
"""Once a config is loaded it is a number."""


class DataConfig(Section):
    """Holds everything that data sets and loaders are built from."""

    num_classes: _ClassCount
    """Number of classes; `auto` counts the categories of the training annotations when the config is loaded."""
    remap_mscoco_category: bool = False
    """Official key, without effect: category ids are always mapped to labels by ascending id, COCO's 80 included."""
    train_dataloader: LoaderConfig
    """The training split."""
    val_dataloader: LoaderConfig
    """The validation split."""
    test_dataloader: LoaderConfig | None = None
    """The test split; what it leaves out is taken from `val_dataloader`."""
    tiles: TilesConfig | None = None
    """Cut images into tiles, for defects that are small in large images; null: every image is seen whole."""
    num_workers: NonNegativeInt = 0
    """Worker processes of loaders that state none themselves."""
    accumulation_steps: PositiveInt | Literal["auto"] = 1
    """Micro-batches per optimiser step; `auto`: as few as fit into the GPU's memory, by a trial step."""
    normal_boxes: Literal["keep", "as_negative"] = "keep"
    """Boxes of the class NORMAL: kept as a class, or dropped so that their images become negatives."""
    on_bad_data: Literal["error", "skip"] = "error"
    """Faulty images and annotations: stop, or leave them out with a warning."""
    allow_split_overlap: bool = False
    """Accept the same image in two splits."""
    synthetic: SyntheticConfig | None = None
    """Draw this data set first, if it is not there."""

    @property
    def micro_batches(self) -> int:
        """`accumulation_steps`, 1 while it is `auto`."""
        return self.accumulation_steps if isinstance(self.accumulation_steps, int) else 1

    def rules(self) -> Iterator[str]:
        train, steps = self.train_dataloader, self.micro_batches
        if self.accumulation_steps == "auto" and train.batch_size is not None:
            yield "accumulation_steps: auto divides train_dataloader.total_batch_size; give it instead of batch_size"
        if train.images_per_step is not None and train.images_per_step % steps:
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
            if name != "train_dataloader" and loader.total_batch_size == "auto":
                yield f"{name}.total_batch_size: auto is for train_dataloader; give a number"
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
