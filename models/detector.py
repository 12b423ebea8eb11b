"""The detector: backbone, encoder, decoder under their official names (docs/deimv2.md, Overview and data flow).

Legend: B images, H x W pixels (multiples of 32), Q queries, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.backbone import DINOv3STAs
from models.config import FusionConfig, ModelConfig, memory_tokens
from models.decoder import DEIMTransformer, Predicted
from models.hybrid_encoder import HybridEncoder
from models.layers import count_batches, weights_in_autocast_type
from models.text_fusion import TextFusion, build_text_fusion

if TYPE_CHECKING:
    from models.baselines import TorchvisionDetector

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
SIZE_DIVISOR = 32
"""Sides of the network input are multiples of this: the coarsest map has this stride."""
_MAX_GRAPHS = 64
"""torch gives up compiling a function anew after 8, fewer than multi-scale has sizes."""


def check_size(images: Tensor) -> None:
    """Refuse images [B, 3, H, W] whose sides are not multiples of 32 (ValueError)."""
    height, width = images.shape[-2:]
    if height % SIZE_DIVISOR or width % SIZE_DIVISOR:
        text = f"images of {height} x {width} (height x width) pixels: both must be multiples of {SIZE_DIVISOR}"
        raise ValueError(text)


class DEIM(nn.Module):
    """DEIMv2, in phase 2 with text in its class scores."""

    def __init__(
        self,
        backbone: DINOv3STAs,
        encoder: HybridEncoder,
        decoder: DEIMTransformer,
        text_fusion: TextFusion | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.encoder = encoder
        self.decoder = decoder
        self.text_fusion = text_fusion
        self._frozen: list[nn.Module] = []
        self._compiled: Callable[..., Predicted] | None = None

    def compile_training(self, backend: str = "inductor") -> None:
        """Compile the forward and backward pass of training, once per size of a batch; `backend` is torch.compile's.

        Copies, such as an EMA, compute as written in evaluation.
        """
        # Sizes of multi-scale: symbolic ones would share a graph, but inductor (torch 2.14) fails on their strides.
        torch._dynamo.config.recompile_limit = max(_MAX_GRAPHS, torch._dynamo.config.recompile_limit)
        # A function of the module, not a bound method: it is copied with a module and not part of its state.
        self._compiled = torch.compile(DEIM._predict, fullgraph=True, dynamic=False, backend=backend)

    def freeze(self, section: FusionConfig) -> None:
        """Leave to training what `section.trainable` names; the rest keeps its weights and its statistics."""
        decoder = self.decoder
        if section.trainable == "all":
            return
        self._frozen = [self.backbone, self.encoder]
        if section.trainable == "heads":
            decoder.requires_grad_(False)
            decoder.dec_score_head.requires_grad_(True)
            decoder.enc_score_head.requires_grad_(section.query_selection)
            self._frozen.append(decoder.input_proj)
        for part in self._frozen:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> DEIM:
        """As `nn.Module.train`, but frozen parts stay in evaluation mode: their statistics are frozen too."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, images: Tensor, targets: Sequence[Mapping[str, Tensor]] | None = None) -> dict[str, Any]:
        """Detect.

        Args:
            images: float [B, 3, H, W], RGB, normalised (`normalize_images`).
            targets: Per image `labels` int64 [N] and `boxes` float [N, 4] cxcywh in [0, 1]. Read in training
                only, to make denoising queries.

        Returns:
            In evaluation `pred_logits` float32 [B, Q, C] (before the sigmoid) and `pred_boxes` float32 [B, Q, 4]
            (cxcywh, not clamped); in training also the entries that the losses read (docs/deimv2.md, Overview).
        """
        check_size(images)
        if self._casts_weights(images.device.type):
            exact = [self.decoder.enc_score_head, *([] if self.text_fusion is None else [self.text_fusion])]
            weights = weights_in_autocast_type(self, exact)
            outputs: dict[str, Any] = functional_call(self, weights, (images, targets), tie_weights=False)
            return outputs
        if self.training:
            count_batches(self)
        if self.training and self._compiled is not None:
            # Shapes that do not depend on the boxes, which are read before and after.
            denoising = self.decoder.draw_denoising(targets, memory_tokens(*images.shape[-2:]), batch=len(images))
            predicted = self._compiled(self, images, None if denoising is None else denoising.inputs)
            return self.decoder.training_outputs(predicted, denoising)
        outputs = self.decoder(self.encoder(self.backbone(images)), targets, self.text_fusion)
        return outputs

    def _predict(self, images: Tensor, denoising: tuple[Tensor, Tensor, Tensor] | None) -> Predicted:
        return self.decoder.predict(self.encoder(self.backbone(images)), denoising, self.text_fusion)

    def _casts_weights(self, device_type: str) -> bool:
        """Whether autocast would cast the weights: not those that are cast already, nor where layers are recomputed,
        which happens after the cast weights are gone, nor where a compiler joins the casts to what is around them."""
        if self.training and self._compiled is not None:
            return False
        first = self.decoder.enc_bbox_head.layers[0].weight
        recomputes = self.training and self.backbone.vit.gradient_checkpointing
        return torch.is_autocast_enabled(device_type) and first.dtype == torch.float32 and not recomputes


def build_detector(config: ModelConfig) -> DEIM | TorchvisionDetector:
    """The configured detector with random weights, DEIMv2 or a baseline; `models.weights` loads files.

    In training it returns what `models.criterion.build_criterion(config)` takes, in evaluation what
    `models.postprocess.build_postprocessor(config)` takes.
    """
    if config.Baseline is not None:
        from models.baselines import TorchvisionDetector  # torchvision takes as long to load as torch

        size = config.eval_spatial_size
        return TorchvisionDetector(config.Baseline, config.num_classes, size, config.num_top_queries)
    return build_deim(config)


def build_deim(config: ModelConfig) -> DEIM:
    """DEIMv2 with random weights, from a config without `Baseline`."""
    backbone, encoder, decoder, _ = config.deimv2
    model = DEIM(
        DINOv3STAs(backbone, config.gradient_checkpointing),
        HybridEncoder(encoder, config.gradient_checkpointing),
        DEIMTransformer(decoder, config.num_classes, config.eval_spatial_size),
        build_text_fusion(config),
    )
    if config.MultimodalFusion is not None:
        model.freeze(config.MultimodalFusion)
    return model


def normalize_images(images: Tensor, mean: Sequence[float] = IMAGE_MEAN, std: Sequence[float] = IMAGE_STD) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 of the same shape and device: (x / 255 - mean) / std."""
    x = images.to(torch.float32, copy=True)
    return x.div_(255).sub_(_per_channel(mean, x.device)).div_(_per_channel(std, x.device))


def _per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    """[C, 1, 1], filled on the device: a copy from the host would make it wait."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])
