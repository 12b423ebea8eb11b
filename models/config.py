"""The model's part of the config: names and defaults of DEIMv2's YAML dialect (docs/deimv2.md, Configuration dialect).

Only what this package implements can be said: an option of the original that is not built here is refused,
never ignored. Shared values (`num_classes`, `eval_spatial_size`, ...) stand at the top level and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, cast, get_args

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from data.section import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PortablePath,
    PositiveFloat,
    PositiveInt,
    Section,
    checked_path,
    must,
)

Factor = Annotated[float, Field(gt=0, le=1000)]
RegMax = Annotated[int, Field(ge=4, le=1024, multiple_of=2, description="Distribution bins of a side, less one.")]
Heads = Annotated[PositiveInt, Field(description="Attention heads.")]
Triple = tuple[PositiveInt, PositiveInt, PositiveInt]
STRIDES = (8, 16, 32)
Strides = Annotated[
    Triple,
    must(lambda value: value == STRIDES, "{} must be [8, 16, 32]"),
    Field(description="Strides of the maps, pixels."),
]
LossName = Literal["loss_mal", "loss_bbox", "loss_giou", "loss_fgl", "loss_ddf"]
CostName = Literal["cost_class", "cost_bbox", "cost_giou"]
FusionHead = Literal["cosine", "concat", "cross_attention"]
ANCHOR_LEVELS = 5
"""Levels of a baseline's feature pyramid."""


NoDropout = Annotated[
    float,
    must(lambda value: value == 0, "found {}: must be 0: DEIMv2 uses no dropout and none is built here"),
    Field(description="DEIMv2 uses none: 0."),
]


class ViTShape(NamedTuple):
    """The numbers that fix a ViT."""

    width: int
    heads: int
    depth: int
    mlp_ratio: float


def _only_dinov3(value: object) -> object:
    if value != "DINOv3STAs":
        # HGNetv2 could only be guessed: there are no golden numbers to check it against.
        text = "only DINOv3STAs is built here (the sizes S, M, L, X); HGNetv2-based DEIMv2 sizes are not supported"
        raise PydanticCustomError("pattern", "{text}", {"text": text})
    return value


class DEIMSection(Section):
    """Names the three parts of the detector."""

    backbone: Annotated[Literal["DINOv3STAs"], BeforeValidator(_only_dinov3)] = "DINOv3STAs"
    encoder: Literal["HybridEncoder"] = "HybridEncoder"
    decoder: Literal["DEIMTransformer"] = "DEIMTransformer"


class BackboneConfig(Section):
    """Shapes the ViT and the convolutional detail branch (docs/deimv2.md, Backbone)."""

    only = {"patch_size": 16}
    name: Literal["vit_tiny", "vit_tinyplus", "vit_custom", "dinov3_vits16", "dinov3_vits16plus"]
    """Which ViT; `vit_custom` (own addition) is a ViT-Tiny of any size."""
    weights_path: PortablePath | None = None
    """The ViT's weight file; null asks for random weights."""
    interaction_indexes: tuple[NonNegativeInt, ...]
    """Blocks (0-based) whose output is used: three, or one for all three maps."""
    finetune: bool = True
    """False freezes the ViT; the detail branch and the convolutions that join both learn."""
    freeze: Literal["none", "all"] | PositiveInt = "none"
    """Frozen, with statistics: `all`, the whole backbone; a number, the ViT up to so many blocks (own addition)."""
    backbone_lr_factor: Annotated[float, Field(gt=0, le=10)] | None = None
    """Learning rate of the ViT over `optimizer.lr`; null leaves it to `optimizer.params` (own addition)."""
    embed_dim: PositiveInt = 192
    """Width; read by the `vit_*` names only."""
    num_heads: PositiveInt = 3
    """Attention heads; read by the `vit_*` names only."""
    depth: PositiveInt = 12
    """Blocks; read by `vit_custom` only (own addition)."""
    mlp_ratio: Factor = 4.0
    """Hidden width of the MLP over `embed_dim`; read by `vit_custom` only (own addition)."""
    use_sta: bool = True
    """False drops the detail branch and its channels."""
    conv_inplane: PositiveInt = 16
    """Base width of the detail branch."""
    hidden_dim: PositiveInt | None = None
    """Channels of the three output maps; null means the ViT's width."""

    @property
    def vit(self) -> ViTShape:
        """Width, heads, depth and MLP ratio that the name stands for (docs/deimv2.md, Differences for M, L, X)."""
        if self.name.startswith("dinov3"):
            return ViTShape(384, 6, 12, 4.0)
        if self.name == "vit_custom":
            return ViTShape(self.embed_dim, self.num_heads, self.depth, self.mlp_ratio)
        return ViTShape(self.embed_dim, self.num_heads, 12, 4.0)

    @property
    def out_channels(self) -> int:
        """Channels of each of the three output maps."""
        return self.hidden_dim or self.vit.width

    def rules(self) -> Iterator[str]:
        width, heads, depth, ratio = self.vit
        if width % heads:
            yield f"num_heads: {heads} does not divide embed_dim {width}; choose a head count that divides the width"
        elif (width // heads) % 4:
            yield (
                f"embed_dim: {width} / {heads} heads gives heads of {width // heads} channels; rotary embedding needs "
                "a multiple of 4, change embed_dim or num_heads"
            )
        if self.name == "vit_custom" and not math.isclose(width * ratio, round(width * ratio)):
            yield f"mlp_ratio: embed_dim {width} x {ratio} is no whole number of channels"
        if not self.finetune and self.freeze != "none":
            yield f"freeze: {self.freeze} contradicts finetune: False, which freezes just the ViT; remove one of them"
        if self.backbone_lr_factor is not None and (self.freeze == "all" or not self.finetune):
            yield "backbone_lr_factor: has no effect on a frozen ViT; remove one of them"
        if isinstance(self.freeze, int) and self.freeze > depth:
            yield f"freeze: the ViT has {depth} blocks, found {self.freeze}; give 1 to {depth}, none or all"
        indexes = self.interaction_indexes
        if len(indexes) not in (1, 3):
            yield f"interaction_indexes: found {len(indexes)} blocks, expected three (or one, used for all three maps)"
        if any(index >= depth for index in indexes) or list(indexes) != sorted(set(indexes)):
            yield (
                f"interaction_indexes: {list(indexes)} must rise and stay below the ViT's {depth} blocks (0 to "
                f"{depth - 1})"
            )


class _Transformer(Section):
    def rules(self) -> Iterator[str]:
        """Yield what the encoder and the decoder have in common."""
        hidden_dim, nhead = (getattr(self, key) for key in ("hidden_dim", "nhead"))
        if hidden_dim % nhead:
            yield f"nhead: {nhead} does not divide hidden_dim {hidden_dim}; choose another head count"


class EncoderConfig(_Transformer):
    """Shapes the hybrid encoder, which joins the three maps of the backbone (docs/deimv2.md, Hybrid encoder)."""

    without_effect = ("csp_type",)
    only = {"enc_act": "gelu", "act": "silu", "version": "deim", "fuse_op": "sum"}
    repeats = ("eval_spatial_size",)
    in_channels: Triple
    """Channels of the backbone's maps, strides 8, 16, 32."""
    feat_strides: Strides = STRIDES
    hidden_dim: PositiveInt = 256
    """Channels of the maps inside and after the encoder."""
    nhead: Heads = 8
    dim_feedforward: PositiveInt = 1024
    """Hidden width of the self-attention's MLP."""
    dropout: NoDropout = 0.0
    use_encoder_idx: tuple[Annotated[int, Field(ge=0, le=2)], ...] = (2,)
    """Maps that pass through self-attention, 0 to 2."""
    num_encoder_layers: PositiveInt = 1
    """Layers of self-attention."""
    pe_temperature: PositiveFloat = 10000.0
    """Temperature of the position embedding."""
    expansion: Factor = 1.0
    """Width of the fusion blocks' inner stages."""
    depth_mult: Factor = 1.0
    """Depth of the fusion blocks' inner stages; 1 means three convolutions."""

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if self.hidden_dim % 4:
            yield f"hidden_dim: {self.hidden_dim} must be a multiple of 4 (position embedding)"
        if self.depth_mult * 3 < 0.5 or math.floor(self.expansion * self.hidden_dim / 2) < 1:
            values = f"{self.expansion}, {self.depth_mult}"
            yield f"expansion, depth_mult: {values} leave no channels or no blocks; make them larger"
        if len(set(self.use_encoder_idx)) != len(self.use_encoder_idx):
            yield f"use_encoder_idx: {list(self.use_encoder_idx)} names a map twice"


class DecoderConfig(_Transformer):
    """Shapes the decoder, its queries and its denoising (docs/deimv2.md, Decoder / Contrastive denoising)."""

    only = {
        "num_levels": 3, "activation": "silu", "mlp_act": "silu", "learn_query_content": False, "aux_loss": True,
        "cross_attn_method": "default", "query_select_method": "default", "use_gateway": True,
        "share_bbox_head": False, "share_score_head": False,
    }  # fmt: skip
    repeats = ("num_classes", "eval_spatial_size")
    hidden_dim: PositiveInt = 256
    """Width of the queries."""
    num_queries: PositiveInt = 300
    """Queries, the most detections of an image."""
    feat_channels: Triple
    """Channels of the encoder's maps, strides 8, 16, 32."""
    feat_strides: Strides = STRIDES
    num_points: Triple = (3, 6, 3)
    """Sampling points per head on each level."""
    nhead: Heads = 8
    num_layers: PositiveInt = 6
    """Decoder layers."""
    dim_feedforward: Annotated[int, Field(ge=2, le=1_000_000, multiple_of=2)] = 1024
    """Width before the gate; the SwiGLU's hidden width is half of it."""
    dropout: NoDropout = 0.0
    num_denoising: NonNegativeInt = 100
    """About as many denoising queries of each sign; 0 switches denoising off."""
    label_noise_ratio: Fraction = 0.5
    """Half of this share of the denoising queries' labels is redrawn."""
    box_noise_scale: NonNegativeFloat = 1.0
    """Noise of the denoising boxes; 1.0 moves a positive's corners by up to half of its size."""
    distinct_iou: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Choose queries whose boxes overlap no better one's by more, whatever their class, among four times as many
    candidates; null takes the best as they come, as the official model does (own addition)."""
    relation_bias: bool = False
    """Bias the queries' attention to each other by how their boxes lie (own addition); starts without effect."""
    ordered_last: bool = False
    """In the last layer a query attends only to those that the layer before found at least as confident, so that the
    better of two on one object does not depend on the worse (own addition); goes with `matcher.repeat_targets`."""
    eval_idx: int = -1
    """Layer whose output is used in evaluation; negative counts from the last."""
    eps: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """Anchors with a coordinate nearer than this to 0 or 1 are invalid."""
    reg_max: RegMax = 32
    reg_scale: Annotated[int | float, must(lambda scale: scale > 0, "{} must be above 0; the recipe has 4")] = 4
    """Curvature of the bins' values. Kept as written: official files hold an integer tensor for an integer."""
    layer_scale: Annotated[float, Field(ge=1, le=1)] = 1.0
    """Width of the later layers over the first ones'; only 1 is built here."""

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if not -self.num_layers <= self.eval_idx < self.num_layers:
            yield f"eval_idx: {self.eval_idx} is no layer of num_layers {self.num_layers}; use -1 for the last"
        if self.ordered_last and (self.num_layers < 2 or self.eval_idx % self.num_layers != self.num_layers - 1):
            yield "ordered_last: needs num_layers of at least 2 and the last of them as eval_idx (-1)"


def _missing_terms(weights: Iterable[str], terms: object) -> Iterator[str]:
    if missing := sorted(set(get_args(terms)) - set(weights)):
        yield f"weight_dict: missing {', '.join(missing)}; 0 switches a term off"


class MatcherConfig(Section):
    """Weighs the costs by which queries and objects are matched (docs/deimv2.md, Matcher)."""

    only = {"type": "HungarianMatcher"}
    repeats = ("use_focal_loss",)
    weight_dict: dict[CostName, NonNegativeFloat] = {"cost_class": 2.0, "cost_bbox": 5.0, "cost_giou": 2.0}
    """Weight of each cost."""
    alpha: Fraction = 0.25
    """Balance of the focal class cost."""
    gamma: NonNegativeFloat = 2.0
    """Exponent of the focal class cost."""
    change_matcher: bool = False
    """Match by score x IoU^`iou_order_alpha` from `matcher_change_epoch` on."""
    iou_order_alpha: NonNegativeFloat = 1.0
    """Exponent of the IoU after the change."""
    matcher_change_epoch: NonNegativeInt = 0
    """First epoch of the IoU-ordered cost; read when `change_matcher` is on."""
    repeat_targets: Annotated[int, Field(ge=1, le=100)] = 1
    """Queries matched to each box in all layers but the last (own addition): more to learn from in few images."""
    repeat_in_last: bool = False
    """Repeat in the last layer too, which then learns to say things several times (own addition)."""

    def rules(self) -> Iterator[str]:
        yield from _missing_terms(self.weight_dict, CostName)
        if self.repeat_in_last and self.repeat_targets == 1:
            yield "repeat_in_last: has no effect without repeat_targets above 1"


class CriterionConfig(Section):
    """Weighs the losses (docs/deimv2.md, Matching and criterion)."""

    without_effect = ("share_matched_indices", "alpha")
    repeats = ("num_classes",)
    matcher: MatcherConfig = MatcherConfig()
    weight_dict: dict[LossName, NonNegativeFloat]
    """Weight of each loss."""
    losses: tuple[Literal["mal", "boxes", "local"], ...] = ("mal", "boxes", "local")
    """Always these three."""
    gamma: NonNegativeFloat = 2.0
    """Exponent of the MAL loss."""
    reg_max: RegMax = 32
    boxes_weight_format: None = None
    """Official key; only null is built here."""
    mal_alpha: NonNegativeFloat | None = None
    """Weight of the negatives in the MAL loss; null means 1."""
    use_uni_set: bool = True
    """Box losses on the union of all layers' matches (GO); False: each layer on its own matches."""
    pseudo_weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Weight of a box with `pseudo: 1` (labelled by a network) in the losses of its matched queries (own addition)."""

    def rules(self) -> Iterator[str]:
        if self.matcher.repeat_targets > 1 and not self.use_uni_set:
            yield "matcher.repeat_targets: above 1 needs use_uni_set: True, the box losses' one set of pairs"
        if sorted(self.losses) != ["boxes", "local", "mal"]:
            yield f"losses: {list(self.losses)} must be [mal, boxes, local]"
        yield from _missing_terms(self.weight_dict, LossName)


class PostProcessorConfig(Section):
    """Chooses the detections of an image (docs/deimv2.md, Post-processing)."""

    repeats = ("num_classes", "use_focal_loss", "remap_mscoco_category")
    num_top_queries: PositiveInt = 300
    """Detections kept per image."""


class BaselineConfig(Section):
    """Puts a torchvision detector in the place of DEIMv2, to compare with (own addition)."""

    name: Literal["fasterrcnn_resnet18", "fasterrcnn_efficientnet_b0", "fcos_resnet18"]
    """Detector and backbone."""
    weights: Literal["IMAGENET1K_V1"] | PortablePath | None
    """Weights of the backbone: torchvision's ImageNet weights, a file of the same, or null for random ones."""
    norm: Literal["frozen", "batch"] | None = None
    """Normalisation of the backbone, and with `batch` of the FPN too. Null: frozen statistics with `weights`, because
    a detector's micro-batches are too small to estimate better ones; BatchNorm without, because random weights come
    with no statistics."""
    trainable_layers: Annotated[int, Field(ge=0, le=5)] | None = None
    """Stages of the backbone that learn, of 5, from the last one on. Null: 3 with `weights` (torchvision's default for
    detectors: stem and first stage detect edges and blobs in any picture), all 5 without."""
    fpn_channels: Annotated[int, Field(ge=64, le=1024, multiple_of=32)] = 256
    """Channels of the feature pyramid and of the convolutions on it; FCOS's GroupNorm has 32 groups of at least 2."""
    anchor_sizes: tuple[Factor, ...] | None = None
    """Faster R-CNN: pixels of the network's input, one for each of the 5 levels. Null: a twentieth of the shorter
    side of `eval_spatial_size`, doubling from level to level: torchvision's 32 to 512 at 640 pixels."""
    box_head_channels: PositiveInt = 1024
    """Faster R-CNN: width of the two layers that judge a proposal."""
    rpn_pre_nms_top_n: PositiveInt = 1000
    """Faster R-CNN: proposals of a level that enter the suppression of duplicates."""
    rpn_post_nms_top_n: PositiveInt = 1000
    """Faster R-CNN: proposals of an image that are left after it."""
    rpn_batch_per_image: PositiveInt = 256
    """Faster R-CNN: anchors of an image that the losses of the proposals look at."""
    roi_batch_per_image: PositiveInt = 512
    """Faster R-CNN: proposals of an image that are judged in training."""
    score_thresh: Fraction = 0.01
    """Detections below it are dropped. torchvision's 0.05 or 0.2 would cut the list that average precision counts."""
    nms_thresh: Fraction = 0.5
    """IoU above which the lesser of two detections of a class is dropped."""

    @property
    def is_faster_rcnn(self) -> bool:
        """Whether it has two stages; else it is FCOS."""
        return self.name.startswith("fasterrcnn")

    @property
    def frozen_norm(self) -> bool:
        """`norm` with null filled in."""
        return self.norm == "frozen" if self.norm is not None else self.weights is not None

    @property
    def num_trainable_layers(self) -> int:
        """`trainable_layers` with null filled in."""
        unless_given = 5 if self.weights is None else 3
        return unless_given if self.trainable_layers is None else self.trainable_layers

    def rules(self) -> Iterator[str]:
        if self.norm == "frozen" and self.weights is None:
            yield (
                "norm: frozen statistics need weights that come with some; set norm to batch (or null), or weights to "
                "IMAGENET1K_V1"
            )
        sizes = self.anchor_sizes
        if sizes is not None and not self.is_faster_rcnn:
            yield f"anchor_sizes: {self.name} has no anchors; set it to null"
        elif sizes is not None and (len(sizes) != ANCHOR_LEVELS or list(sizes) != sorted(set(sizes))):
            yield (
                f"anchor_sizes: {list(sizes)} must be {ANCHOR_LEVELS} rising sizes in pixels, one for each level of "
                "the pyramid"
            )


class FusionConfig(Section):
    """Says how the class texts join the class scores (own addition, phase 2).

    Modes: `cosine`, `concat` and `cross_attention` read the texts; the controls have the same parts but free
    embeddings (`learned`), random ones (`random`), the texts of the wrong classes (`shuffled`) or meaningless words of
    the same number and length (`waffle`); `none` trains the same epochs without any of it.
    """

    mode: Literal["cosine", "concat", "cross_attention", "learned", "random", "shuffled", "waffle", "none"] = "cosine"
    """How texts and queries meet, see above."""
    control_head: FusionHead = "cosine"
    """The head that the controls use."""
    text_dim: PositiveInt | None = None
    """D, the width of the text embeddings; null takes it from the text encoder, or from the checkpoint."""
    num_prompts: PositiveInt | None = None
    """P, the most texts of a class; null as for `text_dim`."""
    proj_dim: PositiveInt = 256
    """Width in which features and texts are compared."""
    gate_init: float = 0.0
    """Start of each layer's gate; 0 starts exactly from phase 1."""
    learn_prompt_offsets: bool = False
    """A learned vector per class, starting at 0, on top of the frozen embedding."""
    query_selection: bool = False
    """The texts also have a say in which tokens become queries."""
    contrastive_weight: NonNegativeFloat = 0.0
    """Weight of an auxiliary cross-entropy over the texts' part of the matched queries' logits; 0 is off."""
    trainable: Literal["heads", "heads_and_decoder", "all"] = "all"
    """What learns: the fusion and the score heads it adds to, these and the decoder, or everything."""
    lr: NonNegativeFloat | None = None
    """Learning rate of the fusion's own parameters, taken as it is; null is `optimizer.lr`."""
    weight_decay: NonNegativeFloat | None = None
    """Weight decay of the fusion's matrices; null is the optimizer's. Gates, scales, biases, embeddings have none."""
    seed: NonNegativeInt = 0
    """Of the embeddings of `learned` (start) and `random`, the permutation of `shuffled` and the words of `waffle`."""
    from_start: bool = False
    """Train from the first step with text, from the weights a detector without text would start from."""
    held_out: NonNegativeInt | None = None
    """A label without training images: it takes no part in the loss, and its scores are its text's alone."""

    def rules(self) -> Iterator[str]:
        if self.from_start and self.trainable != "all":
            yield f"trainable: {self.trainable} would leave random weights as they are; from_start needs all"

    @property
    def head(self) -> FusionHead | None:
        """The head that is built; None in mode `none`."""
        if self.mode == "none":
            return None
        return self.mode if self.mode in ("cosine", "concat", "cross_attention") else self.control_head

    @property
    def reads_texts(self) -> bool:
        """Whether the mode needs embeddings of real texts."""
        return self.mode in ("cosine", "concat", "cross_attention", "shuffled", "waffle")


class DEIMv2Sections(NamedTuple):
    """DEIMv2's sections of a config that has them."""

    backbone: BackboneConfig
    encoder: EncoderConfig
    decoder: DecoderConfig
    criterion: CriterionConfig


DEIMV2_KEYS = ("model", "criterion", "DEIM", "DINOv3STAs", "HybridEncoder", "DEIMTransformer", "DEIMCriterion")
"""Keys that are null in a baseline's config: they describe DEIMv2."""


class TextEncoderConfig(Section):
    """Names the pretrained model that turns class texts into vectors, once (own addition)."""

    name: Annotated[str, Field(min_length=1), AfterValidator(checked_path)] = "openai/clip-vit-base-patch32"
    """Hub name, local folder, or `all-MiniLM-L6-v2`, the sentence encoder of the optional package (English)."""
    folder: PortablePath | None = None
    """Where the encoder's files lie; null looks in ckpts/<last part of name>, then in Hugging Face's cache."""
    allow_download: bool = True
    """Fetch the encoder from the Hugging Face hub where it is not on this machine; False never uses the network."""
    pooling: Literal["auto", "mean", "cls"] = "auto"
    """From token vectors to one: `auto` does as the model was trained, else mean. CLIP and SigLIP have their own."""
    max_length: PositiveInt | None = None
    """Tokens; null means what the model was trained with (CLIP 77, SigLIP 64)."""


class ModelConfig(Section):
    """Holds everything that models and losses are built from: DEIMv2's sections or `Baseline`."""

    model: Literal["DEIM"] | None = "DEIM"
    """The detector; null with `Baseline`."""
    criterion: Literal["DEIMCriterion"] | None = "DEIMCriterion"
    """The losses; null with `Baseline`."""
    num_classes: PositiveInt
    """C, the number of classes and width of the class scores."""
    eval_spatial_size: tuple[PositiveInt, PositiveInt] = (640, 640)
    """Height and width of the evaluation input, pixels; a stated one is the input size everywhere."""
    gradient_checkpointing: bool = False
    """Recompute the ViT and AIFI blocks in the backward pass: less memory, more time (own addition)."""
    DEIM: DEIMSection | None = DEIMSection()
    DINOv3STAs: BackboneConfig | None
    HybridEncoder: EncoderConfig | None
    DEIMTransformer: DecoderConfig | None
    DEIMCriterion: CriterionConfig | None
    PostProcessor: PostProcessorConfig = PostProcessorConfig()
    Baseline: BaselineConfig | None = None
    """A torchvision detector instead of DEIMv2, whose sections are null then."""
    MultimodalFusion: FusionConfig | None = None
    """Text fusion, phase 2; null is phase 1."""

    @property
    def deimv2(self) -> DEIMv2Sections:
        """DEIMv2's sections; ValueError for a baseline's config, which has none."""
        parts = (self.DINOv3STAs, self.HybridEncoder, self.DEIMTransformer, self.DEIMCriterion)
        if None in parts:
            raise ValueError("this config has no DEIMv2 sections")
        return DEIMv2Sections(*cast("Any", parts))

    @property
    def num_top_queries(self) -> int:
        """Detections kept per image."""
        return self.PostProcessor.num_top_queries

    def rules(self) -> Iterator[str]:
        height, width = self.eval_spatial_size
        if height % 32 or width % 32:
            near = [max(32, round(side / 32) * 32) for side in (height, width)]
            yield f"eval_spatial_size: [{height}, {width}] must be multiples of 32, such as {near}"
        if self.Baseline is not None:
            yield from self._baseline_rules()
        elif absent := [key for key in DEIMV2_KEYS if getattr(self, key) is None]:
            yield from (f"{key}: null is for baselines (section Baseline); give the section" for key in absent)
        else:
            yield from self._deimv2_rules()

    def _baseline_rules(self) -> Iterator[str]:
        for key in DEIMV2_KEYS:
            if getattr(self, key) is not None:
                yield f"{key}: describes DEIMv2 and has no effect beside Baseline; remove one of them"
        if self.gradient_checkpointing:
            yield "gradient_checkpointing: recomputes blocks of DEIMv2 and is not built for Baseline; set it to False"
        if self.MultimodalFusion is not None:
            yield "MultimodalFusion: text fusion is built for DEIMv2 only; remove it, or the section Baseline"

    def _deimv2_rules(self) -> Iterator[str]:
        backbone, encoder, decoder, criterion = self.deimv2
        if encoder.in_channels != (backbone.out_channels,) * 3:
            yield (
                f"HybridEncoder.in_channels: {list(encoder.in_channels)} must be the backbone's output width "
                f"{[backbone.out_channels] * 3} (DINOv3STAs.hidden_dim, or the ViT's width where that is null)"
            )
        if decoder.feat_channels != (encoder.hidden_dim,) * 3:
            yield (
                f"DEIMTransformer.feat_channels: {list(decoder.feat_channels)} must be the encoder's width "
                f"{[encoder.hidden_dim] * 3} (HybridEncoder.hidden_dim)"
            )
        height, width = self.eval_spatial_size
        if not (height % 32 or width % 32) and decoder.num_queries > (tokens := memory_tokens(height, width)):
            yield (
                f"DEIMTransformer.num_queries: {decoder.num_queries} queries cannot be chosen from the {tokens} tokens "
                f"of a {height} x {width} input; lower num_queries or raise eval_spatial_size"
            )
        if decoder.reg_max != criterion.reg_max:
            yield f"DEIMCriterion.reg_max: {criterion.reg_max} must equal DEIMTransformer.reg_max {decoder.reg_max}"
        if self.MultimodalFusion is not None and self.MultimodalFusion.mode == "shuffled" and self.num_classes < 2:
            yield "MultimodalFusion.mode: shuffled needs at least two classes, num_classes is 1; use another mode"
        held_out = None if self.MultimodalFusion is None else self.MultimodalFusion.held_out
        if held_out is not None and held_out >= self.num_classes:
            yield f"MultimodalFusion.held_out: {held_out}, expected a label, 0 to {self.num_classes - 1}"


def memory_tokens(height: int, width: int) -> int:
    """Tokens of the three maps of an input of `height` x `width` pixels."""
    return sum((height // stride) * (width // stride) for stride in STRIDES)
