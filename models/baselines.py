"""The CNN detectors that DEIMv2 is compared with: torchvision's Faster R-CNN and FCOS on small backbones.

Everything that detects is torchvision's. What is added makes them trainable by the same loop on the same data as
DEIMv2: images arrive resized and normalised, boxes are cxcywh in [0, 1], labels start at 0, and boxes are computed in
float32 under autocast.

Legend: B images of H x W pixels (multiples of 32), N boxes of an image, C classes, K detections of an image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import EfficientNet_B0_Weights, ResNet18_Weights, efficientnet_b0, resnet18
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from models.boxes import cxcywh_to_xyxy
from models.config import ANCHOR_LEVELS, BaselineConfig
from models.detector import check_size

MAX_DETECTIONS = 100
"""COCO judges no more of an image."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
FCOS_STRIDES = (8, 16, 32, 64, 128)
ROI_SIDE = 7
"""Cells of a pooled proposal, each way."""


class Body(NamedTuple):
    """A classification network as a backbone."""

    build: Callable[..., nn.Module]  # argument `norm_layer`; returns the part with the layers below
    stages: tuple[tuple[str, ...], ...]  # layers of the five stages, strides 2, 4, 8, 16, 32, stem first
    channels: tuple[int, int, int, int]  # of the last layers of the stages with strides 4, 8, 16, 32
    weights: Any  # torchvision's ImageNet weights, version 1
    prefix: str  # of the layers' names in a file of the whole network's weights


def body_of(config: BaselineConfig) -> Body:
    """The backbone that the name stands for."""
    if config.name == "fasterrcnn_efficientnet_b0":
        # Whole blocks are dropped at random only in long training from good weights: a short run has few steps.
        build = partial(_efficientnet_features, stochastic_depth=0.0 if config.weights is None else 0.2)
        return Body(
            build,
            stages=(("0", "1"), ("2",), ("3",), ("4", "5"), ("6", "7")),
            channels=(24, 40, 112, 320),
            weights=EfficientNet_B0_Weights.IMAGENET1K_V1,
            prefix="features.",
        )
    return Body(
        resnet18,
        stages=(("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)),
        channels=(64, 128, 256, 512),
        weights=ResNet18_Weights.IMAGENET1K_V1,
        prefix="",
    )


class TorchvisionDetector(nn.Module):
    """A torchvision detector behind DEIMv2's interface."""

    def __init__(
        self, config: BaselineConfig, num_classes: int, input_size: tuple[int, int], num_top_queries: int
    ) -> None:
        """Build with random weights; the anchors' default sizes follow from `input_size` (H, W), in pixels."""
        super().__init__()
        self.first_label = 1 if config.is_faster_rcnn else 0
        """Faster R-CNN's label 0 is the background."""
        limit = min(num_top_queries, MAX_DETECTIONS)
        if config.is_faster_rcnn:
            self.detector = _faster_rcnn(config, num_classes + 1, anchor_sizes(config, input_size), limit)
        else:
            self.detector = _fcos(config, num_classes, limit)
        self.detector.transform = _AsTheyAre()

    @property
    def body(self) -> nn.Module:
        """The backbone without the pyramid: what ImageNet weights are for."""
        body: nn.Module = self.detector.backbone.body
        return body

    def forward(self, images: Tensor, targets: Sequence[Mapping[str, Tensor]] | None = None) -> Any:
        """Detect, or compute losses in training mode.

        Args:
            images: float [B, 3, H, W], RGB, normalised (`models.detector.normalize_images`).
            targets: Per image `labels` int64 [N] and `boxes` float [N, 4] cxcywh in [0, 1]; read in training only.
                N may be 0 in every image. Boxes without area are left out.

        Returns:
            In training torchvision's losses, name -> scalar. In evaluation a list of B dicts, best first: `scores`
            float32 [K], `labels` int64 [K] (0..C-1), `boxes` float32 [K, 4], xyxy in [0, 1].
        """
        check_size(images)
        height, width = images.shape[-2:]
        scale = torch.tensor([width, height, width, height], dtype=torch.float32, device=images.device)
        if not self.training:
            return [
                {"scores": one["scores"], "labels": one["labels"] - self.first_label, "boxes": one["boxes"] / scale}
                for one in self.detector(images)
            ]
        if targets is None:
            raise ValueError("training needs targets")
        return self.detector(images, [self._to_torchvision(target, scale) for target in targets])

    def _to_torchvision(self, target: Mapping[str, Tensor], scale: Tensor) -> dict[str, Tensor]:
        boxes = cxcywh_to_xyxy(target["boxes"].float()) * scale
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # torchvision stops at boxes without
        return {"boxes": boxes[has_area], "labels": target["labels"][has_area] + self.first_label}


def anchor_sizes(config: BaselineConfig, input_size: tuple[int, int]) -> tuple[float, ...]:
    """`anchor_sizes` in pixels, with null filled in."""
    if config.anchor_sizes is not None:
        return config.anchor_sizes
    return tuple(min(input_size) / 20 * 2**level for level in range(ANCHOR_LEVELS))


def _faster_rcnn(config: BaselineConfig, num_outputs: int, sizes: Sequence[float], max_detections: int) -> Any:
    detector = FasterRCNN(
        _backbone(config, first_map=0, extra=LastLevelMaxPool()),
        rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in sizes), (ASPECT_RATIOS,) * len(sizes)),
        rpn_pre_nms_top_n_train=config.rpn_pre_nms_top_n,
        rpn_pre_nms_top_n_test=config.rpn_pre_nms_top_n,
        rpn_post_nms_top_n_train=config.rpn_post_nms_top_n,
        rpn_post_nms_top_n_test=config.rpn_post_nms_top_n,
        rpn_batch_size_per_image=config.rpn_batch_per_image,
        box_head=TwoMLPHead(config.fpn_channels * ROI_SIDE**2, config.box_head_channels),
        box_predictor=FastRCNNPredictor(config.box_head_channels, num_outputs),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=ROI_SIDE, sampling_ratio=2),
        box_score_thresh=config.score_thresh,
        box_nms_thresh=config.nms_thresh,
        box_detections_per_img=max_detections,
        box_batch_size_per_image=config.roi_batch_per_image,
    )
    for part in (detector.rpn.head, detector.roi_heads.box_predictor):
        part.register_forward_hook(_give_float32)
    return detector


def _fcos(config: BaselineConfig, num_classes: int, max_detections: int) -> Any:
    channels = config.fpn_channels
    detector = FCOS(
        _backbone(config, first_map=1, extra=LastLevelP6P7(channels, channels)),
        num_classes,
        anchor_generator=AnchorGenerator(tuple((size,) for size in FCOS_STRIDES), ((1.0,),) * len(FCOS_STRIDES)),
        score_thresh=config.score_thresh,
        nms_thresh=config.nms_thresh,
        detections_per_img=max_detections,
    )
    detector.head.register_forward_hook(_give_float32)
    return detector


def _backbone(config: BaselineConfig, first_map: int, extra: nn.Module) -> Any:
    """Body and feature pyramid on its maps from `first_map` (0: stride 4) on; `extra` adds coarser levels."""
    body = body_of(config)
    norm_layer = FrozenBatchNorm2d if config.frozen_norm else nn.BatchNorm2d
    network = body.build(norm_layer=norm_layer)
    frozen = tuple(f"{layer}." for stage in body.stages[: 5 - config.num_trainable_layers] for layer in stage)
    for name, parameter in network.named_parameters():
        if name.startswith(frozen):
            parameter.requires_grad_(False)
    maps = [stage[-1] for stage in body.stages[1:]][first_map:]
    backbone = BackboneWithFPN(
        network,
        return_layers={layer: str(index) for index, layer in enumerate(maps)},
        in_channels_list=list(body.channels[first_map:]),
        out_channels=config.fpn_channels,
        extra_blocks=extra,
        norm_layer=None if config.frozen_norm else nn.BatchNorm2d,  # nothing pretrained here: no frozen statistics
    )
    backbone.register_forward_hook(_give_float32)
    return backbone


def _efficientnet_features(*, norm_layer: Callable[..., nn.Module], stochastic_depth: float) -> nn.Module:
    features: nn.Module = efficientnet_b0(norm_layer=norm_layer, stochastic_depth_prob=stochastic_depth).features
    return features


def _give_float32(module: nn.Module, inputs: object, outputs: Any) -> Any:
    """Under autocast torchvision would compute anchors and boxes in the type of the maps and of the heads' outputs:
    bfloat16 has steps of 2 pixels at 512. The convolutions and products before stay fast."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    if isinstance(outputs, Mapping):
        return OrderedDict((key, _give_float32(module, inputs, value)) for key, value in outputs.items())
    return tuple(_give_float32(module, inputs, value) for value in outputs)


class _AsTheyAre(nn.Module):
    """In the place of torchvision's resizing and normalising: the images are resized and normalised already."""

    def forward(
        self, images: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[Any, list[dict[str, Tensor]] | None]:
        height, width = images.shape[-2:]
        return ImageList(images, [(height, width)] * len(images)), targets

    def postprocess(self, detections: list[dict[str, Tensor]], *sizes: object) -> list[dict[str, Tensor]]:
        """Boxes stay in pixels of the network's input."""
        return detections
