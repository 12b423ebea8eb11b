"""torchvision's detectors behind DEIMv2's interface."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import efficientnet_b0, resnet18
from torchvision.ops import FrozenBatchNorm2d

from data.errors import UserError
from engine.config import ExperimentConfig, config_from_dict, config_to_dict, load_config
from engine.optim import build_optimizer
from models.baselines import TorchvisionDetector, anchor_sizes
from models.criterion import OwnLosses, WindowShare, build_criterion
from models.detector import build_detector
from models.postprocess import ScaleToImage
from models.weights import load_backbone_weights, load_for_tuning, load_state_dict_strict
from tests.support.baselines import NAMES, NUM_CLASSES, SIZE, small_baseline, small_section, targets_with
from tests.support.configs import CONFIGS, changed

BASELINES = CONFIGS / "baselines"
FILES = sorted(path.stem for path in BASELINES.glob("*.yml") if path.stem != "small")
LOSSES = {
    True: {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"},
    False: {"classification", "bbox_regression", "bbox_ctrness"},
}


def images_of(count: int) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(2))


def quickstart(**changes: Any) -> ExperimentConfig:
    return changed(load_config(BASELINES / "quickstart_resnet18.yml"), **changes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("boxes", [(2, 0, 3), (0, 0, 0)], ids=["some boxes", "no boxes"])
def test_every_parameter_takes_part_whatever_boxes_there_are(name: str, boxes: tuple[int, ...]) -> None:
    model = small_baseline(name)
    losses = model(images_of(3), targets_with(*boxes))
    assert set(losses) == LOSSES[name.startswith("fasterrcnn")]
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_boxes_without_area_are_left_out(name: str) -> None:
    targets = targets_with(2)
    padded = {
        "labels": torch.cat([targets[0]["labels"], torch.tensor([0, 1])]),
        "boxes": torch.cat([targets[0]["boxes"], torch.tensor([[0.5, 0.5, 0.0, 0.2], [0.5, 0.5, 0.2, 0.0]])]),
    }
    model = small_baseline(name)
    losses = []
    for target in (targets[0], padded):
        torch.manual_seed(3)  # the samplers draw
        losses.append(copy.deepcopy(model)(images_of(1), [target]))
    assert all(torch.equal(losses[0][key], losses[1][key]) for key in losses[0])


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_gives_scores_labels_and_boxes_of_the_image(name: str) -> None:
    model = small_baseline(name, score_thresh=0.0).eval()
    with torch.no_grad():
        found = model(images_of(2))
        with_targets = model(images_of(2), targets_with(1, 1))
    assert len(found) == 2
    for one, same in zip(found, with_targets, strict=True):
        assert all(torch.equal(one[key], same[key]) for key in one)  # targets are not read
        assert 0 < len(one["scores"]) <= 100
        assert (one["scores"].diff() <= 0).all()
        assert one["labels"].min() >= 0 and one["labels"].max() < NUM_CLASSES
        assert one["boxes"].min() >= 0 and one["boxes"].max() <= 1 + 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_do_not_see_one_another_in_evaluation(name: str) -> None:
    model = small_baseline(name).eval()
    with torch.no_grad():
        together, alone = model(images_of(2)), model(images_of(2)[1:])
    torch.testing.assert_close(together[1], alone[0], rtol=1e-3, atol=1e-5)


def test_fewer_detections_where_the_config_wants_fewer() -> None:
    model = TorchvisionDetector(small_section(NAMES[0], score_thresh=0.0), NUM_CLASSES, SIZE, num_top_queries=7)
    with torch.no_grad():
        assert [len(one["scores"]) for one in model.eval()(images_of(2))] == [7, 7]


class Answers(nn.Module):
    """In the place of torchvision's detector: keeps what it is given, says what it is told."""

    def __init__(self, answer: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.answer = answer
        self.targets: list[dict[str, Tensor]] = []

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]] | None = None) -> list[dict[str, Tensor]]:
        self.targets = targets or []
        return self.answer


@pytest.mark.parametrize(("name", "first_label"), [(NAMES[0], 1), (NAMES[2], 0)])
def test_labels_and_boxes_there_and_back(name: str, first_label: int) -> None:
    """A box of class 2 at x 24..72, y 16..48 of 96 x 64 pixels, in an original of 960 x 320."""
    model = small_baseline(name)
    in_pixels = torch.tensor([[24.0, 16.0, 72.0, 48.0]])
    answer = {"scores": torch.tensor([0.9]), "labels": torch.tensor([2 + first_label]), "boxes": in_pixels}
    model.detector = Answers([answer])
    model(images_of(1), [{"labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]])}])
    (seen,) = model.detector.targets
    assert seen["labels"].tolist() == [2 + first_label]
    torch.testing.assert_close(seen["boxes"], in_pixels)

    (found,) = ScaleToImage()(model.eval()(images_of(1)), torch.tensor([[960, 320]]))
    assert found.labels.tolist() == [2] and found.scores.tolist() == [pytest.approx(0.9)]
    assert found.boxes_xyxy.tolist() == [pytest.approx([240.0, 80.0, 720.0, 240.0])]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_boxes_are_float32_under_autocast(name: str, training: bool) -> None:
    model = small_baseline(name).train(training)
    generator = model.detector.rpn.anchor_generator if name != "fcos_resnet18" else model.detector.anchor_generator
    anchors: list[Tensor] = []
    generator.register_forward_hook(lambda module, inputs, output: anchors.extend(output))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(images_of(1), targets_with(2))
    assert [one.dtype for one in anchors] == [torch.float32]
    values = outputs.values() if training else (outputs[0]["scores"], outputs[0]["boxes"])
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in values)


def test_frozen_and_trainable_parts() -> None:
    pretrained = small_baseline(NAMES[0], weights="IMAGENET1K_V1")
    assert any(isinstance(module, FrozenBatchNorm2d) for module in pretrained.body.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in pretrained.modules())
    frozen = {name.split(".")[0] for name, p in pretrained.body.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}

    random = small_baseline(NAMES[0])
    assert all(parameter.requires_grad for parameter in random.parameters())
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in random.modules())

    some = small_baseline(NAMES[1], weights="IMAGENET1K_V1", norm="batch", trainable_layers=1)
    assert {name.split(".")[0] for name, p in some.body.named_parameters() if p.requires_grad} == {"6", "7"}
    assert all(p.requires_grad for name, p in some.named_parameters() if ".body." not in name)


def test_the_default_anchors_follow_the_input_size() -> None:
    assert anchor_sizes(small_section(NAMES[0]), (640, 640)) == (32, 64, 128, 256, 512)
    assert anchor_sizes(small_section(NAMES[0]), (320, 160)) == (8, 16, 32, 64, 128)
    assert anchor_sizes(small_section(NAMES[0], anchor_sizes=(4, 8, 16, 32, 64)), (640, 640))[0] == 4


def test_losses_pass_through_and_shares_of_a_window_add_up() -> None:
    outputs = {"a": torch.tensor(2.0, dtype=torch.bfloat16), "b": torch.tensor(3.0)}
    criterion = OwnLosses()
    assert criterion(outputs, [], epoch=0) == {"a": 2.0, "b": 3.0}
    assert criterion(outputs, [], epoch=0)["a"].dtype == torch.float32
    shares = [criterion(outputs, [], epoch=0, share=WindowShare(num_boxes=1.0, image_share=s)) for s in (0.75, 0.25)]
    assert sum(share["a"] for share in shares) == 2.0


@pytest.mark.parametrize("name", FILES)
def test_every_shipped_config_builds_a_detector_with_all_its_groups(name: str) -> None:
    config = load_config(BASELINES / f"{name}.yml")
    assert config.output_dir == Path("outputs") / name
    assert config.DINOv3STAs is None and config.model is None and config.DEIMCriterion is None
    model = build_detector(config)
    assert isinstance(model, TorchvisionDetector) and isinstance(build_criterion(config), OwnLosses)
    groups = build_optimizer(model, config.optimizer).param_groups
    assert len(groups) == len(config.optimizer.params) + 1
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())
    assert config_from_dict(config_to_dict(config)) == config


def test_the_six_class_configs_train_on_the_same_data_for_the_same_time() -> None:
    deimv2 = config_to_dict(load_config(CONFIGS / "deimv2_industrial_defects.yml"))
    for name in NAMES:
        plain = config_to_dict(load_config(BASELINES / f"{name}.yml"))
        different = {key for key in plain if plain[key] != deimv2[key]}
        assert different == {
            *("model", "criterion", "DEIM", "DINOv3STAs", "HybridEncoder", "DEIMTransformer", "DEIMCriterion"),
            *("Baseline", "optimizer", "clip_max_norm", "output_dir"),
        }


RULES: list[tuple[dict[str, Any], str]] = [
    ({"Baseline__norm": "frozen"}, "Baseline.norm: frozen statistics need weights that come with some"),
    ({"Baseline__anchor_sizes": [8, 16]}, "Baseline.anchor_sizes: [8.0, 16.0] must be 5 rising sizes"),
    ({"Baseline__anchor_sizes": [8, 16, 32, 32, 64]}, "must be 5 rising sizes in pixels"),
    ({"Baseline__name": "fcos_resnet18"}, "Baseline.anchor_sizes: fcos_resnet18 has no anchors; set it to null"),
    ({"Baseline__fpn_channels": 50}, "Baseline.fpn_channels: found 50, expected a multiple of 32"),
    ({"Baseline__name": "yolo"}, "Baseline.name: found \"yolo\", expected 'fasterrcnn_resnet18'"),
    ({"gradient_checkpointing": True}, "gradient_checkpointing: recomputes blocks of DEIMv2"),
    ({"eval_spatial_size": [150, 160]}, "eval_spatial_size: [150, 160] must be multiples of 32"),
    ({"DEIM": {}}, "DEIM: describes DEIMv2 and has no effect beside Baseline"),
    ({"MultimodalFusion": {"mode": "cosine"}}, "MultimodalFusion: text fusion is built for DEIMv2 only"),
    ({"Baseline": None}, "DINOv3STAs: null is for baselines (section Baseline); give the section"),
]


@pytest.mark.parametrize(("change", "message"), RULES)
def test_rules(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        quickstart(**change)
    assert message in str(error.value)


NETWORKS = [(NAMES[0], resnet18, "conv1.weight"), (NAMES[1], efficientnet_b0, "features.0.0.weight")]


@pytest.mark.parametrize(("name", "network", "first"), NETWORKS)
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_imagenet_weights_from_a_file(name: str, network: Any, first: str, norm: str, tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, tmp_path / "w.pth")
    config = quickstart(Baseline__name=name, Baseline__weights=str(tmp_path / "w.pth"), Baseline__norm=norm)
    model = build_detector(config)
    assert isinstance(model, TorchvisionDetector)
    load_backbone_weights(model, config)
    assert torch.equal(next(iter(model.body.state_dict().values())), state[first])
    with torch.no_grad():
        features = model.body.eval()(images_of(1))
    assert len(features) == 4


def test_imagenet_weights_in_torchvisions_folder_need_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_downloads(monkeypatch, tmp_path)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    state = resnet18().state_dict()
    torch.save(state, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    config = quickstart(Baseline__weights="IMAGENET1K_V1")
    model = build_detector(config)
    load_backbone_weights(model, config)
    loaded = model.state_dict()["detector.backbone.body.layer4.1.conv2.weight"]
    assert torch.equal(loaded, state["layer4.1.conv2.weight"])


def forbid_downloads(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


OFFICIAL_FILES = [
    (NAMES[0], "resnet18-f37072fd.pth"),
    (NAMES[1], "efficientnet_b0_rwightman-7f5810bc.pth"),
    (NAMES[2], "resnet18-f37072fd.pth"),
]


@pytest.mark.parametrize(("name", "file"), OFFICIAL_FILES)
def test_offline_the_message_says_what_to_put_where(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_downloads(monkeypatch, tmp_path)
    config = quickstart(Baseline__weights="IMAGENET1K_V1", Baseline__name=name, Baseline__anchor_sizes=None)
    with pytest.raises(UserError) as error:
        load_backbone_weights(build_detector(config), config)
    text = str(error.value)
    assert "no network" in text and f"get {file} on another machine" in text
    assert f"into the folder {tmp_path / 'hub' / 'checkpoints'}" in text
    assert f"https://download.pytorch.org/models/{file}" in text and f"-u Baseline.weights=PATH/{file}" in text
    assert "`Baseline.weights: null` starts from random weights" in text


def test_a_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    config = quickstart(Baseline__weights=str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match=r"Baseline.weights: there is no file .*none.pth .* Get https://.*resnet18-f37"):
        load_backbone_weights(build_detector(config), config)


def test_another_networks_file_is_refused(tmp_path: Path) -> None:
    torch.save(efficientnet_b0().state_dict(), tmp_path / "w.pth")
    config = quickstart(Baseline__weights=str(tmp_path / "w.pth"))
    with pytest.raises(UserError) as error:
        load_backbone_weights(build_detector(config), config)
    assert "does not hold the weights of the backbone of `fasterrcnn_resnet18`" in str(error.value)
    assert "conv1.weight: missing in the file" in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_heads_of_another_class_count(name: str) -> None:
    source, model = small_baseline(name, num_classes=5), small_baseline(name)
    with pytest.raises(UserError, match="The weights are for 5 classes, the config says num_classes 3"):
        load_state_dict_strict(model, source.state_dict())
    report = load_for_tuning(model, source.state_dict())
    assert report.mismatched and not report.missing and not report.unexpected
    assert all("cls_" in text or "box_predictor" in text for text in report.mismatched)
