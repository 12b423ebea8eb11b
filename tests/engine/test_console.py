"""What a training says: the block at its start and its end, where a resumed run continues, how to go on."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from data.errors import UserError
from engine.config import config_to_dict, load_config
from engine.train import train
from tests.support.training import alone, checkpoint, log_records, stop_after, train_here
from texts import Language

pytestmark = pytest.mark.usefixtures("no_training_pictures")


@pytest.fixture(scope="module")
def tiny(finished: tuple[Path, Path]) -> Path:
    """Config of a run of 3 epochs of 2 steps; what it left is in `run`, stopped after step 3 in `stopped`."""
    config, folder = finished
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        stop_after(patch, 3)
        train_here(config, folder.with_name("stopped"))
    return config


@pytest.mark.parametrize(
    ("lang", "said"),
    [
        (
            "en",
            [
                r"derived: \d+ values follow from .* \(--verbose lists them\)",
                r"Training\n  device +CPU, \d+ threads?, [\d.,]+ GB, float32",
                r"  model +DEIMv2 vit_custom: 157,094 parameters, 157,092 of them learn",
                r"  weights +all random",
                r"  train +8 images, 12 boxes: square 6, bar 6",
                r"  val +4 images, 6 boxes: square 3, bar 3",
                r"  batch +4 images a step: 1 process × 2 micro-batches × 2 images",
                r"  length +3 epochs × 2 steps = 6 steps, 2 of them warm-up",
                r"  learning rates +0.001 for 157,092 parameters",
                r"  run folder +.*run",
                r"epoch 1: AP 0\.\d{4}, AP50 0\.\d{4} \(best AP 0\.\d{4}\)",
                r"training took 0:00:\d\d; results in .*run\n  class +boxes +AP +AP50\n",
                r"\n  square +3 +0\.\d{4} +0\.\d{4}\n",
                r"  all +6 +0\.\d{4} +0\.\d{4}\n  best epoch [123] of 3: AP 0\.\d{4}; .*run/best.pth\n",
                r"  next: python evaluate_deimv2.py -r .*run/best.pth",
            ],
        ),
        (
            "es",
            [
                r"derivados: \d+ valores",
                r"Entrenamiento\n  dispositivo +CPU, \d+ hilos?",
                r"\n  teselas +32 × 32 px, solapamiento 20.%: 72 teselas de las imágenes .*, \d\d en cada época\n",
                r"época 1: AP 0,\d{4}, AP50 0,\d{4} \(mejor AP 0,\d{4}\)",
                r"  todas +6 +0,\d{4} +0,\d{4}\n  mejor época 1 de 1: AP 0,\d{4}; ",
            ],
        ),
    ],
)
def test_start_and_end(
    tiny: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    lang: Language,
    said: list[str],
) -> None:
    with caplog.at_level("INFO"):
        length = [] if lang == "en" else ["epoches=1", "flat_epoch=1", "no_aug_epoch=0", "tiles.size=32"]
        train(load_config(tiny, ["accumulation_steps=2", *length]), alone(), tmp_path / "run", lang=lang)
    for pattern in said:
        assert re.search(pattern, caplog.text), pattern
    bar = r"epoch 3/3.*loss \d+\.\d{4}, " if lang == "en" else r"época 1/1.*pérdida \d+,\d{4}, "
    assert re.search(bar, capsys.readouterr().err)


def test_epochs_count_from_1_in_the_log(tiny: Path) -> None:
    assert {record["epoch"] for record in log_records(tiny.parent / "run")} == {1, 2, 3}


def test_derived_values_of_what_is_off_are_not_told(tiny: Path) -> None:
    off = [
        "use_ema=False",
        "DEIMCriterion.matcher.change_matcher=False",
        *(f"train_dataloader.collate_fn.{key}_prob=0" for key in ("mixup", "copyblend")),
        "train_dataloader.dataset.transforms.mosaic_prob=0",
        "train_dataloader.collate_fn.base_size_repeat=null",
    ]
    told = {
        name: {note.text.partition(":")[0].rpartition(".")[2] for note in load_config(tiny, changes).derived_in_use()}
        for name, changes in (("on", ["train_dataloader.collate_fn.mixup_prob=0.5"]), ("off", off))
    }
    assert {"mixup_epochs", "copyblend_epochs", "matcher_change_epoch"} <= told["on"]
    assert told["off"] == {"epoch", "stop_epoch", "lr", "output_dir"}


def test_ctrl_c_says_where_it_saved_and_the_whole_command(
    tiny: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.parent / "stopped"
    stop_after(monkeypatch, 1)
    with caplog.at_level("INFO"), pytest.raises(SystemExit):
        train_here(tiny, folder, resume=folder / "last.pth")
    where = r"with the evaluation of epoch 2 of 3 \(after step 4 of the run\)"
    said = rf"{folder.as_posix()}/last.pth goes on {where}. To go on: (.*)"
    found = re.search(said, caplog.text)
    assert found and "goes on with step 2 of 2 of epoch 2 of 3 (step 4 of the run)" in caplog.text
    words = shlex.split(found[1])
    assert words == ["python", "train_deimv2.py", "-c", f"{folder}/config.yaml", "-r", f"{folder}/last.pth"]
    assert config_to_dict(load_config(words[3])) == yaml.safe_load(Path(words[3]).read_text(encoding="utf-8"))


OPS = (
    "train_dataloader.dataset.transforms.ops=[{{type: Resize, size: [64, 64]}}, {{type: RandomRotate90, p: {}}}, "
    "{{type: ConvertPILImage, dtype: float32, scale: True}}, "
    "{{type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}]"
)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "last.pth: nothing is left to do, it has 3 epochs and the config asks for 3; more with -u epoches=N"),
        (["epoches=2"], "changed since the checkpoint: epoches: 3 -> 2"),
        (["train_dataloader.total_batch_size=2"], "total_batch_size: 4 -> 2"),
        (["tiles.size=32"], "changed since the checkpoint: tiles: None -> {'size': 32,"),
        ([OPS.format(0.3)], "transforms.ops: - {'type': 'Mosaic', 'output_size': 32, "),
        ([OPS.format(0.3)], ", + {'type': 'RandomRotate90', 'p': 0.3}"),
        (
            ["epoches=9", "early_stopping_patience=1", "no_aug_epoch=1", "flat_epoch=1"],
            "no better AP for 1 epoch (early_stopping_patience), after 3 of 9 epochs",
        ),
    ],
)
def test_a_finished_run_has_nothing_left_to_do(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, overrides: list[str], said: str
) -> None:
    folder = tiny.parent / "run"
    state, config = (folder / "last.pth").read_bytes(), (folder / "config.yaml").read_bytes()
    with caplog.at_level("INFO"):
        train_here(tiny, folder, overrides, resume=folder / "last.pth")
    assert said in caplog.text and "next: python evaluate_deimv2.py" in caplog.text
    assert (folder / "last.pth").read_bytes() == state and (folder / "config.yaml").read_bytes() == config


@pytest.mark.parametrize(
    "overrides",
    [
        ["train_dataloader.total_batch_size=null", "train_dataloader.batch_size=2"],
        ["accumulation_steps=2"],
        ["seed=1"],
        ["train_dataloader.repeat_factor_threshold=0.9"],
        ["tiles.size=64"],
        [
            "allow_split_overlap=True",
            "train_dataloader.dataset.ann_file=DATA/val.json",
            "train_dataloader.dataset.img_folder=DATA/val",
        ],
    ],
)
def test_within_an_epoch_nothing_may_change_which_images_are_left(
    tiny: Path, tmp_path: Path, overrides: list[str]
) -> None:
    state = checkpoint(tiny.parent / "run" / "last.pth") | {"last_epoch": 1, "step": 5, "batch_in_epoch": 1}
    torch.save(state, tmp_path / "within.pth")
    with pytest.raises(UserError, match="written in the middle of an epoch") as error:
        overrides = [one.replace("DATA", tiny.parent.as_posix()) for one in overrides]
        train_here(tiny, tmp_path / "run", overrides, resume=tmp_path / "within.pth")
    assert len(error.value.problems) >= 1 and not (tmp_path / "run").exists()
