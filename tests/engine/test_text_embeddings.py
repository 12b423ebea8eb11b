"""The cache of the class texts' vectors, and what is said about the texts."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from data.classes import ClassMap
from data.errors import UserError
from engine.config import ExperimentConfig, config_from_dict, config_to_dict, load_config
from engine.text_embeddings import alike_pairs, class_similarity, class_text_embeddings
from models.text_encoder import TextEmbeddings
from tests.support.configs import CONFIGS, small_config
from tests.support.text_towers import write_bert, write_clip

CLASSES = ClassMap((1, 2, 5), ("PERFORACIONES", "ROTURA", "NORMAL"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


def with_texts(encoder: Path, **texts: Any) -> ExperimentConfig:
    settings = {"name": encoder.as_posix(), "allow_download": False, **texts.pop("encoder_settings", {})}
    return config_from_dict({**config_to_dict(small_config()), "texts": {"encoder": settings, **texts}})


def cache_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("text_embeddings_*.safetensors"))


def assert_same(first: TextEmbeddings, second: TextEmbeddings) -> None:
    assert torch.equal(first.embeds, second.embeds) and torch.equal(first.mask, second.mask)
    assert first.source == second.source


def test_the_second_run_takes_the_first_ones_vectors(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_texts(bert)
    first = class_text_embeddings(config, CLASSES, tmp_path / "run")
    assert first.embeds.shape[:2] == (3, 5) and first.mask.all()
    monkeypatch.setattr("engine.text_embeddings.encode_texts", None)
    assert_same(class_text_embeddings(config, CLASSES, tmp_path / "run"), first)
    assert len(cache_files(tmp_path / "run")) == 1
    with safe_open(cache_files(tmp_path / "run")[0], framework="pt") as file:
        assert '"NORMAL": ["Surface without visible defects' in file.metadata()["texts"]


def test_the_encoder_may_be_gone_once_its_vectors_are_cached(
    bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(bert, tmp_path / "encoder")
    config = with_texts(tmp_path / "encoder")
    first = class_text_embeddings(config, CLASSES, tmp_path)
    shutil.rmtree(tmp_path / "encoder")
    with caplog.at_level(logging.INFO):
        assert_same(class_text_embeddings(config, CLASSES, tmp_path), first)
    assert "is not on this machine; its vectors are taken from" in caplog.text
    with pytest.raises(UserError, match="there is no folder"):
        class_text_embeddings(config, CLASSES, tmp_path / "elsewhere")


def test_another_encoder_in_the_same_place_counts(bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(bert, encoder)
    config = with_texts(encoder)
    first = class_text_embeddings(config, CLASSES, tmp_path)
    shutil.rmtree(encoder)
    write_bert(encoder, seed=1)
    second = class_text_embeddings(config, CLASSES, tmp_path)
    assert "the texts are encoded again" in caplog.text
    assert first.source != second.source and not torch.allclose(first.embeds, second.embeds)
    caplog.clear()
    assert_same(class_text_embeddings(config, CLASSES, tmp_path), second)
    assert "encoded again" not in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"language": "es"},
        {"use_phrasings": False},
        {"template": "photo of {}"},
        {"own": {"NORMAL": "clean"}},
        {"encoder_settings": {"pooling": "cls"}},
        {"encoder_settings": {"max_length": 20}},
        {"classes": ClassMap((1, 2, 5), CLASSES.names[::-1])},
    ],
)
def test_whatever_changes_the_vectors_changes_the_file(change: dict[str, object], bert: Path, tmp_path: Path) -> None:
    first = class_text_embeddings(with_texts(bert), CLASSES, tmp_path)
    classes = change.pop("classes", CLASSES)
    second = class_text_embeddings(with_texts(bert, **change), classes, tmp_path)
    assert len(cache_files(tmp_path)) == 2
    assert first.embeds.shape != second.embeds.shape or not torch.allclose(first.embeds, second.embeds)


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
def test_a_damaged_cache_is_made_again_and_said(
    damage: str, bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = with_texts(bert)
    first = class_text_embeddings(config, CLASSES, tmp_path)
    (path,) = cache_files(tmp_path)
    if damage == "foreign":
        shutil.copy(bert / "model.safetensors", path)
    else:
        path.write_bytes(path.read_bytes()[:100] if damage == "cut" else b"")
    assert_same(class_text_embeddings(config, CLASSES, tmp_path), first)
    assert f"{path} is damaged" in caplog.text
    caplog.clear()
    assert_same(class_text_embeddings(config, CLASSES, tmp_path), first)
    assert "encoded again" not in caplog.text


def test_clip_with_spanish_texts_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = write_clip(tmp_path / "clip")
    spanish = with_texts(clip, language="es", use_phrasings=False)
    for _ in range(2):
        class_text_embeddings(spanish, CLASSES, tmp_path)
    found = [record.getMessage() for record in caplog.records if "was trained on English" in record.getMessage()]
    assert len(found) == 1 and "google/siglip2-base-patch16-224" in found[0]
    caplog.clear()
    class_text_embeddings(with_texts(clip, language="en"), CLASSES, tmp_path)
    assert "was trained on English" not in caplog.text


def test_classes_with_the_same_text_are_named(bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    same = with_texts(bert, own={"PERFORACIONES": "A dark spot", "ROTURA": ["A dark spot"], "NORMAL": "fine"})
    class_text_embeddings(same, CLASSES, tmp_path)
    assert "nearly the same to the encoder (cosine similarity): PERFORACIONES and ROTURA (1.000). Text" in caplog.text
    assert "NORMAL" not in caplog.text


def test_similarity_of_known_vectors() -> None:
    a, b, c = torch.eye(3)
    embeds = torch.stack([torch.stack([a, b]), torch.stack([a, torch.zeros(3)]), torch.stack([c, c])])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    found = class_similarity(TextEmbeddings(embeds, mask, "known"))
    half = 0.5**0.5
    torch.testing.assert_close(found, torch.tensor([[1, half, 0], [half, 1, 0], [0, 0, 1]]))


def test_pairs_come_most_alike_first_and_once() -> None:
    similarity = torch.tensor([[1, 0.985, 0.2], [0.985, 1, 0.99], [0.2, 0.99, 1]])
    pairs = alike_pairs(similarity, ("a", "b", "c"))
    assert [(pair.first, pair.second) for pair in pairs] == [("b", "c"), ("a", "b")]
    assert alike_pairs(similarity.clamp(max=0.97), ("a", "b", "c")) == []


def test_faults_of_the_config_section_are_explained() -> None:
    faults = {
        "language=fr": "texts.language: found \"fr\", expected 'es' or 'en'",
        "template=no place": 'texts.template: found "no place": must hold {} once',
        "encoder.pooling=last": "texts.encoder.pooling: found \"last\", expected 'auto', 'mean' or 'cls'",
        "encoder.name=": "texts.encoder.name: found",
        "own={NORMAL: 5}": "texts.own.NORMAL: found 5, expected",
    }
    with pytest.raises(UserError) as caught:
        load_config(CONFIGS / "quickstart.yml", [f"texts.{override}" for override in faults])
    assert not [message for message in faults.values() if message not in str(caught.value)]
