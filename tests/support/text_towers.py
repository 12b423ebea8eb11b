"""Text encoders with random weights, as folders in the form of the Hugging Face hub."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers, processors

from models.config import TextEncoderConfig

WIDTH = 16
"""Of the towers' inside."""
PROJECTED = 24
"""Of CLIP's vectors."""
LETTERS = "abcdefghijklmnopqrstuvwxyzáéíóúüñABCDEFGHIJKLMNOPQRSTUVWXYZÁÉÍÓÚÑ0123456789.,-_()"
_TEXT = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = {**_TEXT, "patch_size": 16}


def local(folder: Path, **settings: Any) -> TextEncoderConfig:
    """The config that names `folder` and never uses the network."""
    return TextEncoderConfig(name=folder.as_posix(), allow_download=False, **settings)


def write_clip(folder: Path, *, seed: int = 0, tokenizer_root: Path | None = None) -> Path:
    """CLIP, both towers; with the real vocabulary where `tokenizer_root` holds it, else with one of single letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    if tokenizer_root is None:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "ho", "hol", "hole</w>"]
        vocabulary = {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
        merges = [("h", "o"), ("ho", "l"), ("hol", "e</w>")]
        tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    else:
        tokenizer = CLIPTokenizer.from_pretrained(tokenizer_root, local_files_only=True, model_max_length=77)
    end = tokenizer.eos_token_id
    text = {
        **_TEXT,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": end,
        "pad_token_id": end,
        "projection_dim": PROJECTED,
    }
    config = CLIPConfig(text_config=text, vision_config={**_VISION, "image_size": 32}, projection_dim=PROJECTED)
    _save(CLIPModel, config, folder, seed)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def write_siglip(folder: Path, *, seed: int = 0) -> Path:
    """SigLIP (1) with a SentencePiece vocabulary trained on the spot."""
    import sentencepiece
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipTokenizer

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a deep crack in the surface", "grieta profunda, agujero circular", LETTERS] * 20),
        model_writer=model,
        vocab_size=110,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    tokenizer = SiglipTokenizer.from_pretrained(folder, local_files_only=True)
    text = {**_TEXT, "vocab_size": len(tokenizer), "projection_size": WIDTH, **_special_ids()}
    _save(SiglipModel, SiglipConfig(text_config=text, vision_config={**_VISION, "image_size": 32}), folder, seed)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def write_siglip2(folder: Path, *, seed: int = 0, model_type: str = "siglip") -> Path:
    """SigLIP 2: most checkpoints are of the type `siglip` with Gemma's tokenizer, which keeps capital letters."""
    from transformers import (
        Siglip2Config,
        Siglip2Model,
        Siglip2Tokenizer,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
    )

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    tokenizer = Siglip2Tokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=64)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    text = {**_TEXT, "vocab_size": len(pieces), "projection_size": WIDTH, **_special_ids()}
    if model_type == "siglip2":
        _save(Siglip2Model, Siglip2Config(text_config=text, vision_config=_VISION), folder, seed)
    else:
        _save(SiglipModel, SiglipConfig(text_config=text, vision_config={**_VISION, "image_size": 32}), folder, seed)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    if model_type == "siglip":
        change_json(folder / "tokenizer_config.json", tokenizer_class="GemmaTokenizer")
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        content["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_bert(folder: Path, *, seed: int = 0, modules: dict[str, Any] | None = None) -> Path:
    """BERT, with the sentence-transformers files of a Pooling module with `modules` in it, if given."""
    from transformers import BertConfig, BertModel, BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=64)
    _save(BertModel, BertConfig(**_TEXT, vocab_size=len(pieces), max_position_embeddings=64), folder, seed)
    tokenizer.save_pretrained(folder)
    if modules is not None:
        write_modules(folder, "Transformer", "Pooling", "Normalize")
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(modules), encoding="utf-8")
    return folder


def write_modules(folder: Path, *kinds: str) -> None:
    """sentence-transformers' list of modules."""
    modules = [
        {"path": f"{index}_{kind}" if index else "", "type": f"sentence_transformers.models.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")


def change_json(path: Path, **values: Any) -> None:
    """Set top-level values of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**content, **values}), encoding="utf-8")


def _special_ids() -> dict[str, int | None]:
    return {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}


def _save(model_class: Any, config: Any, folder: Path, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
        for parameter in model.parameters():
            # Larger than a fresh model's: texts shall differ visibly, and what is masked shall count.
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.5)
        model.save_pretrained(folder)
