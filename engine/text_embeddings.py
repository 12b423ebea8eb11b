"""The class texts' vectors for a run: encoded once, kept in the run folder, compared with one another.

C classes, P prompts of the class with most, D width of the encoder.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from data.class_descriptions import texts_for_classes
from data.classes import ClassMap
from data.errors import UserError
from data.files import write_atomically
from engine.config import ExperimentConfig
from models.hub import find_encoder
from models.text_encoder import RANDOM_WEIGHTS, TextEmbeddings, encode_texts, is_english_only

log = logging.getLogger(__name__)

NEARLY_THE_SAME = 0.98
"""Cosine similarity from which two classes' texts say nearly the same to the encoder."""
_FORMAT = "1"
"""Changed whenever the way from texts to vectors changes, so that older files are not taken."""


class AlikePair(NamedTuple):
    """Two classes whose texts the encoder can hardly tell apart."""

    first: str
    second: str
    similarity: float


def class_text_embeddings(config: ExperimentConfig, classes: ClassMap, cache_folder: Path | None) -> TextEmbeddings:
    """Return the vectors of the class texts that section `texts` asks for, from `cache_folder` where they are in it.

    A cached file counts if texts and settings are the same and, where the encoder is on this machine, its files too;
    without the encoder the cached vectors are taken as they are. With several processes, give only one of them a
    `cache_folder`, or call it in one and send the result; None neither reads nor writes.

    Raises:
        UserError: A class has no text, the encoder is not to be had, or the folder cannot be written.
    """
    prompts = _prompts(config, classes)
    path = None if cache_folder is None else _cache_path(cache_folder, config, prompts)
    embeddings = None if path is None else _read(path, config)
    if embeddings is None:
        embeddings = encode_texts(prompts, config.texts.encoder)
        _warn_of_language(config)
        if path is not None:
            _write(path, embeddings, classes, prompts)
        log.info("Encoded %d texts of %d classes with %s", sum(map(len, prompts)), len(classes), embeddings.source)
    alike = alike_pairs(class_similarity(embeddings), classes.names)
    if alike:
        log.warning(
            "Classes whose texts are nearly the same to the encoder (cosine similarity): %s. Text cannot help to tell "
            "them apart; give them more distinct texts in texts.own, or take another encoder.",
            ", ".join(f"{pair.first} and {pair.second} ({pair.similarity:.3f})" for pair in alike),
        )
    return embeddings


def store_embeddings(embeddings: TextEmbeddings, config: ExperimentConfig, classes: ClassMap, folder: Path) -> None:
    """Write what `class_text_embeddings` gave without a cache into `folder`, where it finds it the next time.

    For a run folder that must not exist before everything else about the run is known to be right.

    Raises:
        UserError: The folder cannot be written.
    """
    prompts = _prompts(config, classes)
    _write(_cache_path(folder, config, prompts), embeddings, classes, prompts)


def class_similarity(embeddings: TextEmbeddings) -> Tensor:
    """Return the cosine similarity of the classes' averaged texts, float32 [C, C], ones on the diagonal."""
    vectors = embeddings.class_vectors()
    similarity = (vectors @ vectors.T).clamp(-1, 1)
    return similarity.fill_diagonal_(1.0)


def alike_pairs(similarity: Tensor, names: tuple[str, ...]) -> list[AlikePair]:
    """Return pairs of classes at least as similar as `NEARLY_THE_SAME`, most alike first."""
    first, second = torch.triu(similarity >= NEARLY_THE_SAME, diagonal=1).nonzero(as_tuple=True)
    pairs = [
        AlikePair(names[i], names[j], float(similarity[i, j]))
        for i, j in zip(first.tolist(), second.tolist(), strict=True)
    ]
    return sorted(pairs, key=lambda pair: -pair.similarity)


def _prompts(config: ExperimentConfig, classes: ClassMap) -> list[list[str]]:
    texts, section = config.texts, config.MultimodalFusion
    return texts_for_classes(
        classes.names,
        language=texts.language,
        own_texts=texts.own,
        use_phrasings=texts.use_phrasings,
        template=texts.template,
        waffle_seed=section.seed if section is not None and section.mode == "waffle" else None,
    )


def _cache_path(folder: Path, config: ExperimentConfig, prompts: list[list[str]]) -> Path:
    """Its name changes with whatever the vectors depend on, except the encoder's files, which `source` stands for."""
    encoder = config.texts.encoder
    content = [_FORMAT, prompts, encoder.name, encoder.pooling, encoder.max_length]
    key = hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()[:16]
    return folder / f"text_embeddings_{key}.safetensors"


def _warn_of_language(config: ExperimentConfig) -> None:
    if config.texts.language != "en" and is_english_only(config.texts.encoder):
        log.warning(
            "The texts are Spanish (texts.language: es), but %s was trained on English: its vectors of Spanish texts "
            "say little. Use texts.language=en, or a multilingual encoder such as "
            "texts.encoder.name=google/siglip2-base-patch16-224.",
            config.texts.encoder.name,
        )


def _write(path: Path, embeddings: TextEmbeddings, classes: ClassMap, prompts: list[list[str]]) -> None:
    texts = dict(zip(classes.names, prompts, strict=True))
    metadata = {"source": embeddings.source, "texts": json.dumps(texts, ensure_ascii=False)}
    content = save({"embeds": embeddings.embeds, "mask": embeddings.mask}, metadata)
    write_atomically(path, lambda file: file.write(content), what="text embeddings")


def _read(path: Path, config: ExperimentConfig) -> TextEmbeddings | None:
    """What is in the cache, unless it is damaged or another version of the encoder made it; the log says so."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            source = (file.metadata() or {})["source"]
            embeddings = TextEmbeddings(file.get_tensor("embeds"), file.get_tensor("mask"), source)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        log.warning("%s is damaged (%s); the texts are encoded again", path, error)
        return None
    try:
        here = find_encoder(config.texts.encoder, may_download=False).source()
    except UserError:
        log.info("The text encoder is not on this machine; its vectors are taken from %s", path)
        return embeddings
    if here != source.removesuffix(RANDOM_WEIGHTS):
        log.warning("%s was made by %s, the encoder is now %s; the texts are encoded again", path, source, here)
        return None
    log.info("Text vectors of %s taken from %s", source, path)
    return embeddings
