"""Loading a whole config: what is accepted, what is refused and with which words."""

from __future__ import annotations

import copy
import json
import pickle
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from data.config import OPS
from data.errors import UserError
from data.section import Section, require_variables, sections_in
from engine.config import (
    ExperimentConfig,
    apply_overrides,
    config_from_dict,
    config_to_dict,
    derive_run_length,
    load_config,
    merge_yaml,
)
from engine.config_keys import every_field
from engine.yaml_dialect import as_override, get_path, merge, set_path
from tests.support.configs import CONFIGS, INDUSTRIAL, changed, derived, industrial, official, write

GOLDEN = Path(__file__).parents[1] / "golden"
ALL_CONFIGS = [*sorted(CONFIGS.glob("*.yml")), *sorted((CONFIGS / "deimv2").glob("*.yml"))]
RUNNABLE = [path for path in ALL_CONFIGS if path.name != "runtime.yml"]


def golden(size: str) -> dict[str, Any]:
    content = json.loads((GOLDEN / f"merged_config_{size}.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def problems_of(overrides: list[str], path: Path = INDUSTRIAL) -> str:
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    return str(error.value)


@pytest.mark.parametrize("size", "smlx")
def test_official_configs_stand(tmp_path: Path, size: str) -> None:
    """Our files say what the official ones do; nothing is derived over it; an official checkout is read alike."""
    text = json.dumps(merge_yaml(official(size))).replace("./datasets/coco", "<dataset>")
    merged = golden(size)
    assert json.loads(text) == merged
    config = load_config(official(size))
    assert derived(config) == () and derive_run_length(config, 3696) == config
    collate, expected = config.train_dataloader.collate_fn, merged["train_dataloader"]["collate_fn"]
    groups = [{"params": group.params, "lr": group.lr} for group in config.optimizer.params]
    assert config.optimizer.lr == merged["optimizer"]["lr"]
    assert groups == [{"params": group["params"], "lr": group.get("lr")} for group in merged["optimizer"]["params"]]
    assert list(collate.mixup_epochs) == expected["mixup_epochs"] and collate.stop_epoch == expected["stop_epoch"]
    matcher = merged["DEIMCriterion"]["matcher"]
    assert config.DEIMCriterion.matcher.matcher_change_epoch == matcher["matcher_change_epoch"]
    assert config.output_dir == Path(f"outputs/deimv2_dinov3_{size}_coco")
    path = write(tmp_path, f"deimv2_dinov3_{size}_coco.yml", yaml.safe_dump(merged))
    places = {
        f"{name}_dataloader__dataset": config_to_dict(config)[f"{name}_dataloader"]["dataset"]
        for name in ("train", "val")
    }
    assert changed(load_config(path), **places) == config


def test_including_an_official_recipe_keeps_it(tmp_path: Path) -> None:
    text = f"__include__: ['{official('s').as_posix()}']\noutput_dir: ./outputs/mine"
    config = load_config(write(tmp_path, "mine.yml", text))
    assert config == changed(load_config(official("s")), output_dir="./outputs/mine")


def test_industrial_states_what_it_should() -> None:
    config = industrial()
    assert (config.num_classes, config.remap_mscoco_category) == (6, False)
    assert (config.train_dataloader.total_batch_size, config.accumulation_steps) == (4, "auto")
    assert config.train_dataloader.num_workers == config.val_dataloader.num_workers == 4
    assert config.DINOv3STAs.weights_path == Path("ckpts/vitt_distill.pt")
    assert (config.epoches, config.flat_epoch, config.no_aug_epoch) == (50, 25, 6)
    assert config.use_amp and not config.gradient_checkpointing
    assert config.train_dataloader.dataset.img_folder.parts[:2] == ("datasets", "industrial")
    assert [op.type for op in config.train_dataloader.dataset.transforms.ops][0] == "Mosaic"


def test_the_wrong_order_of_includes_is_explained(tmp_path: Path) -> None:
    names = [official("s").as_posix(), (CONFIGS / "dataset" / "custom_detection.yml").as_posix()]
    text = problems_of([], write(tmp_path, "wrong.yml", f"__include__: {json.dumps(names)}"))
    assert "train_dataloader.dataset.transforms.ops: empty" in text
    assert "custom_detection.yml) must be included before the recipe" in text


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.stem)
def test_every_config_loads_and_survives_a_round_trip(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NEU_DET_ROOT", raising=False)
    config = derive_run_length(load_config(path), 77)
    plain = config_to_dict(config)
    written = write(tmp_path, "config.yaml", yaml.safe_dump(plain))
    assert merge_yaml(written) == plain
    again = load_config(written)
    assert again == config and derived(again) == ()
    back = config_from_dict(json.loads(json.dumps(plain)))
    assert back == config and config_to_dict(back) == plain and derived(back) == ()
    assert derive_run_length(config_from_dict(plain), 3) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_configs_are_frozen_and_compared_by_their_values() -> None:
    config = industrial()
    with pytest.raises(ValidationError):
        config.epoches = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.DINOv3STAs.name = "vit_custom"  # type: ignore[misc]
    assert config != load_config(INDUSTRIAL, ["seed=1"]) and config != "text"
    assert config_to_dict(config)["DINOv3STAs"]["weights_path"] == "ckpts/vitt_distill.pt", "slashes on every system"


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["num_classes=3"], "num_classes", 3),
        (["train_dataloader.num_workers=0"], "train_dataloader.num_workers", 0),
        (["use_amp=False"], "use_amp", False),
        (["optimizer.lr=1e-4"], "optimizer.lr", 1e-4),
        (["epochs=60"], "epoches", 60),
        (["epoches=60"], "epoches", 60),
        (["num_top_queries=50"], "PostProcessor.num_top_queries", 50),
        (["num_workers=1", "val_dataloader.num_workers=3"], "train_dataloader.num_workers", 1),
        (["num_workers=1", "val_dataloader.num_workers=3"], "val_dataloader.num_workers", 3),
        (["ema=~", "ema_decay=0.99", "ema_warmups=5"], "ema", {"decay": 0.99, "warmups": 5, "start": 0}),
    ],
)
def test_overrides_win_over_files(overrides: list[str], key: str, value: object) -> None:
    config = derive_run_length(load_config(INDUSTRIAL, overrides), 100_000)
    assert get_path(config_to_dict(config), key) == value


@pytest.mark.parametrize("nonsense", ["many", "-3", "0", "2.5", "[1]", "{a: 1}", "~"])
def test_an_override_replaces_whatever_a_file_says(tmp_path: Path, nonsense: str) -> None:
    path = write(tmp_path, "a.yml", f"__include__: ['{INDUSTRIAL.as_posix()}']\nepoches: {nonsense}")
    assert load_config(path, ["epoches=50"]).epoches == 50


UNKNOWN = [
    ("epohs=3", "epohs: unknown key; did you mean epoches?"),
    ("Optimizer.lr=1", "Optimizer: unknown key; did you mean optimizer?"),
    ("lr=1e-4", "lr: unknown key; did you mean optimizer.lr?"),
    ("batch_size=8", "batch_size: unknown key; did you mean train_dataloader.total_batch_size?"),
    ("ema_decay=0.9", "ema_decay: unknown key; did you mean ema.decay?"),
    ("mixup_prob=0", "mixup_prob: unknown key; did you mean train_dataloader.collate_fn.mixup_prob"),
    ("lr_scheduler=flatcosine", "lr_scheduler: unknown key; did you mean lrsheduler?"),
    ("DINOv3STAs.embed_dims=3", "DINOv3STAs.embed_dims: unknown key; did you mean embed_dim?"),
    ("DEIM.xyz=3", "DEIM.xyz: unknown key; known here: backbone, decoder, encoder"),
    ("qqqqqq=3", "qqqqqq: unknown key; remove it or correct its spelling"),
    ("train_dataloader.dataset.transforms.polcy=1", "transforms.polcy: unknown key; did you mean policy?"),
    ("DEIMCriterion.weight_dict.loss_mall=1", 'DEIMCriterion.weight_dict.loss_mall: found "loss_mall", expected'),
    ("texts.own={'': [3], 'a.b': 3}", "texts.own.a.b: found 3, expected text or a list or `key: value` pairs"),
]


def test_unknown_keys_inside_lists() -> None:
    ops = "train_dataloader.dataset.transforms.ops=[{type: Mosaic, size: 3}, {type: Foo}, {p: 3}, 5]"
    text = problems_of([ops, "optimizer.params=[{param: x}]"])
    assert "ops[0].size: unknown key; known here: fill_value, output_size, probability" in text
    assert 'ops[1]: found {"type": "Foo"}, expected one of the types \'Mosaic\'' in text
    assert 'ops[2]: found {"p": 3}, expected an op with a `type`' in text
    assert "ops[3]: found 5, expected `key: value` pairs" in text
    assert "optimizer.params[0].param: unknown key; did you mean params?" in text
    assert "optimizer.params[0].params: missing" in text


WRONG = [
    ("epoches=abc", 'epoches: found "abc", expected a whole number'),
    ("epoches='50'", 'epoches: found "50", expected a whole number'),
    ("epoches=50.5", "epoches: found 50.5, expected a whole number"),
    ("epoches=True", "epoches: found true, expected a whole number"),
    ("epoches=0", "epoches: found 0, expected a number greater than or equal to 1"),
    ("epoches=10000000", "epoches: found 10000000, expected a number less than or equal to 1000000"),
    ("optimizer.lr=fast", 'optimizer.lr: found "fast", expected a number'),
    ("optimizer.lr=-1", "optimizer.lr: found -1, expected a number greater than or equal to 0"),
    ("use_amp=1", "use_amp: found 1, expected True or False"),
    ("output_dir=3", "output_dir: found 3, expected text"),
    ("optimizer=3", "optimizer: found 3, expected a section of `key: value` lines"),
    ("eval_spatial_size=640", "eval_spatial_size: found 640, expected a list"),
    ("eval_spatial_size=[640]", "eval_spatial_size[1]: missing"),
    ("eval_spatial_size=[64,64,64]", "eval_spatial_size: found [64, 64, 64], expected a list of at most 2 items"),
    ("DEIMTransformer.reg_scale=a", 'DEIMTransformer.reg_scale: found "a", expected a whole number or a number'),
    ("DINOv3STAs.name=vit_huge", "DINOv3STAs.name: found \"vit_huge\", expected 'vit_tiny', 'vit_tinyplus'"),
    ("DEIM.backbone=HGNetv2", 'DEIM.backbone: found "HGNetv2": only DINOv3STAs is built here (the sizes S, M, L'),
    ("HybridEncoder.version=dfine", "HybridEncoder.version: found \"dfine\", expected 'deim'"),
    ("HybridEncoder.dropout=0.1", "HybridEncoder.dropout: found 0.1: must be 0: DEIMv2 uses no dropout"),
    ("lrscheduler=step", "lrsheduler: found \"step\", expected 'flatcosine'"),
    ("task=segmentation", "task: found \"segmentation\", expected 'detection'"),
    ("num_classes=~", "num_classes: found null, expected a whole number"),
    ("normal_boxes=drop", "normal_boxes: found \"drop\", expected 'keep' or 'as_negative'"),
    ("optimizer.params=[{params: '('}]", 'optimizer.params[0].params: found "(": is no regular expression (missing )'),
    ("synthetic={size_mode: 0.9}", "synthetic.size_mode: 0.9, expected a value inside size_range"),
    ("optimizer.lr=.inf", "optimizer.lr: found Infinity, expected a finite number"),
    ("seed=.nan", "seed: found NaN, expected a whole number"),
]


@pytest.mark.parametrize(("override", "message"), [*UNKNOWN, *WRONG])
def test_a_wrong_key_or_value(override: str, message: str) -> None:
    assert message in problems_of([override])


def test_all_faults_at_once_and_the_file_is_named() -> None:
    several = [*UNKNOWN[:5], WRONG[0], *WRONG[8:12], *WRONG[14:20]]
    text = problems_of([override for override, _ in several])
    assert text.startswith(f"{INDUSTRIAL}: {len(several)} faults in the config:")
    assert all(message in text for _, message in several)


def test_missing_sections(tmp_path: Path) -> None:
    text = problems_of([], write(tmp_path, "empty.yml", "task: detection"))
    for key in ("num_classes", "DINOv3STAs", "train_dataloader", "optimizer", "epoches"):
        assert f"- {key}: missing; give it in the config file or with -u" in text


def sections_of(stored: dict[str, Any]) -> dict[str, type[Section]]:
    """Path and class of every section that a config without a baseline has."""
    found: dict[str, type[Section]] = {"": ExperimentConfig}
    for path, _, field in every_field(ExperimentConfig):
        inner = list(sections_in(field.annotation))
        if len(inner) == 1 and isinstance(get_path(stored, path), dict):
            found[f"{path}."] = inner[0]
    kinds = {op.model_fields["type"].default: op for op in OPS}
    for loader in ("train", "val", "test"):
        ops = f"{loader}_dataloader.dataset.transforms.ops"
        found |= {f"{ops}[{i}].": kinds[op["type"]] for i, op in enumerate(get_path(stored, ops))}
    return found


def test_official_keys_are_dropped_or_refused() -> None:
    """Those without effect are, those with one value are with it and refused with another."""
    config = load_config(INDUSTRIAL, ["test_dataloader.dataset.img_folder=t"])
    stored, expected = config_to_dict(config), []
    places = sections_of(stored)
    for path, section in places.items():
        for key, value in (dict.fromkeys(section.without_effect, {"a": 1}) | section.only).items():
            set_path(stored, f"{path}{key}", value)
    assert config_from_dict(stored) == config
    for path, section in places.items():
        for key, only in section.only.items():
            set_path(stored, f"{path}{key}", "other")
            expected.append(f'{path}{key}: found "other", expected {only!r}')
    with pytest.raises(UserError) as error:
        config_from_dict(stored)
    assert sorted(error.value.problems) == sorted(expected) and len(expected) > 40


def test_shared_values_inside_sections(tmp_path: Path) -> None:
    overrides = ["DEIMTransformer.num_classes=9", "HybridEncoder.eval_spatial_size=[32,32]"]
    overrides += ["DEIMCriterion.matcher.use_focal_loss=True", "PostProcessor.remap_mscoco_category=True"]
    assert load_config(INDUSTRIAL, overrides) == industrial()
    merged = merge_yaml(official("s"))
    merged["DEIMTransformer"]["num_classes"] = merged.pop("num_classes")
    assert load_config(write(tmp_path, "a.yml", yaml.safe_dump(merged))).num_classes == 80


def test_the_test_split_inherits_from_val() -> None:
    overrides = ["test_dataloader.dataset.img_folder=t", "test_dataloader.dataset.ann_file=t.json"]
    config = load_config(INDUSTRIAL, overrides)
    test, val = config.test_dataloader, config.val_dataloader
    assert test is not None and test.dataset.img_folder == Path("t") and test.dataset.ann_file == Path("t.json")
    assert test.dataset.transforms == val.dataset.transforms and test.total_batch_size == val.total_batch_size
    other = load_config(INDUSTRIAL, [*overrides, "test_dataloader.batch_size=3"]).test_dataloader
    assert other is not None and other.batch_size == 3 and other.total_batch_size is None


def test_environment_variables_in_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEU_DET_ROOT", str(tmp_path))
    config = load_config(CONFIGS / "neu_det.yml")
    assert config.train_dataloader.dataset.ann_file == tmp_path / "annotations" / "instances_train.json"
    config.train_dataloader.dataset.require_paths("train_dataloader.dataset")
    for value in ("", None):
        monkeypatch.delenv("NEU_DET_ROOT", raising=False)
        if value is not None:
            monkeypatch.setenv("NEU_DET_ROOT", value)
        config = load_config(CONFIGS / "neu_det.yml")
        with pytest.raises(UserError) as error:
            config.val_dataloader.dataset.require_paths("val_dataloader.dataset")
        assert "val_dataloader.dataset.img_folder: ${NEU_DET_ROOT}/images/val" in str(error.value)
        assert "set NEU_DET_ROOT to the data's folder, or give the path: -u val_dataloader" in str(error.value)
        assert len(error.value.problems) == 2


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("~/x", "{home}/x"), ("~", "{home}"), ("$LOTE/x #1", "{home}/lote 2/x #1"), ("a/${LOTE_9}/b", "a/nueve/b"),
        ("$LOTE_9$LOTE_9", "nuevenueve"),
        *((text, text) for text in (
            "a~b", "~nobody-of-that-name/a", "$NOT_SET/a", "${NOT_SET}", "a$", "5$/$1", "ñandú/日本", "C:/x #2",
        )),
    ],
)  # fmt: skip
def test_home_and_environment_in_every_path(
    text: str, expanded: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {"HOME": f"{tmp_path}", "LOTE": f"{tmp_path}/lote 2", "LOTE_9": "nueve"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("NOT_SET", raising=False)
    keys = [
        *("output_dir", "summary_dir", "resume", "tuning", "DINOv3STAs.weights_path", "texts.encoder.folder"),
        *("texts.encoder.name", "train_dataloader.dataset.img_folder", "val_dataloader.dataset.ann_file"),
        *("test_dataloader.dataset.img_folder", "synthetic.root"),
    ]
    expected = Path(expanded.replace("{home}", str(tmp_path)))
    config = load_config(INDUSTRIAL, [as_override(key, text) for key in keys])
    later = apply_overrides(config_from_dict(config_to_dict(industrial())), [as_override(key, text) for key in keys])
    for key in keys:
        assert [Path(attrgetter(key)(one)) for one in (config, later)] == [expected] * 2, key
    weights = load_config(CONFIGS / "baselines" / "fcos_resnet18.yml", [as_override("Baseline.weights", text)]).Baseline
    assert weights is not None and weights.weights == expected


def test_an_unset_variable_is_an_error_where_the_path_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOT_SET", raising=False)
    for key in ("a.img_folder", "output_dir"):
        with pytest.raises(
            UserError, match=rf"{key}: \$NOT_SET/x needs the environment variable NOT_SET; .* -u {key}=PATH"
        ):
            require_variables({key: Path("$NOT_SET/x")})
    (tmp_path / "$NOT_SET" / "x").mkdir(parents=True)  # a folder may be called so
    require_variables({"output_dir": Path("$NOT_SET/x")})


@pytest.mark.parametrize("name", ["x\0y", "x" * 256, "a/" + "ñ" * 128 + "/b"])
def test_names_that_no_file_can_have(name: str) -> None:
    keys = ("output_dir", "tuning", "train_dataloader.dataset.ann_file", "synthetic.root")
    text = problems_of([f"{key}={name}" for key in keys])
    assert all(f"- {key}: '" in text for key in keys) and text.count("is no path") == len(keys) and "\0" not in text
    load_config(INDUSTRIAL, [f"{key}={'x' * 255}" for key in keys])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 250 + "]" * 250, "nested too deeply"),
        ("".join(f"k{i}:\n" for i in range(3000)), "and more; correct these first"),
        ("seed: 0x" + "f" * 9000, "no plain settings"),
        ("optimizer: {params: [{params: '" + "(" * 9000 + "'}]}", "is no regular expression"),
    ],
)
def test_hostile_files_end_in_one_short_message(tmp_path: Path, text: str, message: str) -> None:
    found = problems_of([], write(tmp_path, "a.yml", f"__include__: ['{INDUSTRIAL.as_posix()}']\n{text}"))
    assert message in found and len(found) < 10_000


def test_apply_overrides_on_a_finished_config() -> None:
    config = config_from_dict(config_to_dict(derive_run_length(industrial(), 100)))
    assert apply_overrides(config, []) == config
    other = apply_overrides(config, ["val_dataloader.dataset.img_folder=x", "eval_spatial_size=[320, 320]"])
    resize = other.val_dataloader.dataset.transforms.resize
    assert resize is not None and resize.size == (320, 320) and other.eval_spatial_size == (320, 320)
    assert other.val_dataloader.dataset.img_folder == Path("x")
    assert other.optimizer == config.optimizer and other.warmup_iter == config.warmup_iter
    assert other.DEIMCriterion == config.DEIMCriterion
    with pytest.raises(UserError, match="did you mean epoches"):
        apply_overrides(config, ["epohs=3"])
    loaded = apply_overrides(industrial(), ["warmup_iter=7"])
    assert derive_run_length(loaded, 1).warmup_iter == 7


def test_stored_configs_that_are_none() -> None:
    whole = config_to_dict(industrial())
    for stored, message in (
        ({"epoches": 3}, "the stored config: .* faults"),
        ({"epoches": object()}, "no plain settings"),
        (whole | {"future": 1}, "unknown key"),
        (whole | {"output_dir": "a\ud800b"}, "no Unicode"),
    ):
        with pytest.raises(UserError, match=message):
            config_from_dict(stored)


RULES: list[tuple[dict[str, Any], str]] = [
    ({"no_aug_epoch": 50}, "no_aug_epoch: 50 leaves no epoch of epoches 50 with augmentation; for 50 epochs try"),
    ({"flat_epoch": 45}, "flat_epoch: 45 is after the last augmented epoch, epoches 50 - no_aug_epoch 6 = 44"),
    ({"train_dataloader__collate_fn__stop_epoch": 51}, "collate_fn.stop_epoch: 51 lies beyond the run's epoches 50"),
    ({"train_dataloader__collate_fn__mixup_epochs": [4, 51]}, "mixup_epochs: [4, 51] lies beyond"),
    ({"train_dataloader__collate_fn__copyblend_epochs": [4, 51]}, "copyblend_epochs: [4, 51] lies beyond"),
    ({"train_dataloader__dataset__transforms__policy__epoch": 51}, "policy.epoch: 51 lies beyond"),
    ({"train_dataloader__dataset__transforms__policy__epoch": [4, 9, 51]}, "policy.epoch: [4, 9, 51] lies beyond"),
    ({"DEIMCriterion__matcher__matcher_change_epoch": 51}, "matcher_change_epoch: 51 lies beyond the run's"),
    ({"DEIMTransformer__num_queries": 9000}, "num_queries: 9000 queries cannot be chosen from the 8400 tokens"),
    ({"DEIMTransformer__num_queries": 5000}, "multi-scale goes down to 480 pixels, whose 4725 tokens are fewer"),
    ({"DEIMTransformer__num_queries": 9000}, "val_dataloader.dataset.transforms.ops: Resize to [640, 640] gives 8400"),
]


@pytest.mark.parametrize(("change", "message"), RULES)
def test_rules_between_fields(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        changed(industrial(), **change)
    assert message in str(error.value)


def test_a_change_that_never_comes_is_fine_when_switched_off() -> None:
    matcher = {"matcher_change_epoch": 9999, "change_matcher": False}
    changed(industrial(), **{f"DEIMCriterion__matcher__{key}": value for key, value in matcher.items()})


def test_rules_of_all_parts_come_together() -> None:
    values = merge(config_to_dict(industrial()), {})
    for path, value in (("flat_epoch", 45), ("DINOv3STAs.num_heads", 5), ("accumulation_steps", 3)):
        set_path(values, path, value)
    with pytest.raises(UserError) as error:
        config_from_dict(copy.deepcopy(values))
    assert len(error.value.problems) == 3
    assert isinstance(industrial(), ExperimentConfig)


def test_classes_are_counted(tmp_path: Path) -> None:
    """`num_classes: auto` is a number once the config is loaded; without categories the data's faults are told."""
    ann_file = tmp_path / "train.json"
    categories = [{"id": number, "name": f"defect {number}"} for number in (3, 5, 9)]
    ann_file.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}), encoding="utf-8")
    path = write(tmp_path, "mine.yml", f"__include__: ['{INDUSTRIAL}']\nnum_classes: auto\n")
    place = as_override("train_dataloader.dataset.ann_file", ann_file.as_posix())
    config = load_config(path, [place])
    assert config.num_classes == 3 and config_to_dict(config)["num_classes"] == 3
    assert config.origin("num_classes") == f"derived: auto -> 3 (categories of {ann_file.as_posix()})"
    ann_file.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="num_classes: auto counts the categories .* say none"):
        load_config(path, [place])
    with pytest.raises(UserError, match="needs the environment variable NOT_SET"):
        load_config(path, ["train_dataloader.dataset.ann_file=$NOT_SET/train.json"])
