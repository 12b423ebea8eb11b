"""What a person names and is not there: the nearest that is."""

from pathlib import Path

import pytest

from data.errors import UserError
from engine.checkpoint import load_checkpoint
from engine.config import load_config
from engine.named_files import checkpoint_of

CONFIGS = ("quickstart.yml", "quickstart_multimodal.yml", "base.yml", "base/small.yml", "baselines/fcos.yml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in CONFIGS:
        (tmp_path / "configs" / name).parent.mkdir(parents=True, exist_ok=True)
        text = f"# yaml-language-server: $schema=x\n# What {name} is.\n# More.\n"
        (tmp_path / "configs" / name).write_text(text, encoding="utf-8")
    for name in ("quickstart/best.pth", "quickstart/last.pth", "young/last.pth", "failed/log.jsonl"):
        (tmp_path / "outputs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "outputs" / name).touch()
    (tmp_path / "outputs" / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quickstart", "quickstart: config file not found; did you mean configs/quickstart.yml?"),
        ("quickstart.yml", "did you mean configs/quickstart.yml?"),
        ("configs/quikstart.yml", "did you mean configs/quickstart.yml?"),
        ("configs/quickstart_multimodl.yaml", "did you mean configs/quickstart_multimodal.yml?"),
        ("nothing/like/it.yml", "check the path given with -c (`-c config` lists the configs)"),
        ("config", "config: there is no such config file; give one of these with -c:"),
        ("configs", "configs: is a folder; give one of these with -c:"),
        ("configs/base", "configs/base: is a folder (did you mean configs/base.yml?)"),
        ("outputs", "outputs: is a folder; give one of these with -c:"),
    ],
)
def test_a_config_that_is_not_there(here: Path, name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(name)
    assert message in str(error.value)
    listed = [name for name in CONFIGS if f"configs/{name}: What {name} is." in error.value.problems]
    expected = {"configs/base": ["base/small.yml"]} | dict.fromkeys(
        ("config", "configs", "outputs"), [name for name in CONFIGS if name != "base/small.yml"]
    )
    assert listed == expected.get(name, [])


def test_the_nearest_config_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"did you mean /.*/configs/quickstart\.yml\?"):
        load_config("quickstart")
    (tmp_path / "mine.yml").write_text("__include__: [yuors.yml]", encoding="utf-8")
    (tmp_path / "yours.yml").touch()
    with pytest.raises(UserError, match=r"names 'yuors\.yml', but there is no file .*; did you mean .*yours\.yml\?"):
        load_config("mine.yml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("outputs/quikstart/best.pth", "no such file; .* Did you mean outputs/quickstart/best.pth?"),
        ("outputs/quikstart", "Did you mean outputs/quickstart?"),
        ("outputs/quickstart/bets.pth", "outputs/quickstart holds: best.pth, last.pth. Did you mean"),
        ("outputs/young", "it is a folder without best.pth; outputs/young holds: last.pth. Give one of them: "),
        ("outputs/failed", "holds: log.jsonl. Train first, or give another run's folder"),
        ("outputs/empty", "it is a folder without best.pth; it is empty. Train first"),
    ],
)
def test_a_checkpoint_that_is_not_there(here: Path, name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_checkpoint(Path(name))
    start, _, end = message.partition(".*")
    assert start in str(error.value) and end in str(error.value)


def test_a_run_folder_stands_for_its_checkpoint(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path("outputs/quickstart")
    with caplog.at_level("INFO"):
        assert checkpoint_of(folder) == folder / "best.pth"
        assert checkpoint_of(folder, "last.pth") == folder / "last.pth"
    assert "outputs/quickstart/best.pth is used" in caplog.text
    (folder / "model.safetensors").touch()
    assert checkpoint_of(folder) == folder, "a folder of the hub's layout"
    assert checkpoint_of(Path("hf:a/b")) == Path("hf:a/b")
