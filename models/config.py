"""The model's part of the config: names and defaults of DEIMv2's YAML dialect (spec sections 11.3-11.7).

Only what this package implements can be said: an option of the original that is not built here is refused,
never ignored. Shared values (`num_classes`, `eval_spatial_size`, ...) stand at the top level and nowhere else.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

PositiveInt = Annotated[int, Field(ge=1, le=1_000_000)]
NonNegativeInt = Annotated[int, Field(ge=0, le=1_000_000)]
Factor = Annotated[float, Field(gt=0, le=1000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PortablePath = Annotated[Path, PlainSerializer(lambda path: path.as_posix(), return_type=str)]
"""A path, dumped with forward slashes: a config written on Windows can be read elsewhere."""

LossName = Literal["loss_mal", "loss_bbox", "loss_giou", "loss_fgl", "loss_ddf"]
CostName = Literal["cost_class", "cost_bbox", "cost_giou"]
STRIDES = (8, 16, 32)


def _only_zero(value: float) -> float:
    if value != 0:
        raise PydanticCustomError("unsupported", "must be 0: DEIMv2 uses no dropout and none is built here")
    return value


NoDropout = Annotated[float, AfterValidator(_only_zero)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ViTShape(NamedTuple):
    """The numbers that fix a ViT."""

    width: int
    heads: int
    depth: int
    mlp_ratio: float


class DEIMSection(_Section):
    """Names of the three parts."""

    backbone: Literal["DINOv3STAs"] = "DINOv3STAs"
    encoder: Literal["HybridEncoder"] = "HybridEncoder"
    decoder: Literal["DEIMTransformer"] = "DEIMTransformer"

    @field_validator("backbone", mode="before")
    @classmethod
    def _explain_backbone(cls, value: object) -> object:
        if value != "DINOv3STAs":
            text = "only DINOv3STAs is built here (the sizes S, M, L, X); HGNetv2-based DEIMv2 sizes are not supported"
            raise PydanticCustomError("unsupported", "{text}", {"text": text})
        return value


class BackboneConfig(_Section):
    """Section `DINOv3STAs`: ViT and convolutional detail branch (spec section 3)."""

    name: Literal["vit_tiny", "vit_tinyplus", "vit_custom", "dinov3_vits16", "dinov3_vits16plus"]
    """Which ViT; `vit_custom` (own addition) is a ViT-Tiny of any size."""
    weights_path: PortablePath | None = None
    """The ViT's weight file; null asks for random weights."""
    interaction_indexes: tuple[NonNegativeInt, ...]
    """Blocks (0-based) whose output is used: three, or one for all three maps."""
    finetune: bool = True
    """False freezes the ViT."""
    embed_dim: PositiveInt = 192
    """Width; read by the `vit_*` names only."""
    num_heads: PositiveInt = 3
    """Attention heads; read by the `vit_*` names only."""
    depth: PositiveInt = 12
    """Blocks; read by `vit_custom` only (own addition)."""
    mlp_ratio: Factor = 4.0
    """Hidden width of the MLP over `embed_dim`; read by `vit_custom` only (own addition)."""
    patch_size: Literal[16] = 16
    use_sta: bool = True
    """False drops the detail branch and its channels."""
    conv_inplane: PositiveInt = 16
    """Base width of the detail branch."""
    hidden_dim: PositiveInt | None = None
    """Channels of the three output maps; null means the ViT's width."""

    @property
    def vit(self) -> ViTShape:
        """Width, heads, depth and MLP ratio that the name stands for (spec section 2.2)."""
        if self.name.startswith("dinov3"):
            return ViTShape(384, 6, 12, 4.0)
        if self.name == "vit_custom":
            return ViTShape(self.embed_dim, self.num_heads, self.depth, self.mlp_ratio)
        return ViTShape(self.embed_dim, self.num_heads, 12, 4.0)

    @property
    def out_channels(self) -> int:
        """Channels of each of the three output maps."""
        return self.hidden_dim or self.vit.width


class EncoderConfig(_Section):
    """Section `HybridEncoder` (spec section 4)."""

    in_channels: tuple[PositiveInt, PositiveInt, PositiveInt]
    """Channels of the backbone's maps, strides 8, 16, 32."""
    feat_strides: tuple[PositiveInt, PositiveInt, PositiveInt] = STRIDES
    hidden_dim: PositiveInt = 256
    nhead: PositiveInt = 8
    dim_feedforward: PositiveInt = 1024
    dropout: NoDropout = 0.0
    enc_act: Literal["gelu"] = "gelu"
    use_encoder_idx: tuple[Annotated[int, Field(ge=0, le=2)], ...] = (2,)
    """Maps that pass through self-attention."""
    num_encoder_layers: PositiveInt = 1
    pe_temperature: Annotated[float, Field(gt=0)] = 10000.0
    expansion: Factor = 1.0
    """Width of the fusion blocks' inner stages."""
    depth_mult: Factor = 1.0
    """Depth of the fusion blocks' inner stages; 1 means three convolutions."""
    act: Literal["silu"] = "silu"
    version: Literal["deim"] = "deim"
    fuse_op: Literal["sum"] = "sum"


class DecoderConfig(_Section):
    """Section `DEIMTransformer` (spec sections 5 and 6)."""

    hidden_dim: PositiveInt = 256
    num_queries: PositiveInt = 300
    feat_channels: tuple[PositiveInt, PositiveInt, PositiveInt]
    """Channels of the encoder's maps, strides 8, 16, 32."""
    feat_strides: tuple[PositiveInt, PositiveInt, PositiveInt] = STRIDES
    num_levels: Literal[3] = 3
    num_points: tuple[PositiveInt, PositiveInt, PositiveInt] = (3, 6, 3)
    """Sampling points per head on each level."""
    nhead: PositiveInt = 8
    num_layers: PositiveInt = 6
    dim_feedforward: Annotated[int, Field(ge=2, le=1_000_000, multiple_of=2)] = 1024
    """Width before the gate; the SwiGLU's hidden width is half of it."""
    dropout: NoDropout = 0.0
    activation: Literal["silu"] = "silu"
    mlp_act: Literal["silu"] = "silu"
    num_denoising: NonNegativeInt = 100
    """About as many denoising queries of each sign; 0 switches denoising off."""
    label_noise_ratio: Fraction = 0.5
    box_noise_scale: NonNegativeFloat = 1.0
    learn_query_content: Literal[False] = False
    eval_idx: int = -1
    """Layer whose output is used in evaluation; negative counts from the last."""
    eps: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """Anchors with a coordinate nearer than this to 0 or 1 are invalid."""
    aux_loss: Literal[True] = True
    cross_attn_method: Literal["default"] = "default"
    query_select_method: Literal["default"] = "default"
    reg_max: Annotated[int, Field(ge=4, le=1024, multiple_of=2)] = 32
    """Distribution bins less one."""
    reg_scale: int | float = 4
    """Kept as written: official files hold an integer tensor for an integer."""
    layer_scale: Annotated[float, Field(ge=1, le=1)] = 1.0
    use_gateway: Literal[True] = True
    share_bbox_head: Literal[False] = False
    share_score_head: Literal[False] = False


class MatcherConfig(_Section):
    """Section `DEIMCriterion.matcher` (spec section 7.1)."""

    type: Literal["HungarianMatcher"] = "HungarianMatcher"
    weight_dict: dict[CostName, NonNegativeFloat] = {"cost_class": 2.0, "cost_bbox": 5.0, "cost_giou": 2.0}
    alpha: Fraction = 0.25
    gamma: NonNegativeFloat = 2.0
    change_matcher: bool = False
    iou_order_alpha: NonNegativeFloat = 1.0
    """Exponent of the IoU after the change."""
    matcher_change_epoch: NonNegativeInt = 0
    """First epoch of the IoU-ordered cost; read when `change_matcher` is on."""


class CriterionConfig(_Section):
    """Section `DEIMCriterion` (spec section 7)."""

    matcher: MatcherConfig = MatcherConfig()
    weight_dict: dict[LossName, NonNegativeFloat]
    losses: tuple[Literal["mal", "boxes", "local"], ...] = ("mal", "boxes", "local")
    alpha: Fraction = 0.2
    """Official key; the MAL loss does not read it."""
    gamma: NonNegativeFloat = 2.0
    reg_max: Annotated[int, Field(ge=4, le=1024, multiple_of=2)] = 32
    boxes_weight_format: None = None
    mal_alpha: NonNegativeFloat | None = None
    use_uni_set: bool = True
    """Box losses on the union of all layers' matches (GO); False: each layer on its own matches."""


class PostProcessorConfig(_Section):
    """Section `PostProcessor` (spec section 8)."""

    num_top_queries: PositiveInt = 300


class ModelConfig(_Section):
    """Everything that models and losses are built from."""

    model: Literal["DEIM"] = "DEIM"
    criterion: Literal["DEIMCriterion"] = "DEIMCriterion"
    postprocessor: Literal["PostProcessor"] = "PostProcessor"
    num_classes: PositiveInt
    """C, the width of the class scores."""
    use_focal_loss: Literal[True] = True
    eval_spatial_size: tuple[PositiveInt, PositiveInt] = (640, 640)
    """Height and width of the evaluation input, pixels."""
    gradient_checkpointing: bool = False
    """Recompute the ViT and AIFI blocks in the backward pass: less memory, more time (own addition)."""
    DEIM: DEIMSection = DEIMSection()
    DINOv3STAs: BackboneConfig
    HybridEncoder: EncoderConfig
    DEIMTransformer: DecoderConfig
    DEIMCriterion: CriterionConfig
    PostProcessor: PostProcessorConfig = PostProcessorConfig()

    @property
    def num_top_queries(self) -> int:
        """Detections kept per image."""
        return self.PostProcessor.num_top_queries

    @model_validator(mode="after")
    def check_rules(self, info: ValidationInfo) -> Self:
        """Rules between fields, all at once."""
        problems = model_problems(self)
        if problems:
            raise PydanticCustomError("rules", "{problems}", {"problems": problems})
        return self


def memory_tokens(height: int, width: int) -> int:
    """Tokens of the three maps of an input of `height` x `width` pixels."""
    return sum((height // stride) * (width // stride) for stride in STRIDES)


def model_problems(config: ModelConfig) -> list[str]:
    """What cannot be built, one line each: dotted key, what is wrong, how to mend it."""
    return [*_backbone_problems(config), *_width_problems(config), *_decoder_problems(config), *_loss_problems(config)]


def _backbone_problems(config: ModelConfig) -> list[str]:
    backbone, problems = config.DINOv3STAs, []
    vit = backbone.vit
    if vit.width % vit.heads:
        problems.append(
            f"DINOv3STAs.num_heads: {vit.heads} does not divide embed_dim {vit.width}; "
            "choose a head count that divides the width"
        )
    elif (vit.width // vit.heads) % 4:
        problems.append(
            f"DINOv3STAs.embed_dim: {vit.width} / {vit.heads} heads gives heads of {vit.width // vit.heads} channels; "
            "rotary embedding needs a multiple of 4, change embed_dim or num_heads"
        )
    if backbone.name == "vit_custom" and not math.isclose(vit.width * vit.mlp_ratio, round(vit.width * vit.mlp_ratio)):
        problems.append(f"DINOv3STAs.mlp_ratio: embed_dim {vit.width} x {vit.mlp_ratio} is no whole number of channels")
    indexes = backbone.interaction_indexes
    if len(indexes) not in (1, 3):
        problems.append(
            f"DINOv3STAs.interaction_indexes: found {len(indexes)} blocks, expected three "
            "(or one, used for all three maps)"
        )
    if any(index >= vit.depth for index in indexes) or list(indexes) != sorted(set(indexes)):
        problems.append(
            f"DINOv3STAs.interaction_indexes: {list(indexes)} must rise and stay below the ViT's {vit.depth} blocks "
            f"(0 to {vit.depth - 1})"
        )
    return problems


def _width_problems(config: ModelConfig) -> list[str]:
    backbone, encoder, decoder, problems = config.DINOv3STAs, config.HybridEncoder, config.DEIMTransformer, []
    if encoder.in_channels != (backbone.out_channels,) * 3:
        problems.append(
            f"HybridEncoder.in_channels: {list(encoder.in_channels)} must be the backbone's output width "
            f"{[backbone.out_channels] * 3} (DINOv3STAs.hidden_dim, or the ViT's width where that is null)"
        )
    if decoder.feat_channels != (encoder.hidden_dim,) * 3:
        problems.append(
            f"DEIMTransformer.feat_channels: {list(decoder.feat_channels)} must be the encoder's width "
            f"{[encoder.hidden_dim] * 3} (HybridEncoder.hidden_dim)"
        )
    for section, strides in (("HybridEncoder", encoder.feat_strides), ("DEIMTransformer", decoder.feat_strides)):
        if strides != STRIDES:
            problems.append(f"{section}.feat_strides: {list(strides)} must be {list(STRIDES)}")
    for section, width, heads in (
        ("HybridEncoder", encoder.hidden_dim, encoder.nhead),
        ("DEIMTransformer", decoder.hidden_dim, decoder.nhead),
    ):
        if width % heads:
            problems.append(f"{section}.nhead: {heads} does not divide hidden_dim {width}; choose another head count")
    if encoder.hidden_dim % 4:
        problems.append(f"HybridEncoder.hidden_dim: {encoder.hidden_dim} must be a multiple of 4 (position embedding)")
    if encoder.depth_mult * 3 < 0.5 or math.floor(encoder.expansion * encoder.hidden_dim / 2) < 1:
        problems.append(
            f"HybridEncoder.expansion, depth_mult: {encoder.expansion}, {encoder.depth_mult} leave no channels or "
            "no blocks; make them larger"
        )
    if len(set(encoder.use_encoder_idx)) != len(encoder.use_encoder_idx):
        problems.append(f"HybridEncoder.use_encoder_idx: {list(encoder.use_encoder_idx)} names a map twice")
    return problems


def _decoder_problems(config: ModelConfig) -> list[str]:
    decoder, problems = config.DEIMTransformer, []
    height, width = config.eval_spatial_size
    if height % 32 or width % 32:
        problems.append(
            f"eval_spatial_size: [{height}, {width}] must be multiples of 32, such as "
            f"[{nearest_multiple_of_32(height)}, {nearest_multiple_of_32(width)}]"
        )
    elif decoder.num_queries > memory_tokens(height, width):
        problems.append(
            f"DEIMTransformer.num_queries: {decoder.num_queries} queries cannot be chosen from the "
            f"{memory_tokens(height, width)} tokens of a {height} x {width} input; "
            "lower num_queries or raise eval_spatial_size"
        )
    if not -decoder.num_layers <= decoder.eval_idx < decoder.num_layers:
        problems.append(
            f"DEIMTransformer.eval_idx: {decoder.eval_idx} is no layer of num_layers {decoder.num_layers}; "
            "use -1 for the last"
        )
    if decoder.reg_scale <= 0:
        problems.append(f"DEIMTransformer.reg_scale: {decoder.reg_scale} must be above 0; the recipe has 4")
    return problems


def _loss_problems(config: ModelConfig) -> list[str]:
    criterion, problems = config.DEIMCriterion, []
    if config.DEIMTransformer.reg_max != criterion.reg_max:
        problems.append(
            f"DEIMCriterion.reg_max: {criterion.reg_max} must equal DEIMTransformer.reg_max "
            f"{config.DEIMTransformer.reg_max}"
        )
    if sorted(criterion.losses) != ["boxes", "local", "mal"]:
        problems.append(f"DEIMCriterion.losses: {list(criterion.losses)} must be [mal, boxes, local]")
    for path, weights, names in (
        ("DEIMCriterion.weight_dict", set(criterion.weight_dict), set(LossName.__args__)),  # type: ignore[attr-defined]
        ("DEIMCriterion.matcher.weight_dict", set(criterion.matcher.weight_dict), set(CostName.__args__)),  # type: ignore[attr-defined]
    ):
        if names - weights:
            problems.append(f"{path}: missing {', '.join(sorted(names - weights))}; 0 switches a term off")
    return problems


def nearest_multiple_of_32(size: int) -> int:
    """The multiple of 32 nearest to `size`, at least 32."""
    return max(32, round(size / 32) * 32)
