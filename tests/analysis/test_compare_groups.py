"""Which runs become one row, and how rows are called."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from analysis.compare import Group, group_runs, read_runs
from data.errors import UserError
from tests.support.comparison import change_results, write_run

CONFIG: dict[str, Any] = {
    "num_classes": 2,
    "epoches": 40,
    "device": "cuda",
    "train_dataloader": {"total_batch_size": 8, "num_workers": 4, "dataset": {"ann_file": "a.json"}},
    "val_dataloader": {"total_batch_size": 8},
}
OTHER = {**CONFIG, "epoches": 80}


def groups_of(folders: Sequence[Path], labels: Sequence[str] = ()) -> list[Group]:
    return group_runs(read_runs(folders), labels)


def members(groups: Sequence[Group]) -> dict[str, list[str]]:
    return {group.label: [run.folder.name for run in group.runs] for group in groups}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three seeds of one config, with everything different that may be, and one other config in between."""
    root = tmp_path_factory.mktemp("runs")
    elsewhere = {
        **CONFIG,
        "device": "cpu",
        "resume": "somewhere/last.pth",
        "train_dataloader": {**CONFIG["train_dataloader"], "num_workers": 0},
        "val_dataloader": {"total_batch_size": 1},
    }
    return [
        write_run(root / "vit_seed0", seed=0, config=CONFIG),
        write_run(root / "other", seed=0, config=OTHER),
        write_run(root / "vit_seed1", seed=1, config=elsewhere),
        write_run(root / "vit_seed2", seed=2, config=CONFIG),
    ]


def test_seeds_of_one_config_are_one_row(runs: list[Path]) -> None:
    found = groups_of(runs)
    assert members(found) == {"vit": ["vit_seed0", "vit_seed1", "vit_seed2"], "other": ["other"]}


HALF = {**CONFIG, "train_dataloader": {**CONFIG["train_dataloader"], "dataset": {"ann_file": "half.json"}}}


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({"seed": 1, "config": HALF}, id="other training images"),
        pytest.param({"seed": 0, "config": CONFIG}, id="the same seed"),
        pytest.param({"seed": 1, "config": CONFIG, "checkpoint": "last.pth"}, id="another checkpoint of a run"),
        pytest.param({"seed": 3}, id="unknown config"),
    ],
)
def test_what_makes_a_row_of_its_own_and_labels_that_join_it(
    runs: list[Path], tmp_path: Path, facts: dict[str, Any]
) -> None:
    pair = [runs[0], write_run(tmp_path / "another", **facts)]
    assert members(groups_of(pair)) == {"vit_seed0": ["vit_seed0"], "another": ["another"]}
    assert [group.label for group in groups_of(pair, ["DEIMv2", "DEIMv2"])] == ["DEIMv2"]
    with pytest.raises(UserError, match=r"found 1 \(a\), expected 2, one per run\.$"):
        groups_of(pair, ["a"])


def test_an_evaluation_folder_finds_the_config_of_its_run(tmp_path: Path) -> None:
    root = tmp_path / "vit_seed0"
    write_run(root, seed=0, config=CONFIG)
    (root / "best.pth").touch()
    evaluation = write_run(root / "eval_val_best", seed=0)
    second = write_run(tmp_path / "vit_seed1", seed=1, config=CONFIG)
    assert members(groups_of([evaluation, second])) == {"vit": ["eval_val_best", "vit_seed1"]}
    (root / "best.pth").unlink()
    assert len(groups_of([evaluation, second])) == 2, "not the folder of this checkpoint's run"


def test_the_config_in_results_comes_first(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a_seed0", seed=0)
    two = write_run(tmp_path / "a_seed1", seed=1, config=CONFIG)
    change_results(one, config=CONFIG)
    assert list(members(groups_of([one, two]))) == ["a"]
    change_results(two, config=OTHER)
    assert len(groups_of([one, two])) == 2


def test_damaged_and_hostile_configs_are_faults(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, seed=seed, config=CONFIG) for seed, name in enumerate("abc")]
    (folders[0] / "config.yaml").write_text("{: [", encoding="utf-8")
    bomb = "a0: &a0 x\n" + "".join(f"a{i + 1}: &a{i + 1} [{f'*a{i},' * 9}]\n" for i in range(9))
    (folders[1] / "config.yaml").write_text(bomb, encoding="utf-8")
    deep: Any = 1
    for _ in range(600):
        deep = {"a": deep}
    change_results(folders[2], config=deep)
    with pytest.raises(UserError) as error:
        read_runs(folders)
    for part in (
        "bad YAML: line 1",
        "aliases (*name) expand to more than 100,000",
        "results.json: config: nested too deep",
    ):
        assert part in str(error.value)


def test_labels_per_run_join_by_name_and_name_the_differences(runs: list[Path]) -> None:
    found = groups_of(runs, ["ours", "base", "ours", "base"])
    assert members(found) == {"ours": ["vit_seed0", "vit_seed1"], "base": ["other", "vit_seed2"]}
    assert found[0].config_differences == ()
    assert found[1].config_differences == ("epoches",)
    assert list(members(groups_of(runs, ["DEIMv2-S\n", "Faster R-CNN"]))) == ["DEIMv2-S", "Faster R-CNN"], "per row"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"], "found 1 (a), expected 4, one per run (or 2, one per group of seeds)"),
        (["a", "b", "c"], "found 3 (a, b, c), expected 4, one per run (or 2, one per group of seeds)"),
        (["a", "b", " ", "d"], "label 3 is empty"),
        (["a", ""], "label 2 is empty"),
        (["a", "a"], "names two groups alike (a, a)"),
    ],
)
def test_wrong_labels(runs: list[Path], labels: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        groups_of(runs, labels)
    assert message in str(error.value)


def test_names_are_made_unique(tmp_path: Path) -> None:
    one = write_run(tmp_path / "x" / "run", seed=0)
    two = write_run(tmp_path / "y" / "run", seed=0)
    inner = tmp_path / "y" / "run" / "eval_test_best"
    shutil.copytree(two, inner)
    assert list(members(groups_of([one, two]))) == ["x/run", "y/run"]
    labels = list(members(groups_of([two, inner])))
    assert len(set(labels)) == 2 and labels[1].endswith("eval_test_best")
