"""Where the evidence for a class score, or for the place of a box's edge, lies in the image: Grad-CAM and its relatives
for one query of a detector.

A map belongs to a query (DEIMv2) or a detection (CNN baseline), not to the image: the gradient is that of its own
class score or edge. Sources: Grad-CAM, Selvaraju et al. 2017; HiResCAM, Draelos and Carin 2020, which with these
targets is ODAM, Zhao and Chan 2023, without its smoothing; Eigen-CAM, Muhammad and Yeasin 2020.

Legend: B images, D channels, h x w cells of a map, N = P + Hp*Wp tokens (P prefix tokens), Q queries, C classes,
K detections.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from attention.maps import EDGES, Edge, add_up
from data.errors import UserError
from models.baselines import TorchvisionDetector
from models.boxes import cxcywh_to_xyxy
from models.detector import DEIM
from models.vit import PATCH_SIZE

EvidenceMethod = Literal["grad_cam", "hires_cam", "eigen_cam"]
EVIDENCE_METHODS: tuple[EvidenceMethod, ...] = get_args(EvidenceMethod)
Target = Literal["class"] | Edge
"""What a map is the evidence for: the class score, or how far out an edge of the box lies."""
ODAM_EDGES: dict[str, Edge] = {f"odam_{edge}": edge for edge in EDGES}
"""Maps for the four edges, by name."""

DrawMap = Callable[[nn.Module, Tensor, int, int], Tensor]
"""(model, normalised image [1, 3, H, W], query, label) -> map [h, w], any scale, >= 0."""

_LOGIT_EPS = 1e-7


class EvidenceLayer(NamedTuple):
    """A place in a detector whose output is one or several maps."""

    name: str
    """As the user writes it, e.g. `encoder`, `encoder.1`, `vit.5`."""
    module: nn.Module
    level: int | None
    """Of a list of maps, which one; None: all of them, or the output is a single tensor."""
    num_prefix: int | None = None
    """The output are tokens [B, N, D] with so many before the patches; None: it is maps."""


def evidence_layers(model: nn.Module) -> dict[str, EvidenceLayer]:
    """Return every place that a model has, by name, the default first.

    DEIMv2: `encoder` and `backbone` are the maps of strides 8, 16 and 32 together, with `.0`, `.1`, `.2` one of them;
    `vit.K` the patch tokens after block K. Baselines: `fpn` and `body`, likewise by level.
    """
    layers: dict[str, EvidenceLayer] = {}
    if isinstance(model, DEIM):
        levels, places = len(model.backbone.norms), {"encoder": model.encoder, "backbone": model.backbone}
    else:
        assert isinstance(model, TorchvisionDetector)
        body: Any = model.body
        levels, places = len(body.return_layers), {"fpn": model.detector.backbone, "body": body}
    for name, module in places.items():
        layers[name] = EvidenceLayer(name, module, None)
        layers |= {f"{name}.{level}": EvidenceLayer(f"{name}.{level}", module, level) for level in range(levels)}
    if isinstance(model, DEIM):
        vit = model.backbone.vit
        for index in range(vit.returned_blocks[-1] + 1):
            layers[f"vit.{index}"] = EvidenceLayer(f"vit.{index}", vit.blocks[index], None, vit.num_prefix)
    return layers


def resolve_layer(model: nn.Module, name: str | None = None) -> EvidenceLayer:
    """Return the place that a name stands for, see `evidence_layers`.

    Raises:
        UserError: The model has no such place; the message lists those it has.
    """
    layers = evidence_layers(model)
    name = next(iter(layers)) if name is None else name
    if name not in layers:
        raise UserError(f"Layer {name!r}: this model has no such place; choose one of {', '.join(layers)}.")
    return layers[name]


def evidence_map(
    model: nn.Module,
    image: Tensor,
    query: int,
    label: int,
    method: EvidenceMethod = "grad_cam",
    layer: str | None = None,
    target: Target = "class",
) -> Tensor:
    """Map what the score of `label`, or an edge of the box, at `query` (DEIMv2) or at a detection (baseline) rests on.

    `grad_cam` weighs channels by their mean gradient; `hires_cam` multiplies gradient and activation cell by cell,
    which keeps the place and therefore tells one object of a class from the next; `eigen_cam` is the strongest
    pattern in the map, whatever the query is. What counts is what later parts read in a map directly, not what reaches
    them through another map of the same list. Several maps are added up as shares: a coarse cell's evidence is spread
    over the finer cells that it covers.

    `image` is float [1, 3, H, W], normalised; `layer` is a name for `resolve_layer`. Returns float32 [h, w] on the CPU,
    >= 0, at the resolution of the finest map. Nothing in the model changes, no gradient is left behind.

    Raises:
        UserError: The model has no such layer.
    """
    place = resolve_layer(model, layer)
    if method == "eigen_cam":
        with torch.no_grad(), _tapped(model, place) as taken:
            model(image)
        return add_up([_eigen_cam(x[0]) for x in _as_maps(taken, place, image)]).cpu()
    with torch.enable_grad(), _tapped(model, place) as taken:
        outputs = model(image)
        value = class_logit(outputs, query, label) if target == "class" else edge_outward(outputs, query, target)
        gradients = torch.autograd.grad(value, taken, allow_unused=True)
    filled = [torch.zeros_like(x) if g is None else g for x, g in zip(taken, gradients, strict=True)]
    pairs = zip(_as_maps(taken, place, image), _as_maps(filled, place, image), strict=True)
    weigh = grad_cam if method == "grad_cam" else hires_cam
    return add_up([weigh(x[0].detach(), g[0]) for x, g in pairs]).clamp(min=0).cpu()


def evidence_methods(layer: str | None) -> dict[str, DrawMap]:
    """Return every kind of map that `evidence_map` draws, taken at one layer."""
    methods: dict[str, DrawMap] = {name: partial(evidence_map, method=name, layer=layer) for name in EVIDENCE_METHODS}
    edges = {
        name: partial(evidence_map, method="hires_cam", layer=layer, target=edge) for name, edge in ODAM_EDGES.items()
    }
    return methods | edges


def grad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """[D, h, w], [D, h, w] -> signed [h, w]: channels weighted by their mean gradient."""
    return (gradient.mean(dim=(1, 2), keepdim=True) * activation).sum(dim=0).float()


def hires_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """[D, h, w], [D, h, w] -> signed [h, w]: first-order contribution of every cell."""
    return (gradient * activation).sum(dim=0).float()


def class_logit(outputs: Any, query: int, label: int) -> Tensor:
    """Return the score of a class as a logit, scalar, with its graph, from a detector's outputs for one image."""
    if isinstance(outputs, Mapping):
        logit: Tensor = outputs["pred_logits"][0, query, label]
        return logit
    assert int(outputs[0]["labels"][query]) == label, "a baseline's detection has a score for its own class alone"
    return torch.logit(outputs[0]["scores"][query], eps=_LOGIT_EPS)


def edge_outward(outputs: Any, query: int, edge: Edge) -> Tensor:
    """Return how far out an edge of a query's or detection's box lies, scalar, with its graph: the right and bottom
    coordinate, minus the left and top one, so that a map shows what holds the edge out whichever edge it is."""
    boxes = cxcywh_to_xyxy(outputs["pred_boxes"][0]) if isinstance(outputs, Mapping) else outputs[0]["boxes"]
    coordinate: Tensor = boxes[query, EDGES.index(edge)]
    return -coordinate if edge in ("left", "top") else coordinate


def _eigen_cam(activation: Tensor) -> Tensor:
    """[D, h, w] -> [h, w]: projection on the first right singular vector, signed so that most of it is positive, and
    summing to 1: activations of different levels have no common unit."""
    channels, height, width = activation.shape
    rows = activation.detach().float().reshape(channels, -1).T
    # The first eigenvector of the small D x D matrix; an SVD of all cells would take far longer.
    direction = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -1]
    projected = (rows @ direction).reshape(height, width)
    upright: Tensor = projected.clamp(min=0) if projected.sum() >= 0 else (-projected).clamp(min=0)
    return upright / upright.sum() if upright.any() else upright


def _as_maps(tensors: Sequence[Tensor], layer: EvidenceLayer, image: Tensor) -> list[Tensor]:
    """[B, D, h, w] each; tokens go back to where their patches are."""
    if layer.num_prefix is None:
        return list(tensors)
    grid = (image.shape[-2] // PATCH_SIZE, image.shape[-1] // PATCH_SIZE)
    return [x[:, layer.num_prefix :].transpose(1, 2).unflatten(2, grid) for x in tensors]


@contextmanager
def _tapped(model: nn.Module, layer: EvidenceLayer) -> Iterator[list[Tensor]]:
    """Inside, the layer's maps become leaves of the graph, which are collected; afterwards nothing is left.

    No parameter requires a gradient meanwhile, so the graph holds only what lies between the leaves and the score:
    that bounds the memory and leaves every `.grad` alone.
    """
    taken: list[Tensor] = []
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles = [layer.module.register_forward_hook(lambda _module, _inputs, out: _make_leaves(out, layer.level, taken))]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield taken
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def _make_leaves(output: Any, level: int | None, taken: list[Tensor]) -> Any:
    """The output with the chosen tensors as leaves; a list or dict keeps its form."""
    if isinstance(output, Tensor):
        leaf = output.detach().requires_grad_(torch.is_grad_enabled())
        taken.append(leaf)
        return leaf
    items = list(output.items()) if isinstance(output, Mapping) else list(enumerate(output))
    made = [
        (key, _make_leaves(value, None, taken) if level is None or level == place else value)
        for place, (key, value) in enumerate(items)
    ]
    return OrderedDict(made) if isinstance(output, Mapping) else [value for _, value in made]
