"""The losses: golden numbers of the original, and what must hold for any data."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from models.boxes import cxcywh_to_xyxy
from models.config import CriterionConfig
from models.criterion import DEIMCriterion, WindowShare
from tests.support.criterion_cases import (
    WEIGHTS,
    golden_case,
    made_up_outputs,
    made_up_targets,
    named_leaves,
    no_targets,
    without_denoising,
)

CASES = {"epoch_0": 0, "epoch_100": 100, "no_dn_epoch_0": 0, "empty": 0}


def make_criterion(**changes: Any) -> DEIMCriterion:
    matcher = {"change_matcher": True, "iou_order_alpha": 4.0, "matcher_change_epoch": 100}
    config = CriterionConfig.model_validate({"weight_dict": WEIGHTS, "gamma": 1.5, "matcher": matcher})
    return DEIMCriterion(config.model_copy(update=changes))


def made_up(
    counts: Sequence[int], seed: int = 0, **sizes: int
) -> tuple[dict[str, Any], list[dict[str, Tensor]], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    settings = {"num_queries": 12, "num_classes": 5, "reg_max": 8} | sizes
    targets = made_up_targets(counts, settings["num_classes"], generator)
    outputs = made_up_outputs(targets, generator, **settings)
    return outputs, targets, named_leaves(outputs)


def total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def gradients(losses: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(total(losses), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_the_original(case: str) -> None:
    outputs, targets, numbers = golden_case()
    if case != "epoch_0" and case != "epoch_100":
        outputs = without_denoising(outputs)
    if case == "empty":
        targets = no_targets(3)
    losses = make_criterion()(outputs, targets, epoch=CASES[case])
    expected = numbers[case]
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected["losses"], rel=1e-5)
    assert total(losses).item() == pytest.approx(expected["total"], rel=1e-5)
    found = gradients(losses, named_leaves(outputs))
    for name, norm in expected.get("grad_norm", {}).items():
        assert found[name].norm().item() == pytest.approx(norm, rel=1e-5, abs=1e-12), name


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    num_queries=st.integers(1, 14),
    num_classes=st.integers(1, 9),
    num_layers=st.integers(1, 4),
    epoch=st.sampled_from([0, 100]),
    as_tensor=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_a_window_is_the_sum_of_its_images(
    counts: list[int], num_queries: int, num_classes: int, num_layers: int, epoch: int, as_tensor: bool, seed: int
) -> None:
    """Also images without boxes, and with more boxes than queries; DDF is a mean over matched and other queries."""
    sizes = {"num_queries": num_queries, "num_classes": num_classes, "num_layers": num_layers}
    outputs, targets, leaves = made_up(counts, seed, **sizes)
    criterion, num_boxes = make_criterion(reg_max=8, use_uni_set=False), max(1.0, sum(counts))
    whole = criterion(without_denoising(outputs), targets, epoch=epoch)
    share = WindowShare(torch.tensor(num_boxes) if as_tensor else num_boxes, 1 / len(counts))
    parts = [
        criterion(_part(outputs, slice(image, image + 1)), targets[image : image + 1], epoch=epoch, share=share)
        for image in range(len(counts))
    ]
    exact = [name for name in whole if "ddf" not in name]
    sums = {name: sum((part[name] for part in parts), torch.zeros(())) for name in exact}
    torch.testing.assert_close(sums, {name: whole[name] for name in exact}, rtol=1e-4, atol=1e-6)
    wanted = gradients({name: whole[name] for name in exact}, leaves)
    torch.testing.assert_close(gradients(sums, leaves), wanted, rtol=1e-3, atol=1e-6)


def test_the_union_of_equal_matchings_is_theirs() -> None:
    outputs, targets, _ = made_up([3, 0, 5], num_layers=1)
    for other in (outputs["pre_outputs"], *outputs["enc_aux_outputs"]):
        other.update(pred_logits=outputs["pred_logits"], pred_boxes=outputs["pred_boxes"])
    union, own = (make_criterion(reg_max=8, use_uni_set=use)(outputs, targets, epoch=0) for use in (True, False))
    torch.testing.assert_close(union, own)


def test_mal_alpha_weighs_the_background() -> None:
    outputs, _, _ = made_up([0, 0])
    plain, weighed = (make_criterion(mal_alpha=a)(outputs, no_targets(2), epoch=0)["loss_mal"] for a in (None, 0.3))
    torch.testing.assert_close(weighed, 0.3 * plain)


def test_pseudo_labels_weigh_less() -> None:
    outputs, targets, _ = made_up([3, 0, 5])
    targets = [target | {"pseudo": torch.ones(len(target["labels"]), dtype=torch.bool)} for target in targets]
    plain, half, none = (make_criterion(reg_max=8, pseudo_weight=w)(outputs, targets, epoch=0) for w in (1.0, 0.5, 0.0))
    for name, value in plain.items():
        if not name.startswith("loss_ddf"):  # which compares layers, not labels
            torch.testing.assert_close(half[name], (value + none[name]) / 2, rtol=1e-5, atol=1e-6)
        if name.startswith(("loss_bbox", "loss_giou", "loss_fgl")):
            assert none[name] == 0 < value
    by_people = [target | {"pseudo": torch.zeros_like(target["pseudo"])} for target in targets]
    assert make_criterion(reg_max=8, pseudo_weight=0.5)(outputs, by_people, epoch=0) == plain


def test_denoising_indices_may_be_in_any_order_of_groups() -> None:
    """`dn_positive_idx` is read, not guessed: queries of two groups exchanged give the same losses."""
    outputs, targets, _ = made_up([2, 2], num_denoising=4)
    criterion = make_criterion(reg_max=8)
    before = criterion(outputs, targets, epoch=0)
    swap = torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])
    for output in [*outputs["dn_outputs"], outputs["dn_pre_outputs"]]:
        for name, value in output.items():
            output[name] = value[:, swap]
    outputs["dn_meta"]["dn_positive_idx"] = [torch.tensor([4, 5, 0, 1])] * 2
    after = criterion(outputs, targets, epoch=0)
    torch.testing.assert_close(before, after)


def test_denoising_ddf_without_a_matching_ddf_weighs_both_halves_alike() -> None:
    outputs, targets, _ = made_up([1, 1])
    for aux in outputs["aux_outputs"]:
        aux["pred_corners"] = outputs["pred_corners"].detach().clone().requires_grad_()
    losses = make_criterion(reg_max=8)(outputs, targets, epoch=0)
    assert sorted(name for name in losses if "ddf" in name) == [f"loss_ddf_dn_{i}" for i in range(3)]
    *layers, teacher = outputs["dn_outputs"]
    goal = (teacher["pred_corners"].unflatten(-1, (4, 9)) / 5).softmax(-1)
    for index, layer in enumerate(layers):
        weight = teacher["pred_logits"].sigmoid().amax(-1)
        matched = torch.zeros_like(weight, dtype=torch.bool)
        for image, query in enumerate(outputs["dn_meta"]["dn_positive_idx"]):
            matched[image, query] = True
            gt = targets[image]["boxes"].repeat(outputs["dn_meta"]["dn_num_group"], 1)
            iou = box_iou(cxcywh_to_xyxy(layer["pred_boxes"][image, query]), cxcywh_to_xyxy(gt)).diag()
            weight = weight.index_put((torch.tensor(image), query), iou)
        kl = F.kl_div((layer["pred_corners"].unflatten(-1, (4, 9)) / 5).log_softmax(-1), goal, reduction="none").sum(-1)
        kl = kl * 25 * weight[..., None]
        expected = WEIGHTS["loss_ddf"] * (kl[matched].mean() + kl[~matched].mean()) / 2
        torch.testing.assert_close(losses[f"loss_ddf_dn_{index}"], expected)


def test_zero_area_boxes_give_finite_losses_and_gradients() -> None:
    outputs, targets, leaves = made_up([2, 1])
    targets[0]["boxes"][0, 2:] = 0
    targets[1]["boxes"][0, 2] = 0
    with torch.no_grad():
        outputs["pred_boxes"][0, :6, 2:] = 0
        outputs["pred_boxes"][0, 0] = targets[0]["boxes"][0]
        outputs["pred_boxes"][1, 1] = targets[1]["boxes"][0]
        outputs["pred_boxes"][1, 2, 2:] = -0.1
    for epoch in (0, 100):
        losses = make_criterion(reg_max=8)(outputs, targets, epoch=epoch)
        found = gradients(losses, leaves)
        assert torch.isfinite(total(losses))
        assert all(torch.isfinite(g).all() and g.norm() < 1e4 for g in found.values())


def test_nan_is_not_masked() -> None:
    outputs, targets, _ = made_up([2, 1])
    with torch.no_grad():
        outputs["pred_logits"][0, 3, 1] = torch.nan
    losses = make_criterion(reg_max=8)(outputs, targets, epoch=0)
    assert losses["loss_mal"].isnan() and torch.isfinite(losses["loss_mal_aux_0"])


def test_half_precision_outputs_are_computed_in_float32() -> None:
    outputs, targets, _ = made_up([3, 1])
    single = [outputs, *outputs["aux_outputs"]]
    for output in single:
        for name in ("pred_logits", "pred_corners"):
            output[name] = output[name].detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = make_criterion(reg_max=8)(outputs, targets, epoch=0)
    for output in single:
        for name in ("pred_logits", "pred_corners"):
            output[name] = output[name].detach().float().requires_grad_()
    high = make_criterion(reg_max=8)(outputs, targets, epoch=0)
    assert all(value.dtype == torch.float32 for value in low.values())
    assert all(torch.equal(low[name], high[name]) for name in high)


def _part(outputs: dict[str, Any], images: slice) -> dict[str, Any]:
    """The outputs of some images of the batch, without denoising."""
    cut = {"pred_logits", "pred_boxes", "pred_corners", "ref_points"}

    def one(output: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value[images] if name in cut else value for name, value in output.items()}

    result = one(without_denoising(outputs))
    result["pre_outputs"] = one(outputs["pre_outputs"])
    for name in ("aux_outputs", "enc_aux_outputs"):
        result[name] = [one(output) for output in outputs[name]]
    return result


def test_the_union_of_a_micro_batch_is_scaled_to_its_window() -> None:
    outputs, targets, _ = made_up([3, 1])
    criterion = make_criterion(reg_max=8)
    alone = criterion(outputs, targets, epoch=0)
    shared = criterion(outputs, targets, epoch=0, share=WindowShare(12, 0.25))  # 4 of the window's 12 boxes
    for name, value in alone.items():
        factor = 0.25 if "ddf" in name else 4 / 12
        torch.testing.assert_close(shared[name], value * factor, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("counts", [[3, 1], [0, 0]])
@pytest.mark.parametrize("share", [None, WindowShare(6.0, 0.5)])
def test_counts_are_averaged_with_one_collective_in_every_process(
    monkeypatch: pytest.MonkeyPatch, counts: list[int], share: WindowShare | None
) -> None:
    outputs, targets, _ = made_up(counts)
    criterion = make_criterion(reg_max=8, use_uni_set=False)
    alone = criterion(outputs, targets, epoch=0, share=share)
    calls = []

    def with_an_empty_neighbour(counts: Tensor) -> None:
        calls.append(counts.tolist())

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", with_an_empty_neighbour)
    together = criterion(outputs, targets, epoch=0, share=share)
    assert len(calls) == 1 and calls[0][0] == sum(counts)
    halved = share is None and sum(counts) > 0
    for name in ("loss_mal", "loss_bbox_aux_1", "loss_fgl"):
        torch.testing.assert_close(together[name], alone[name] * (2 if halved else 1))


def moved(value: Any, device: str) -> Any:
    """Copy nested lists and dicts of tensors; leaves that want a gradient stay leaves, positives stay on the host."""
    if isinstance(value, Tensor):
        return value.detach().to(device).requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: item if key == "dn_meta" else moved(item, device) for key, item in value.items()}
    return [moved(item, device) for item in value] if isinstance(value, list) else value


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_one_wait_for_the_device_and_the_same_losses() -> None:
    from benchmarks.gpu import count_syncs

    outputs, targets, _ = made_up([3, 0, 5])
    criterion = make_criterion(reg_max=8)
    expected = criterion(outputs, targets, epoch=0)
    outputs, targets = moved(outputs, "cuda"), moved(targets, "cuda")
    losses = criterion(outputs, targets, epoch=0)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name].cpu(), value, rtol=1e-4, atol=1e-6)
    total = lambda: torch.stack(list(criterion(outputs, targets, epoch=0).values())).sum()  # noqa: E731
    assert count_syncs(lambda: total().backward()) <= 2
