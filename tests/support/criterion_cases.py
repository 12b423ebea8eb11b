"""Decoder outputs to feed the criterion: made up from a seed, or the golden ones of tests/golden/criterion.*."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"
Targets = list[dict[str, Tensor]]
WEIGHTS = {"loss_mal": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0, "loss_fgl": 0.15, "loss_ddf": 1.5}


def made_up_targets(boxes_per_image: Sequence[int], num_classes: int, generator: torch.Generator) -> Targets:
    """Random boxes inside the image, 4 to 50 % of its side."""
    targets = []
    for n in boxes_per_image:
        size = torch.rand(n, 2, generator=generator) * 0.46 + 0.04
        centre = size / 2 + torch.rand(n, 2, generator=generator) * (1 - size)
        labels = torch.randint(num_classes, (n,), generator=generator)
        targets.append({"labels": labels, "boxes": torch.cat([centre, size], dim=-1)})
    return targets


def made_up_outputs(
    targets: Targets,
    generator: torch.Generator,
    *,
    num_queries: int,
    num_classes: int,
    num_layers: int = 4,
    num_denoising: int = 100,
    reg_max: int = 32,
) -> dict[str, Any]:
    """Training outputs of a half-trained decoder: queries gather around the boxes and move from layer to layer.

    All `pred_*` tensors are leaves that require a gradient.
    """
    batch = len(targets)

    def around(reference: Tensor, spread: float) -> Tensor:
        noise = torch.randn(reference.shape, generator=generator) * spread
        noise[..., 2:] = (noise[..., 2:]).clamp(min=-0.9) * reference[..., 2:]
        return reference + noise

    def layers(reference: Tensor) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        shape = reference.shape[:2]
        logits = torch.randn(*shape, num_classes, generator=generator) - 2
        corners = torch.randn(*shape, 4 * (reg_max + 1), generator=generator)
        boxes, result = reference, []
        for _ in range(num_layers + 1):
            logits = logits + 0.3 * torch.randn(logits.shape, generator=generator)
            corners = corners + 0.3 * torch.randn(corners.shape, generator=generator)
            boxes = around(boxes, 0.02)
            layer = {"pred_logits": logits, "pred_boxes": boxes, "pred_corners": corners}
            result.append({key: value.clone().requires_grad_() for key, value in layer.items()})
        pre, *rest = result
        del pre["pred_corners"]
        for layer in rest:
            layer |= {"ref_points": reference, "teacher_corners": rest[-1]["pred_corners"].detach()}
            layer["teacher_logits"] = rest[-1]["pred_logits"].detach()
        return rest, pre

    anywhere = made_up_targets([num_queries] * batch, num_classes, generator)
    reference = torch.stack([t["boxes"] for t in anywhere])
    for image, target in enumerate(targets):
        near = target["boxes"].repeat(3, 1)[:num_queries]
        reference[image, : len(near)] = around(near, 0.03)
    (*aux, last), pre = layers(reference)
    encoder = {
        "pred_logits": (torch.randn(batch, num_queries, num_classes, generator=generator) - 2).requires_grad_(),
        "pred_boxes": around(reference, 0.05).requires_grad_(),
    }
    outputs: dict[str, Any] = {**last, "aux_outputs": aux, "pre_outputs": pre, "enc_aux_outputs": [encoder]}
    outputs |= {"up": torch.tensor([0.5]), "reg_scale": torch.tensor([4]), "enc_meta": {"class_agnostic": False}}
    most = max(len(target["labels"]) for target in targets)
    if most and num_denoising:
        groups = max(1, num_denoising // most)
        reference = torch.full((batch, groups, 2, most, 4), 0.5)
        for image, target in enumerate(targets):
            reference[image, ..., : len(target["boxes"]), :] = target["boxes"]
        outputs["dn_outputs"], outputs["dn_pre_outputs"] = layers(around(reference.flatten(1, 3), 0.03))
        outputs["dn_meta"] = {
            "dn_num_group": groups,
            "dn_num_split": [2 * most * groups, num_queries],
            "dn_positive_idx": [
                torch.cat([torch.arange(len(t["labels"])) + 2 * most * group for group in range(groups)])
                for t in targets
            ],
        }
    return outputs


def named_leaves(outputs: dict[str, Any]) -> dict[str, Tensor]:
    """All `pred_*` tensors by the names of the golden file: `last.pred_boxes`, `aux.0.pred_logits`, ..."""
    sets = {"last": outputs, "pre": outputs["pre_outputs"]}
    sets |= {f"aux.{i}": aux for i, aux in enumerate(outputs["aux_outputs"])}
    sets |= {f"enc.{i}": encoder for i, encoder in enumerate(outputs["enc_aux_outputs"])}
    if "dn_outputs" in outputs:
        sets |= {f"dn.{i}": layer for i, layer in enumerate(outputs["dn_outputs"])}
        sets["dn_pre"] = outputs["dn_pre_outputs"]
    return {f"{name}.{k}": v for name, output in sets.items() for k, v in output.items() if k.startswith("pred_")}


def golden_case() -> tuple[dict[str, Any], Targets, dict[str, Any]]:
    """Outputs with denoising, targets, and the reference numbers."""
    tensors = load_file(GOLDEN / "criterion.safetensors")
    numbers = json.loads((GOLDEN / "criterion.json").read_text(encoding="utf-8"))
    meta = numbers["meta"]

    def output(prefix: str, reference: str | None = None) -> dict[str, Tensor]:
        keys = [key for key in tensors if key.startswith(f"{prefix}.pred_")]
        leaves = {key.removeprefix(f"{prefix}."): tensors[key].requires_grad_() for key in keys}
        return leaves if reference is None else leaves | {"ref_points": tensors[reference]}

    layers, images = meta["layers"], range(len(meta["boxes_per_image"]))
    outputs: dict[str, Any] = output("last", "last.ref_points")
    outputs |= {
        "up": torch.tensor([meta["up"]]),
        "reg_scale": torch.tensor([int(meta["reg_scale"])]),
        "aux_outputs": [output(f"aux.{i}", "last.ref_points") for i in range(layers - 1)],
        "pre_outputs": output("pre"),
        "enc_aux_outputs": [output("enc.0")],
        "dn_outputs": [output(f"dn.{i}", "dn.0.ref_points") for i in range(layers)],
        "dn_pre_outputs": output("dn_pre"),
        "dn_meta": {
            "dn_positive_idx": [tensors[f"dn_positive_idx.{i}"] for i in images],
            "dn_num_group": meta["dn_num_group"],
            "dn_num_split": meta["dn_num_split"],
        },
    }
    targets = [{"labels": tensors[f"target.{i}.labels"], "boxes": tensors[f"target.{i}.boxes"]} for i in images]
    return outputs, targets, numbers


def without_denoising(outputs: dict[str, Any]) -> dict[str, Any]:
    """The same outputs as a batch without boxes has them."""
    return {key: value for key, value in outputs.items() if not key.startswith("dn_")}


def no_targets(batch: int) -> Targets:
    """A batch of defect-free images."""
    return [{"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)} for _ in range(batch)]
