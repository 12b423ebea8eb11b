"""Class texts -> one vector per prompt, by a pretrained text encoder that runs once, on the CPU, in float32.

Three kinds of encoder: CLIP (projected vector of the end token), SigLIP and SigLIP 2 (vector of the last position),
any other text model of `transformers` (mean or CLS pooling, or what a sentence-transformers folder says).

C classes, P prompts of the class with most, N texts or images, T tokens, D width of the encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from data.errors import UserError
from models.config import TextEncoderConfig
from models.hub import PACKAGED_NAME, EncoderFiles, find_encoder, load_problem
from models.weights import parse_json

log = logging.getLogger(__name__)

Kind = Literal["clip", "siglip", "other"]
Pooling = Literal["own", "mean", "cls", "max"]

RANDOM_WEIGHTS = " (random weights)"
"""Marks the source of vectors whose encoder was never trained."""
_BATCH = 32
_LONGEST = 512
"""Tokens for models that do not say; class texts are far shorter."""
_ENGLISH_SIGLIP_VOCABULARY = 32_000
"""SigLIP's English checkpoints; the multilingual ones (SigLIP i18n, SigLIP 2) have 250 thousand tokens or more."""


@dataclass(frozen=True)
class TextEmbeddings:
    """What the text head is given: the encoded texts of all classes, in label order."""

    embeds: Tensor
    """float32 [C, P, D]; each prompt's vector has length 1, absent prompts are zeros."""
    mask: Tensor
    """bool [C, P]: True where the class has a prompt. Every class has at least one."""
    source: str
    """Encoder and a hash of its files, for logs and checkpoints; ends with `RANDOM_WEIGHTS` if it never learned."""

    @property
    def has_real_weights(self) -> bool:
        """Whether the encoder was trained: vectors of random weights test the machinery and say nothing of texts."""
        return not self.source.endswith(RANDOM_WEIGHTS)

    def class_vectors(self) -> Tensor:
        """Prompt averages of length 1, float32 [C, D]."""
        summed = (self.embeds * self.mask[..., None]).sum(1)
        return F.normalize(summed / self.mask.sum(1, keepdim=True).clamp(min=1), dim=-1)


def encode_texts(texts: Sequence[Sequence[str]], encoder: TextEncoderConfig) -> TextEmbeddings:
    """Encode the texts of all classes, one or more each; the same texts and files give the same vectors.

    Raises:
        UserError: The encoder is not to be had, damaged, or does not fit its settings.
    """
    tower = load_text_tower(encoder)
    vectors = iter(tower.encode([text for prompts in texts for text in prompts]))
    embeds = torch.zeros(len(texts), max(map(len, texts)), tower.width)
    mask = torch.zeros(embeds.shape[:2], dtype=torch.bool)
    for label, prompts in enumerate(texts):
        for position in range(len(prompts)):
            embeds[label, position], mask[label, position] = next(vectors), True
    return TextEmbeddings(embeds, mask, tower.files.source() + (RANDOM_WEIGHTS if tower.is_untrained else ""))


@dataclass(frozen=True)
class TextTower:
    """A loaded text encoder."""

    files: EncoderFiles
    kind: Kind
    tokenizer: Any
    model: nn.Module
    max_length: int
    """Tokens, special ones included; longer texts are cut."""
    pooling: Pooling
    lower_case: bool
    width: int

    @property
    def is_untrained(self) -> bool:
        """Whether the weights are those of a fresh model: every scale of its norms is still the same number."""
        named = self.model.named_parameters()
        scales = [scale for name, scale in named if name.endswith("weight") and scale.ndim == 1]
        return bool(scales) and all(bool((scale == scale[0]).all()) for scale in scales)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Token ids int64 [N, T] and the mask of real tokens [N, T]; None where the model was trained without one.

        SigLIP has no mask: it was trained on texts padded to full length, sees the padding, and its vector is read
        at the last position, so padding is always to full length and on the right.
        """
        texts = [text.lower() for text in texts] if self.lower_case else list(texts)
        padding: str | bool = "max_length" if self.kind != "other" else self.tokenizer.pad_token is not None
        how = {"padding": padding, "padding_side": "right", "truncation": True, "max_length": self.max_length}
        tokens = self.tokenizer(texts, **how, return_tensors="pt")
        ids: Tensor = tokens["input_ids"]
        if self.kind == "siglip":
            return ids, None
        mask: Tensor = tokens["attention_mask"]
        return ids, mask

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of length 1, float32 [N, D], whatever the other texts are."""
        self._warn_of_cut_texts(texts)
        batch = _BATCH if self.tokenizer.pad_token is not None else 1
        with _quiet_transformers():
            chunks = [self._encode_batch(texts[start : start + batch]) for start in range(0, len(texts), batch)]
        vectors = F.normalize(torch.cat(chunks).float(), dim=-1)
        if not bool(vectors.isfinite().all()) or not bool((vectors.norm(dim=-1) > 0.5).all()):
            raise UserError(
                f"{self.files.folder}: the encoder returned vectors that are not finite or all zero; its weights are "
                "damaged, fetch them again"
            )
        return vectors

    def _encode_batch(self, texts: Sequence[str]) -> Tensor:
        ids, mask = self.tokenize(texts)
        output = self.model(input_ids=ids) if mask is None else self.model(input_ids=ids, attention_mask=mask)
        if self.kind == "clip":
            vectors: Tensor = output.text_embeds
        elif self.kind == "siglip":
            vectors = output.pooler_output
        else:
            states: Tensor = output.last_hidden_state
            vectors = _pool(states, torch.ones_like(ids) if mask is None else mask, self.pooling)
        return vectors

    def _warn_of_cut_texts(self, texts: Sequence[str]) -> None:
        with _quiet_transformers():
            lengths = [len(self.tokenizer(text)["input_ids"]) for text in texts]
        for text, length in zip(texts, lengths, strict=True):
            if length > self.max_length:
                text = f"{text}; shorten it in texts.own"
                log.warning("Text of %d tokens is cut to the encoder's %d: %s", length, self.max_length, text)


def load_text_tower(encoder: TextEncoderConfig) -> TextTower:
    """Find, read and check the text encoder; nothing in its files is executed.

    Raises:
        UserError: It is not to be had, damaged, lacks weights of the text side, or does not fit its settings.
    """
    from transformers import AutoTokenizer

    files = find_encoder(encoder)
    config = _read_config(files)
    kind = _kind(config.model_type)
    if kind == "other" and hasattr(config, "vision_config"):
        raise UserError(
            f"texts.encoder.name: {encoder.name} is a model of texts and images of the type {config.model_type}; of "
            "those, CLIP, SigLIP and SigLIP 2 are supported, besides models of text alone"
        )
    model, tokenizer = _load(files, kind, _text_model_class(config.model_type), AutoTokenizer)
    text_config = getattr(config, "text_config", config)
    sentence = _read_json(files.folder / "sentence_bert_config.json", {}) if kind == "other" else {}
    if kind == "other" and config.is_encoder_decoder:
        model = model.get_encoder()
    return TextTower(
        files=files,
        kind=kind,
        tokenizer=tokenizer,
        model=model.eval().requires_grad_(False),
        max_length=_max_length(encoder, kind, text_config, tokenizer, sentence),
        pooling=_pooling(encoder, files, kind),
        # SigLIP's training texts were lower-cased, but not every tokenizer that is shipped with it does so.
        lower_case=kind == "siglip" or bool(sentence.get("do_lower_case", False)),
        width=int(getattr(text_config, _WIDTHS[kind])),
    )


def is_english_only(encoder: TextEncoderConfig) -> bool:
    """Whether the encoder is known to have learned from English text alone; False where that is not known."""
    if encoder.name == PACKAGED_NAME:
        return True
    config = _read_config(find_encoder(encoder))
    if _kind(config.model_type) == "siglip":
        return bool(getattr(config, "text_config", config).vocab_size == _ENGLISH_SIGLIP_VOCABULARY)
    return _kind(config.model_type) == "clip"


def has_image_tower(encoder: TextEncoderConfig) -> bool:
    """Whether the encoder also encodes images, as CLIP and SigLIP do."""
    return hasattr(_read_config(find_encoder(encoder)), "vision_config")


@torch.no_grad()
def encode_images(images: Iterable[NDArray[np.uint8]], encoder: TextEncoderConfig) -> Tensor:
    """Vectors of images in the space of the texts, for encoders with an image tower: float32 [N, D], of length 1.

    Args:
        images: One or more, RGB [height, width, 3] of any size, such as cropped boxes; taken as they are needed, the
            encoder's own preprocessing is applied.
        encoder: Section `texts.encoder`.
    """
    from transformers import AutoImageProcessor, AutoModel

    files = find_encoder(encoder)
    config = _read_config(files)
    if not hasattr(config, "vision_config"):
        raise UserError(
            f"texts.encoder.name: {encoder.name} encodes text only; comparing texts with image crops needs an encoder "
            "with both towers, such as openai/clip-vit-base-patch32 or google/siglip2-base-patch16-224"
        )
    model, processor = _load(files, _kind(config.model_type), AutoModel, AutoImageProcessor)
    model.eval()
    rest = iter(images)
    with _quiet_transformers():
        chunks = []
        while batch := list(islice(rest, _BATCH)):
            inputs = processor(images=batch, input_data_format="channels_last", return_tensors="pt")
            output = model.get_image_features(**inputs)
            # A tensor in some 5.x versions of transformers, an output with a pooled vector in others.
            chunks.append(output if isinstance(output, Tensor) else output.pooler_output)
    return F.normalize(torch.cat(chunks).float(), dim=-1)


def _read_config(files: EncoderFiles) -> Any:
    # Imported in the functions that need it because it takes seconds, and only the one run of the encoder does.
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # transformers meets a stranger's files here and raises a dozen types; all mean that they are unusable.
        raise load_problem(files, error) from error


_SAFE_LOADING: dict[str, Any] = {
    "local_files_only": True,
    "trust_remote_code": False,
    "weights_only": True,
    "dtype": torch.float32,
}
"""No code from the folder is run: none of its modules is imported, and pickles may hold tensors only."""


def _load(files: EncoderFiles, kind: Kind, model_class: Any, processor_class: Any) -> tuple[Any, Any]:
    """The model, with all its weights, and its tokenizer or image processor."""
    with _quiet_transformers():
        try:
            model, loading = model_class.from_pretrained(files.folder, **_SAFE_LOADING, output_loading_info=True)
            processor = processor_class.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            # As in `_read_config`.
            raise load_problem(files, error) from error
    _require_all_weights(files, kind, loading["missing_keys"])
    return model, processor


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its progress bars and its table of the image tower's weights that a text tower does not take."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _kind(model_type: str) -> Kind:
    if model_type in ("clip", "clip_text_model"):
        return "clip"
    return "siglip" if model_type.startswith("siglip") else "other"


def _text_model_class(model_type: str) -> Any:
    import transformers

    if model_type.startswith("siglip"):
        return transformers.Siglip2TextModel if model_type.startswith("siglip2") else transformers.SiglipTextModel
    return transformers.CLIPTextModelWithProjection if _kind(model_type) == "clip" else transformers.AutoModel


def _require_all_weights(files: EncoderFiles, kind: Kind, missing: Sequence[str]) -> None:
    """What is missing would be random, and nothing would show it but a text head that does not help."""
    # An unused head of BERT's kind, which many checkpoints of sentence encoders leave out.
    needed = sorted(key for key in missing if kind != "other" or not key.startswith("pooler."))
    if needed:
        listed = ", ".join(needed[:5]) + (f" and {len(needed) - 5} more" if len(needed) > 5 else "")
        raise UserError(
            f"{files.folder}: {len(needed)} weights of the encoder are missing in its files ({listed}); they would be "
            f"random. Fetch the whole model {files.name} again"
        )


_WIDTHS: dict[Kind, str] = {"clip": "projection_dim", "siglip": "projection_size", "other": "hidden_size"}


def _max_length(
    encoder: TextEncoderConfig, kind: Kind, text_config: Any, tokenizer: Any, sentence: dict[str, Any]
) -> int:
    positions = int(getattr(text_config, "max_position_embeddings", None) or _LONGEST)
    longest = positions if kind != "other" else min(positions, int(tokenizer.model_max_length))
    if encoder.max_length is not None:
        if encoder.max_length > longest:
            raise UserError(
                f"texts.encoder.max_length: {encoder.max_length} tokens, but {encoder.name} takes at most {longest}; "
                "lower it, or leave it out"
            )
        return encoder.max_length
    stated = sentence.get("max_seq_length")
    return longest if kind != "other" else min(longest, _LONGEST, stated if type(stated) is int else _LONGEST)


def _pooling(encoder: TextEncoderConfig, files: EncoderFiles, kind: Kind) -> Pooling:
    if kind != "other":
        if encoder.pooling != "auto":
            raise UserError(
                f"texts.encoder.pooling: {encoder.pooling}, but {encoder.name} is a CLIP or SigLIP model, which has "
                "its own way; set it to auto, or leave it out"
            )
        return "own"
    return _sentence_pooling(files) if encoder.pooling == "auto" else encoder.pooling


def _pool(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """[N, T, D] and the mask of real tokens [N, T] -> [N, D]."""
    if pooling == "cls":
        return states[:, 0]
    real = mask[..., None].bool()
    if pooling == "max":
        return states.masked_fill(~real, -torch.inf).amax(1)
    return (states * real).sum(1) / real.sum(1)


def _sentence_pooling(files: EncoderFiles) -> Pooling:
    """What the folder's sentence-transformers files ask for; mean where there are none.

    Their Normalize module changes nothing, because all vectors are normalised here.
    """
    modules = _read_json(files.folder / "modules.json", [])
    if not all(isinstance(m, dict) and isinstance(m.get("type"), str) for m in modules):
        raise UserError(f"{files.folder}: modules.json is damaged (a module without a type); fetch the encoder again")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    strange = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    mode = "mean"
    if "Pooling" in kinds:
        folder = str(modules[kinds.index("Pooling")].get("path", ""))
        mode = _pooling_mode(_read_json(files.folder / folder / "config.json", {}))
    if mode not in ("mean", "cls", "max"):
        strange.append(f"Pooling of the mode {mode}")
    if strange:
        raise UserError(
            f"{files.folder}: its sentence-transformers modules ask for {', '.join(strange)}, but only Transformer, "
            "Pooling (mean, cls or max) and Normalize are supported. Choose another encoder, or ignore the modules "
            "with texts.encoder.pooling=mean (or cls)"
        )
    return mode  # type: ignore[return-value]


def _pooling_mode(content: dict[str, Any]) -> str:
    """New files name the mode, old ones have a flag for each."""
    if isinstance(content.get("pooling_mode"), str):
        return str(content["pooling_mode"])
    flags = [key for key, value in content.items() if key.startswith("pooling_mode_") and value is True]
    names = [flag.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for flag in flags]
    return " + ".join(names) or "that its file does not name"


def _read_json(path: Path, default: Any) -> Any:
    """The file's content, of the same type as `default`; that where there is no file."""
    if not path.is_file():
        return default
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); fetch the encoder again") from error
    if not isinstance(content, type(default)):
        raise UserError(f"{path}: is damaged (a {type(content).__name__} at its top); fetch the encoder again")
    return content
