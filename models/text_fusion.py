"""Class texts in the class scores: what a query's features say about the embedded descriptions of the classes.

A detector of phase 1 scores class c of a query by a linear layer. Text fusion adds, in every decoder layer,
gate x contribution: one learned number per layer, 0 at the start, times a logit that compares the query with the
class's text. With the gates at 0 the detector is phase 1's, bit for bit, and the gates still receive a gradient.

Legend: C classes, P prompts of the class with most, D text width, V feature width, J projected width (`proj_dim`),
[...] any leading sizes, N decoder layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import DecoderConfig, FusionConfig, FusionHead, ModelConfig
from models.layers import without_autocast

if TYPE_CHECKING:
    from models.detector import DEIM

PREFIX = "text_fusion."
"""Start of the names of all parameters and buffers that phase 2 adds to the detector."""
_INITIAL_SCALE = 10.0
_LARGEST_SCALE = 100.0
HARDLY_LOGITS = 0.2
"""A `largest_say` below this moves a score of 0.5 by less than 0.05."""
_NO_LOSS = -1e4
"""A logit whose sigmoid is 0: as a negative it has neither loss nor gradient."""


class CosineReadout(nn.Module):
    """scale x cosine(projected feature, projected text) + bias."""

    def __init__(self, visual_dim: int, proj_dim: int) -> None:
        super().__init__()
        self.visual_projection = nn.Linear(visual_dim, proj_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_INITIAL_SCALE)))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """float32 [..., V], tokens [C, J] -> [..., C]."""
        cosine = F.normalize(self.visual_projection(features), dim=-1) @ F.normalize(tokens, dim=-1).T
        return cosine * self.log_scale.clamp(max=math.log(_LARGEST_SCALE)).exp() + self.bias


class ConcatReadout(nn.Module):
    """The thesis' formula: linear([projected feature, projected text]), both normalised.

    The layer has one output per class, and for a pair of query and class the pair's own text goes in and the class's
    output comes out. A linear layer on a concatenation is a sum, so a text moves all logits of its class alike:
    hence `cosine` is the default.
    """

    def __init__(self, visual_dim: int, proj_dim: int, num_classes: int) -> None:
        super().__init__()
        self.visual_projection = nn.Linear(visual_dim, proj_dim)
        self.linear = nn.Linear(2 * proj_dim, num_classes)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """float32 [..., V], tokens [C, J] -> [..., C]."""
        for_visual, for_text = self.linear.weight.chunk(2, dim=1)
        text = (F.normalize(tokens, dim=-1) * for_text).sum(dim=-1) + self.linear.bias
        return F.normalize(self.visual_projection(features), dim=-1) @ for_visual.T + text


class TextCrossAttention(nn.Module):
    """Features that have looked at the class tokens: x + out(attention(x, tokens)), `out` starting at 0."""

    def __init__(self, visual_dim: int, proj_dim: int, num_heads: int) -> None:
        super().__init__()
        self._num_heads = num_heads
        self.query = nn.Linear(visual_dim, visual_dim)
        self.key = nn.Linear(proj_dim, visual_dim)
        self.value = nn.Linear(proj_dim, visual_dim)
        self.out = nn.Linear(visual_dim, visual_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """float32 [..., V], tokens [C, J] -> [..., V]."""
        flat = features.reshape(-1, features.shape[-1])
        query, key, value = (
            x.unflatten(-1, (self._num_heads, -1)).transpose(0, 1)
            for x in (self.query(flat), self.key(tokens), self.value(tokens))
        )
        read = F.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)
        out: Tensor = features + self.out(read).view_as(features)
        return out


class MultimodalFusion(nn.Module):
    """The contribution of the class texts to the class logits.

    One text projection serves all layers; each layer has its own projection of the features and its own readout.
    `cross_attention` is the cosine of features that first attended to the class tokens. Everything is computed in
    float32, also under autocast: it is small, and a gate near 0 needs the digits.
    """

    def __init__(
        self,
        visual_dim: int = 192,
        text_dim: int = 512,
        num_classes: int = 6,
        *,
        mode: FusionHead = "cosine",
        proj_dim: int = 256,
        num_layers: int = 1,
        num_heads: int = 8,
    ) -> None:
        super().__init__()
        self.text_projection = nn.Linear(text_dim, proj_dim)
        self.readouts = nn.ModuleList(
            ConcatReadout(visual_dim, proj_dim, num_classes)
            if mode == "concat"
            else CosineReadout(visual_dim, proj_dim)
            for _ in range(num_layers)
        )
        attentions = num_layers if mode == "cross_attention" else 0
        self.attentions = nn.ModuleList(TextCrossAttention(visual_dim, proj_dim, num_heads) for _ in range(attentions))

    def forward(self, visual_feats: Tensor, text_embeds: Tensor, layer: int = 0) -> Tensor:
        """The texts' contribution, not gated: [..., V] and [C, D] -> float32 logits [..., C]."""
        return self.fuse(visual_feats, text_embeds, layer)[1]

    def fuse(self, visual_feats: Tensor, text_embeds: Tensor, layer: int = 0) -> tuple[Tensor, Tensor]:
        """What the score head reads, and the contribution: [..., V] in the features' dtype, float32 [..., C].

        The first are the features themselves, except that in `cross_attention` they have attended to the texts.
        """
        with without_autocast(visual_feats.device.type):
            exact = visual_feats.float()
            tokens = self.text_projection(text_embeds.float())
            if self.attentions:
                exact = self.attentions[layer](exact, tokens)
                visual_feats = exact.to(visual_feats.dtype)
            return visual_feats, self.readouts[layer](exact, tokens)


class ClassTexts(nn.Module):
    """One unit vector per class out of the embeddings of its texts, which are buffers: checkpoints hold them."""

    embeds: Tensor
    mask: Tensor

    def __init__(self, config: FusionConfig, num_classes: int) -> None:
        super().__init__()
        if config.text_dim is None or (config.reads_texts and config.num_prompts is None):
            raise ValueError("MultimodalFusion.text_dim and num_prompts must be known before the model is built")
        self._config = config
        prompts = config.num_prompts if config.reads_texts and config.num_prompts else 1
        shape = (num_classes, prompts, config.text_dim)
        self.register_buffer("mask", torch.ones(shape[:2], dtype=torch.bool))
        if config.reads_texts:
            self.register_buffer("embeds", torch.zeros(shape))
        else:
            drawn = F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(config.seed)), dim=-1)
            if config.mode == "learned":
                self.embeds = nn.Parameter(drawn)
            else:
                self.register_buffer("embeds", drawn)
        offsets = config.learn_prompt_offsets and config.mode != "learned"  # free embeddings need none
        self.offsets = nn.Parameter(torch.zeros(num_classes, config.text_dim)) if offsets else None

    def set(self, embeds: Tensor, mask: Tensor) -> None:
        """Take the texts: float [C, P, D] and bool [C, P], True where there is a prompt.

        `shuffled` gives every class another class's texts. `learned` and `random` have no use for texts.
        """
        if not self._config.reads_texts:
            return
        if embeds.shape != self.embeds.shape or mask.shape != self.mask.shape:
            raise ValueError(f"texts of shape {list(embeds.shape)}, expected {list(self.embeds.shape)}")
        if self._config.mode == "shuffled":
            rows = derangement(len(embeds), self._config.seed)
            embeds, mask = embeds[rows], mask[rows]
        self.embeds.copy_(embeds)
        self.mask.copy_(mask)

    def forward(self) -> Tensor:
        """float32 [C, D], each row of length 1 before the offset."""
        embeds = F.normalize((self.embeds * self.mask[..., None]).sum(dim=1), dim=-1)
        return embeds if self.offsets is None else embeds + self.offsets


def derangement(size: int, seed: int) -> Tensor:
    """A random permutation of 0..size-1 that leaves nothing in its place: int64 [size]. One alone has none."""
    if size == 1:
        raise ValueError("one class alone cannot be shuffled")
    generator = torch.Generator().manual_seed(seed)
    while True:  # a permutation is one in about 37 % of all draws
        drawn = torch.randperm(size, generator=generator)
        if not bool((drawn == torch.arange(size)).any()):
            return drawn


class TextFusion(nn.Module):
    """Texts, their contribution and the gates: the part that phase 2 adds to a detector.

    There is a gate and a readout for each decoder layer, and with `query_selection` one more place, the last, for the
    choice of queries.
    """

    def __init__(self, section: FusionConfig, head: FusionHead, decoder: DecoderConfig, num_classes: int) -> None:
        super().__init__()
        places = decoder.num_layers + section.query_selection
        self.texts = ClassTexts(section, num_classes)
        self.head = MultimodalFusion(
            decoder.hidden_dim,
            self.texts.embeds.shape[-1],
            num_classes,
            mode=head,
            proj_dim=section.proj_dim,
            num_layers=places,
            num_heads=decoder.nhead,
        )
        self.gates = nn.Parameter(torch.full((places,), section.gate_init))
        self.selects_queries = section.query_selection
        self._held_out = section.held_out

    def forward(self, features: Tensor, score_head: nn.Module, place: int) -> tuple[Tensor, Tensor]:
        """Class scores with the texts in them, and the contribution in them before the gate, both float32 [..., C].

        `features` [..., V] are what phase 1's linear `score_head` reads, `place` is a decoder layer 0..N-1, or -1 for
        the choice of queries. Of a held-out class training sees neither; in evaluation its logit is a constant, the
        score head's bias, and what its text says.
        """
        seen, contribution = self.head.fuse(features, self.texts(), place)
        logits = score_head(seen).float() + self.gates[place] * contribution
        if self._held_out is None:
            return logits, contribution
        held_out = torch.arange(logits.shape[-1], device=logits.device) == self._held_out
        if self.training:
            return logits.masked_fill(held_out, _NO_LOSS), contribution.masked_fill(held_out, _NO_LOSS)
        alone = score_head.get_parameter("bias") + self.gates[place] * contribution
        return torch.where(held_out, alone, logits), contribution


def build_text_fusion(config: ModelConfig) -> TextFusion | None:
    """What the section `MultimodalFusion` adds to DEIMv2; None without the section and in mode `none`. The sizes of the
    texts are in the config by now (`engine.multimodal`)."""
    section = config.MultimodalFusion
    if section is None or section.head is None:
        return None
    return TextFusion(section, section.head, config.deimv2.decoder, config.num_classes)


def largest_say(state: Mapping[str, Tensor]) -> float | None:
    """The most by which a query's features can move a class score by way of the texts, over all layers, in logits.

    A cosine lies between -1 and 1, so gate x scale bounds it, and in `concat` gate x length of a class's row. None
    without text fusion, and for `cross_attention`, which changes what the score head reads, too.
    """
    gates = state.get(f"{PREFIX}gates")
    if gates is None or f"{PREFIX}head.attentions.0.out.weight" in state:
        return None
    most = 0.0
    for place, gate in enumerate(gates):
        readout = f"{PREFIX}head.readouts.{place}."
        if f"{readout}log_scale" in state:
            length = state[f"{readout}log_scale"].exp().clamp(max=_LARGEST_SCALE)
        else:
            length = state[f"{readout}linear.weight"].chunk(2, dim=1)[0].norm(dim=1).max()
        most = max(most, float(gate.abs() * length))
    return most


class TextContributions(NamedTuple):
    """Who says what in a class score: the logits of every layer that evaluation runs, in two parts; all float32.

    `visual` + `text` is what the layer's score head gives; on top of it the location quality adds one number per
    query to all classes, which makes the detector's `pred_logits`.
    """

    visual: Tensor
    """[N, B, Q, C]: phase 1's score head on the query's own features."""
    text: Tensor
    """[N, B, Q, C]: what the texts change: gate x contribution, and in `cross_attention` also what the score head
    makes of the features' look at the class tokens. Zeros without text fusion."""
    outputs: dict[str, Tensor]
    """The detector's evaluation output: `pred_logits` [B, Q, C], `pred_boxes` [B, Q, 4]."""


@torch.no_grad()
def text_contributions(model: DEIM, images: Tensor) -> TextContributions:
    """Run `model`, in evaluation mode, on normalised images [B, 3, H, W] and take its class scores apart.

    The model is only listened to, through hooks that are gone afterwards: nothing is computed when nobody asks.
    """
    if model.training:
        raise ValueError("the model must be in evaluation mode")
    features: dict[int, Tensor] = {}
    layers = model.decoder.decoder.layers
    handles = [layer.register_forward_hook(partial(_keep, features, index)) for index, layer in enumerate(layers)]
    try:
        outputs = model(images)
    finally:
        for handle in handles:
            handle.remove()
    visual, fused = [], []
    for index, read in sorted(features.items()):
        head = model.decoder.dec_score_head[index]
        visual.append(head(read).float())
        fused.append(visual[-1] if model.text_fusion is None else model.text_fusion(read, head, index)[0])
    plain = torch.stack(visual)
    return TextContributions(plain, torch.stack(fused) - plain, outputs)


def _keep(features: dict[int, Tensor], index: int, _layer: nn.Module, _inputs: Any, output: Tensor) -> None:
    features[index] = output
