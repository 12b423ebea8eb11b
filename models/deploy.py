"""The detector as it is deployed: convolution and BatchNorm folded into one, what only training needs dropped.

Legend: B images, H x W pixels (multiples of 32), K detections.
"""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.detector import DEIM
from models.distinct import without_repeats
from models.hybrid_encoder import ConvNorm, RepVggBlock
from models.postprocess import PostProcessor
from models.vit import Attention, Block, GeluFfn, LayerScale, MaskedKeyLinear


def deploy(model: DEIM) -> DEIM:
    """A copy of `model` in evaluation mode, with the same outputs up to rounding and fewer operations.

    Folded: BatchNorm into the convolution before it, the two branches of a RepVGG block into one convolution, layer
    scale and DINOv3's key-bias mask into the linear layers beside them. Dropped: the ViT's blocks after the last one
    that is read, decoder layers after `eval_idx`, the heads of layers whose output nobody reads, and the denoising
    embedding. The copy cannot be trained, and its state dict has other keys (docs/deimv2.md, Deploy).
    """
    deployed = copy.deepcopy(model).eval().requires_grad_(False)
    _drop_unused(deployed)
    _fold_backbone(deployed)
    for parent in list(deployed.modules()):
        for name, child in list(parent.named_children()):
            folded = _folded(child)
            if folded is not None:
                setattr(parent, name, folded)
    # The official number is an integer parameter, which torch.export.load of torch 2.9 refuses.
    for part in (deployed.decoder, deployed.decoder.decoder):
        part.reg_scale = _frozen(part.reg_scale.float())
    return deployed.eval().requires_grad_(False)


class FusedConv(nn.Module):
    """Convolution with bias and, if asked for, SiLU."""

    def __init__(self, conv: nn.Conv2d, silu: bool) -> None:
        super().__init__()
        self.conv = conv
        self._silu = silu

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.silu(x) if self._silu else x


def _folded(module: nn.Module) -> nn.Module | None:
    """What takes the place of `module`; None: it stays."""
    if isinstance(module, RepVggBlock):
        return FusedConv(_merge_branches(module), silu=True)
    if isinstance(module, ConvNorm):
        return FusedConv(fuse_conv_bn_eval(module.conv, module.norm), silu=module._silu)
    if isinstance(module, MaskedKeyLinear):
        plain = nn.Linear(module.in_features, module.out_features, device=module.weight.device)
        plain.weight, plain.bias = module.weight, _frozen(module.bias * module.bias_mask)
        return plain
    if isinstance(module, Block) and isinstance(module.ls1, LayerScale):
        _fold_layer_scale(module)
    return None


def _merge_branches(block: RepVggBlock) -> nn.Conv2d:
    """One 3 x 3 convolution out of the 3 x 3 and the 1 x 1 branch."""
    wide = fuse_conv_bn_eval(block.conv1.conv, block.conv1.norm)
    point = fuse_conv_bn_eval(block.conv2.conv, block.conv2.norm)
    assert wide.bias is not None and point.bias is not None
    wide.weight = _frozen(wide.weight + F.pad(point.weight, (1, 1, 1, 1)))
    wide.bias = _frozen(wide.bias + point.bias)
    return wide


def _fold_layer_scale(block: Block) -> None:
    """Put each factor per channel into the linear layer that it multiplies."""
    assert isinstance(block.attn, Attention)
    last = block.mlp.fc2 if isinstance(block.mlp, GeluFfn) else block.mlp.w3
    for name, linear in (("ls1", block.attn.proj), ("ls2", last)):
        scale = getattr(block, name)
        assert isinstance(scale, LayerScale)
        linear.weight = _frozen(linear.weight * scale.gamma[:, None])
        linear.bias = _frozen(linear.bias * scale.gamma)
        setattr(block, name, nn.Identity())


def _fold_backbone(model: DEIM) -> None:
    """The detail branch and the fusion of both branches."""
    backbone = model.backbone
    pairs: list[tuple[Any, int, Any, int]] = [
        (backbone.convs, i, backbone.norms, i) for i in range(len(backbone.norms))
    ]
    stages: Any = [] if backbone.sta is None else backbone.sta.children()
    pairs += [(stage, i, stage, i + 1) for stage in stages for i in range(len(stage) - 1)]
    for convs, at, norms, after in pairs:
        if isinstance(convs[at], nn.Conv2d) and isinstance(norms[after], nn.BatchNorm2d):
            convs[at], norms[after] = fuse_conv_bn_eval(convs[at], norms[after]), nn.Identity()


def _drop_unused(model: DEIM) -> None:
    vit, decoder = model.backbone.vit, model.decoder
    vit.blocks = vit.blocks[: vit.returned_blocks[-1] + 1]
    kept = decoder.num_eval_layers
    for layers in (decoder.decoder.layers, decoder.decoder.lqe_layers, decoder.dec_score_head, decoder.dec_bbox_head):
        del layers[kept:]
    for index in range(kept - decoder.num_speaking):
        decoder.decoder.lqe_layers[index] = nn.Identity()
        # Layer 0 computes class scores also in evaluation; without texts nobody reads them.
        if index > 0 or model.text_fusion is None:
            decoder.dec_score_head[index] = nn.Identity()
    del decoder.denoising_class_embed, decoder.valid_mask


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone(), requires_grad=False)


class DeployedDetector(nn.Module):
    """Network (of `deploy`) and post-processing in one, with the inputs and outputs of the official exports.

    Of boxes of one class that overlap more than `nms_iou`, the best is kept; None keeps all.
    """

    def __init__(self, model: DEIM, postprocessor: PostProcessor, nms_iou: float | None = None) -> None:
        super().__init__()
        self.model = model
        self._postprocessor = postprocessor
        self._nms_iou = nms_iou

    def forward(self, images: Tensor, orig_target_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect (docs/deimv2.md, Post-processing).

        Args:
            images: float32 [B, 3, H, W], RGB, normalised (`models.detector.normalize_images`).
            orig_target_sizes: int64 [B, 2], width and height of the original images in pixels.

        Returns:
            labels int64 [B, K], boxes float32 [B, K, 4] xyxy in pixels of the original images, scores float32
            [B, K]; best first. Suppressed repeats come last, with a score of 0.
        """
        found = self._postprocessor.batched(self.model(images), orig_target_sizes)
        return found if self._nms_iou is None else without_repeats(*found, self._nms_iou)
