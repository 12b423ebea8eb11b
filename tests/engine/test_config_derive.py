"""What is derived from the length and the size of a run, and when it is not."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import UserError
from engine.config import ExperimentConfig, config_to_dict, derive_run_length, load_config, merge_yaml, with_batch
from engine.console import say_derived
from engine.derived_values import Schedule
from engine.yaml_dialect import get_path
from tests.support.configs import CONFIGS, INDUSTRIAL, changed, derived, industrial, official, small_config, write
from texts import texts_of

RELAXED = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
QUICK = small_config()


def epochs_of(config: ExperimentConfig) -> tuple[object, ...]:
    collate, policy = config.train_dataloader.collate_fn, config.train_dataloader.dataset.transforms.policy
    assert policy is not None
    of_batches = (collate.stop_epoch, collate.mixup_epochs, collate.copyblend_epochs)
    return (policy.epoch, *of_batches, config.DEIMCriterion.matcher.matcher_change_epoch)


def child(folder: Path, text: str, parent: str = "s") -> Path:
    return write(folder, "child.yml", f"__include__: ['{official(parent).as_posix()}']\n{text}\n")


@pytest.mark.parametrize(
    ("epochs", "flat", "no_aug", "expected"),
    [
        (132, None, None, Schedule(4, 64, 120, 12, 108)),
        (102, None, 12, Schedule(4, 49, 90, 12, 81)),
        (68, None, 8, Schedule(4, 34, 60, 8, 54)),
        (58, None, 8, Schedule(4, 29, 50, 8, 45)),
        (32, None, 12, Schedule(4, 14, 20, 12, 18)),
        (50, 25, 6, Schedule(4, 25, 44, 6, 40)),
        (12, None, None, Schedule(1, 6, 11, 1, 10)),
        (3, None, None, Schedule(0, 1, 2, 1, 2)),
        (2, None, None, Schedule(0, 0, 1, 1, 1)),
        (1, None, None, Schedule(0, 0, 1, 0, 1)),
        (50, 2, None, Schedule(2, 2, 45, 5, 40)),
    ],
)
def test_schedule_table(epochs: int, flat: int | None, no_aug: int | None, expected: Schedule) -> None:
    assert Schedule.of(epochs, flat, no_aug) == expected


@RELAXED
@given(st.integers(1, 2000))
def test_derived_schedules_always_work(epochs: int) -> None:
    schedule = Schedule.of(epochs)
    assert 0 <= schedule.start <= schedule.flat <= schedule.stop == epochs - schedule.no_aug
    assert schedule.stop >= 1 and 0 <= schedule.matcher_change <= schedule.stop


def test_the_industrial_run() -> None:
    config = industrial()
    assert epochs_of(config) == ((4, 25, 44), 44, (4, 25), (4, 44), 40)
    assert config.optimizer.lr == pytest.approx(5e-4 * 4 / 32)
    assert [group.lr for group in config.optimizer.params] == [pytest.approx(2.5e-5 / 8)] * 2 + [None]
    assert config.output_dir == Path("outputs/deimv2_industrial_defects")
    assert (config.warmup_iter, config.ema.decay) == (2000, 0.9999)
    text = "\n".join(derived(config))
    assert "optimizer.lr: 0.0005 -> 6.25e-05 (batch 4, reference 32)" in text
    assert "policy.epoch: [4, 64, 120] -> [4, 25, 44] (from epoches 50, flat_epoch 25, no_aug_epoch 6)" in text
    assert "matcher_change_epoch: 100 -> 40 (90 % of 44 augmented epochs)" in text
    assert "outputs/deimv2_industrial_defects (named after the config file)" in text


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 8, 13, 50, 132, 300])
def test_epochs_alone_are_enough(tmp_path: Path, epochs: int) -> None:
    config, schedule = load_config(child(tmp_path, f"epochs: {epochs}")), Schedule.of(epochs)
    assert (config.epoches, config.flat_epoch, config.no_aug_epoch) == (epochs, schedule.flat, schedule.no_aug)
    start, flat, stop, _, change = schedule
    assert epochs_of(config) == ((start, flat, stop), stop, (start, flat), (start, stop), change)


def test_by_override_just_as_by_file(tmp_path: Path) -> None:
    by_file = load_config(child(tmp_path, "epoches: 20"))
    by_override = load_config(child(tmp_path, ""), ["epochs=20"])
    assert by_file == by_override and derived(by_file) == derived(by_override)


def test_no_stated_length_keeps_the_recipes_epochs(tmp_path: Path) -> None:
    config = load_config(child(tmp_path, "num_classes: 80", parent="m"))
    assert epochs_of(config) == epochs_of(load_config(official("m")))


def test_missing_everywhere_is_derived_and_logged(tmp_path: Path) -> None:
    merged = merge_yaml(official("s"))
    for key in ("flat_epoch", "no_aug_epoch", "output_dir"):
        del merged[key]
    base = write(tmp_path, "base.yml", yaml.safe_dump(merged))
    config = load_config(write(tmp_path, "run.yml", f"__include__: [{base.name}]"))
    assert (config.flat_epoch, config.no_aug_epoch) == (64, 12)
    assert "flat_epoch: None -> 64 (from epoches 132)" in derived(config)
    assert "output_dir: None -> outputs/run (named after the config file)" in derived(config)


def test_an_impossible_schedule_names_the_fix_and_nothing_else(tmp_path: Path) -> None:
    text = f"__include__: ['{INDUSTRIAL.as_posix()}']\nepoches: 3"
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path, "mine.yml", text))
    assert error.value.problems == (
        "no_aug_epoch: 6 leaves no epoch of epoches 3 with augmentation; for 3 epochs try flat_epoch=1 "
        "no_aug_epoch=1, leave both out of the config files to have them derived, or give -u epoches=3 to have them "
        "rescaled",
    )
    with pytest.raises(UserError, match="flat_epoch: 25 is after the last augmented epoch"):
        load_config(write(tmp_path, "mine.yml", text.replace("3", "20")))


def notes_of(config: ExperimentConfig) -> dict[str, bool]:
    """Derived key: whether it overrides what a person stated, which is a warning."""
    return {note.text.partition(":")[0]: note.overrides for note in config._provenance.log}


@pytest.mark.parametrize(
    ("epochs", "lengths", "matcher"),
    [(1, (0, 0), 1), (2, (1, 1), 1), (3, (1, 1), 2), (20, (8, 1), 18), (60, (24, 4), 54), (90, (36, 6), 81)],
)
def test_epochs_by_override_rescale_the_others(
    tmp_path: Path, epochs: int, lengths: tuple[int, int], matcher: int, caplog: pytest.LogCaptureFixture
) -> None:
    text = (
        "DEIMCriterion: {matcher: {matcher_change_epoch: 54}}\ntrain_dataloader: {collate_fn: {mixup_epochs: [6, 24]}}"
    )
    path = write(tmp_path, "mine.yml", f"__include__: ['{(CONFIGS / 'neu_det_small.yml').as_posix()}']\n{text}")
    config = load_config(path, [f"epoches={epochs}"])
    assert (config.flat_epoch, config.no_aug_epoch) == lengths
    assert config.train_dataloader.collate_fn.stop_epoch == epochs - lengths[1]
    assert config.train_dataloader.collate_fn.mixup_epochs[1] == lengths[0]
    assert config.DEIMCriterion.matcher.matcher_change_epoch == matcher
    with caplog.at_level("WARNING"):
        say_derived(config, texts_of("en", "training"), verbose=False)
    said = f"flat_epoch: 24 -> {lengths[0]} (rescaled: -u epoches {epochs}, 60 in the config files)"
    assert (said in caplog.text) == (epochs != 60)
    assert notes_of(config)["output_dir"] is False


@RELAXED
@given(st.integers(1, 400), st.data())
def test_rescaled_epochs_always_work(epochs: int, data: st.DataObject) -> None:
    before = data.draw(st.integers(1, 60))
    no_aug = data.draw(st.integers(0, before - 1))
    flat = data.draw(st.integers(0, before - no_aug))
    collate = [data.draw(st.integers(0, before)) for _ in range(4)]
    epochs_of_batches = {"mixup_epochs": sorted(collate[:2]), "copyblend_epochs": sorted(collate[2:])}
    values = epochs_of_batches | {"stop_epoch": before - no_aug}
    with tempfile.TemporaryDirectory() as folder:
        text = (
            f"epoches: {before}\nflat_epoch: {flat}\nno_aug_epoch: {no_aug}\ntrain_dataloader: {{collate_fn: {values}}}"
        )
        config = load_config(child(Path(folder), text), [f"epoches={epochs}"])
    assert config.epoches == epochs
    assert config.train_dataloader.collate_fn.stop_epoch == epochs - config.no_aug_epoch


def test_what_an_override_states_is_not_rescaled() -> None:
    config = load_config(INDUSTRIAL, ["epoches=3", "no_aug_epoch=2"])
    assert (config.flat_epoch, config.no_aug_epoch) == (1, 2)
    config = load_config(INDUSTRIAL, ["epoches=50", "seed=1"])
    assert (config.flat_epoch, config.no_aug_epoch) == (25, 6) and not any(notes_of(config).values())


QUICK_FILE, SMALL_FILE = CONFIGS / "quickstart.yml", CONFIGS / "neu_det_small.yml"


@pytest.mark.parametrize("parent", [QUICK_FILE, SMALL_FILE, CONFIGS / "baselines" / "fcos_resnet18.yml"])
def test_what_an_included_file_states_is_stated(tmp_path: Path, parent: Path) -> None:
    theirs = load_config(parent)
    between = write(tmp_path, "between.yml", f"__include__: ['{parent.as_posix()}']")
    batch = "train_dataloader: {total_batch_size: 12}"
    for included, text in ((parent, ""), (parent, batch), (between, "seed: 3"), (between, "epoches: 70")):
        config = load_config(write(tmp_path, "mine.yml", f"__include__: ['{included.as_posix()}']\n{text}"))
        for key in ("flat_epoch", "no_aug_epoch", "lr_gamma", "optimizer", "eval_spatial_size"):
            assert getattr(config, key) == getattr(theirs, key)
        assert not any(notes_of(config).values())
        if "epoches" not in text:
            expected = changed(theirs, output_dir=config.output_dir.as_posix(), seed=config.seed)
            images = config.train_dataloader.total_batch_size
            assert config == changed(expected, train_dataloader__total_batch_size=images)


@pytest.mark.parametrize("place", ["deimv2/any.yml", "configs/base/any.yaml", "deimv2_dinov3_s_coco.yml"])
def test_official_files_elsewhere_are_recipes(tmp_path: Path, place: str) -> None:
    write(tmp_path, place, yaml.safe_dump(merge_yaml(official("s"))))
    text = "epoches: 20\ntrain_dataloader: {total_batch_size: 8}"
    config = load_config(write(tmp_path, "mine.yml", f"__include__: ['{place}']\n{text}"))
    assert config == changed(load_config(child(tmp_path, text)), output_dir="outputs/mine")
    assert config.optimizer.lr == 5e-4 / 4 and config.flat_epoch == Schedule.of(20).flat


def test_what_a_recipe_replaces_is_no_longer_stated(tmp_path: Path) -> None:
    write(tmp_path, "lr.yml", "optimizer: {lr: 0.01}")
    config = load_config(write(tmp_path, "mine.yml", f"__include__: [lr.yml, '{official('s').as_posix()}']"))
    assert config.optimizer.lr == 5e-4


@pytest.mark.parametrize("by_override", [False, True])
def test_a_later_input_size_beats_earlier_ops_with_a_warning(tmp_path: Path, by_override: bool) -> None:
    size = "eval_spatial_size: [256, 256]"
    path = write(tmp_path, "mine.yml", f"__include__: ['{SMALL_FILE.as_posix()}']\n{'' if by_override else size}")
    config = load_config(path, [size.replace(": ", "=")] if by_override else [])
    for loader in (config.train_dataloader, config.val_dataloader):
        resize = loader.dataset.transforms.resize
        assert resize is not None and resize.size == (256, 256)
    notes = notes_of(config)
    assert notes["train_dataloader.dataset.transforms.ops[4].size"] is True
    assert notes["val_dataloader.dataset.transforms.ops[0].size"] is False


def test_later_num_workers_beat_earlier_ones(tmp_path: Path) -> None:
    text = (
        f"__include__: ['{(CONFIGS / 'neu_det.yml').as_posix()}']\nval_dataloader: {{num_workers: 2}}\nnum_workers: 1"
    )
    path = write(tmp_path, "mine.yml", text)
    for overrides, expected in (([], (1, 2)), (["num_workers=0"], (0, 0))):
        config = load_config(path, overrides)
        assert (config.train_dataloader.num_workers, config.val_dataloader.num_workers) == expected


LR, RATES, OPS = "optimizer.lr", "optimizer.params", "train_dataloader.dataset.transforms.ops"
COLLATE, POLICY = "train_dataloader.collate_fn", "train_dataloader.dataset.transforms.policy"
BATCH_16, RANDOM_VIT = "train_dataloader: {total_batch_size: 16}\n", "DINOv3STAs: {weights_path: ~}\n"
SHARE = "DINOv3STAs.backbone_lr_factor=0.1"
NORMALIZE = "{type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}"
NO_MOSAIC = f"[{{type: Resize, size: [640, 640]}}, {NORMALIZE}]"
MOSAIC_ADVICE = "(no Mosaic among ops; add {type: Mosaic, output_size: 320} as the first to have it)"


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("epoches: 40\nDEIMCriterion: {matcher: {matcher_change_epoch: 7}}", [f"{COLLATE}.mixup_epochs=[1, 2]"], {
            f"{POLICY}.epoch": [4, 22, 36], f"{COLLATE}.stop_epoch": 36, f"{COLLATE}.mixup_epochs": [1, 2],
            f"{COLLATE}.copyblend_epochs": [4, 36], "DEIMCriterion.matcher.matcher_change_epoch": 7,
        }),
        ("epoches: 40\ntrain_dataloader: {dataset: {transforms: {policy: ~}}, collate_fn: {}}", [],
            {POLICY: None, f"{COLLATE}.stop_epoch": 36}),
        ("flat_epoch: 30", [], {
            "epoches": 132, "no_aug_epoch": 12, f"{POLICY}.epoch": [4, 30, 120], f"{COLLATE}.stop_epoch": 120,
            f"{COLLATE}.mixup_epochs": [4, 30], f"{COLLATE}.copyblend_epochs": [4, 120],
            "DEIMCriterion.matcher.matcher_change_epoch": 108,
        }),
        *(("", [f"train_dataloader.total_batch_size={batch}"],
            {LR: 5e-4 * batch / 32, f"{RATES}[0].lr": 2.5e-5 * batch / 32, f"{RATES}[2].lr": None})
            for batch in (1, 8, 32, 64)),
        ("accumulation_steps: 2", ["train_dataloader.total_batch_size=8"], {LR: 5e-4 / 4}),
        ("accumulation_steps: 2\ntrain_dataloader: {total_batch_size: ~, batch_size: 4}", [],
            {LR: 5e-4 / 4, "said": "one process assumed: state total_batch_size"}),
        ("optimizer: {lr: 3e-4}", ["train_dataloader.total_batch_size=8"], {LR: 3e-4, f"{RATES}[0].lr": 2.5e-5 / 4}),
        ("", [f"{RATES}=[{{params: dinov3, lr: 1e-5}}]"], {f"{RATES}[0].lr": 1e-5}),
        (BATCH_16 + RANDOM_VIT, ["tuning=x.pth"], {f"{RATES}[0].lr": 1.25e-5}),
        (BATCH_16, [SHARE], {f"{RATES}[0].lr": 2.5e-5, f"{RATES}[1].lr": 2.5e-5, f"{RATES}[2].lr": None}),
        (BATCH_16, [SHARE, "optimizer.lr=0.001"], {f"{RATES}[0].lr": 1e-4, f"{RATES}[1].lr": 1e-4}),
        (BATCH_16 + RANDOM_VIT, [SHARE], {f"{RATES}[0].lr": 2.5e-5, f"{RATES}[1].lr": 2.5e-5}),
        (BATCH_16, [SHARE, "accumulation_steps=auto"], {f"{RATES}[0].lr": 2.5e-5, f"{RATES}[1].lr": 2.5e-5}),
        ("optimizer: {lr: 0.001, params: [{params: dinov3, lr: 1e-4}]}", [SHARE], {f"{RATES}[0].lr": 1e-4}),
        ("eval_spatial_size: [320, 320]", [], {
            f"{OPS}[6].size": [320, 320], "val_dataloader.dataset.transforms.ops[0].size": [320, 320],
            f"{OPS}[0].output_size": 160, f"{COLLATE}.base_size": 320, f"{COLLATE}.base_size_repeat": 20,
        }),
        ("eval_spatial_size: [320, 480]", [], {f"{COLLATE}.base_size_repeat": None, f"{OPS}[0].output_size": 160}),
        (f"train_dataloader: {{dataset: {{transforms: {{ops: {NO_MOSAIC}}}}}}}", [],
            {f"{OPS[:-4]}.mosaic_prob": 0, "said": f"{OPS[:-4]}.mosaic_prob: 0.5 -> 0 {MOSAIC_ADVICE}"}),
        (f"train_dataloader: {{dataset: {{transforms: {{ops: {NO_MOSAIC}}}}}}}", [f"{OPS[:-4]}.mosaic_prob=0.7"],
            {f"{OPS[:-4]}.mosaic_prob": 0, "warned": f"{OPS[:-4]}.mosaic_prob: 0.7 -> 0 {MOSAIC_ADVICE}"}),
    ],
)  # fmt: skip
def test_what_follows(tmp_path: Path, text: str, overrides: list[str], expected: dict[str, Any]) -> None:
    """Of the recipe's values and what is stated here; `said` and `warned` are in the log."""
    config = load_config(child(tmp_path, text), overrides)
    said = {note.text: note.overrides for note in config._provenance.log}
    for path, value in expected.items():
        if path in ("said", "warned"):
            assert any(value in line and is_warning == (path == "warned") for line, is_warning in said.items())
            continue
        found = get_path(config_to_dict(config), path)
        assert found == (pytest.approx(value) if isinstance(value, float) else value), path


def test_a_vit_from_random_weights_learns_like_the_rest(tmp_path: Path) -> None:
    for size in "smlx":
        config = load_config(child(tmp_path, BATCH_16 + RANDOM_VIT, parent=size))
        assert [group.lr for group in config.optimizer.params] == [2.5e-4, 2.5e-4, None]
        assert config.optimizer.lr == 2.5e-4
        assert any("the ViT starts from random weights" in line for line in derived(config))


def test_the_backbones_rate_waits_for_the_batch(tmp_path: Path) -> None:
    config = load_config(child(tmp_path, "train_dataloader: {total_batch_size: auto}"), [SHARE])
    assert with_batch(config, 16, 1, "measured").optimizer.params[0].lr == pytest.approx(2.5e-5)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (
            "dinov3",
            r"0.1 x optimizer.lr 0.00025 contradicts optimizer.params\[0\].lr 1e-05, which is stated; remove one",
        ),
        ("decoder", "no group of optimizer.params names the ViT's parameters, whose rate it sets"),
    ],
)
def test_two_rates_for_the_backbone_are_refused(tmp_path: Path, group: str, message: str) -> None:
    path = child(tmp_path, f"{BATCH_16}optimizer: {{params: [{{params: {group}, lr: 1e-5}}]}}")
    with pytest.raises(UserError, match=message):
        load_config(path, [SHARE])


def test_an_input_size_stated_by_an_included_file_is_the_size_everywhere(tmp_path: Path) -> None:
    """A grandchild that only changes the batch must not be judged at the recipe's 640 pixels."""
    child(tmp_path, "eval_spatial_size: [320, 320]")
    path = write(tmp_path, "grandchild.yml", "__include__: ['child.yml']\ntrain_dataloader: {total_batch_size: 4}\n")
    config = load_config(path)
    for loader in (config.train_dataloader, config.val_dataloader):
        resize = loader.dataset.transforms.resize
        assert resize is not None and resize.size == (320, 320)
    assert config.train_dataloader.collate_fn.base_size == 320


def test_stated_ops_keep_their_size() -> None:
    with pytest.raises(UserError, match=r"base_size: multi-scale resizes to squares around 320 pixels"):
        load_config(official("s"), ["eval_spatial_size=[320, 320]", f"{OPS}={NO_MOSAIC}"])


def test_run_length() -> None:
    config = derive_run_length(industrial(), 100)
    log = derived(config)[len(derived(industrial())) :]
    assert (config.warmup_iter, config.ema.warmups) == (250, 250)
    assert config.ema.decay == pytest.approx(1 - 20 / 5000)
    assert config.train_dataloader.collate_fn.ema_restart_decay == config.ema.decay
    assert log[0] == "warmup_iter: 2000 -> 250 (at most 5 % of 5000 steps)"
    assert len(log) == 4 and derived(derive_run_length(config, 100)) == derived(config)
    assert derive_run_length(industrial(), 10_000) == industrial(), "a long run keeps the recipe's"
    with pytest.raises(ValueError, match="steps_per_epoch is 0"):
        derive_run_length(QUICK, 0)


def test_a_recipes_length_that_does_not_fit_its_own_epochs_is_derived(tmp_path: Path) -> None:
    text = f"__include__: ['{official('s').as_posix()}']\nepoches: 32\nflat_epoch: 14\n"
    write(tmp_path, "deimv2/mine.yml", text)
    config = load_config(write(tmp_path, "child.yml", "__include__: ['deimv2/mine.yml']\nseed: 3\n"))
    assert epochs_of(config) == ((4, 14, 20), 20, (4, 14), (4, 20), 18)


def test_stated_run_length_values_are_kept() -> None:
    overrides = ["warmup_iter=900", "ema.decay=0.99999", "ema.warmups=800", "train_dataloader.collate_fn.stop_epoch=44"]
    before = load_config(INDUSTRIAL, overrides)
    config = derive_run_length(before, 10)
    assert (config.warmup_iter, config.ema.decay, config.ema.warmups) == (900, 0.99999, 800)
    assert [line.partition(":")[0] for line in derived(config)[len(derived(before)) :]] == [
        "train_dataloader.collate_fn.ema_restart_decay"
    ]


@RELAXED
@given(st.integers(1, 10**7))
def test_bounds_for_any_length(steps_per_epoch: int) -> None:
    config = derive_run_length(QUICK, steps_per_epoch)
    total = QUICK.epoches * steps_per_epoch
    assert 0 <= config.warmup_iter <= min(QUICK.warmup_iter, total / 20)
    assert 0 <= config.ema.decay <= max(0, min(QUICK.ema.decay, 1 - 20 / total))
    assert config.ema.warmups <= min(QUICK.ema.warmups, total / 20)
