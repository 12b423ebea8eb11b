"""DINOv3's ViTs as `transformers` stores them on the Hugging Face hub, under the names of the original release."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_RENAMED = (
    (r"^(?:model\.)?layer\.", "blocks."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.register_tokens$", "storage_tokens"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
)
_PLAIN_FFN = {"up_proj": "fc1", "down_proj": "fc2"}
_GATED_FFN = {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"}
_QKV = re.compile(r"(.*)\.attention\.([qkv])_proj\.(weight|bias)$")
_FFN = re.compile(r"(.*\.mlp)\.(\w+_proj)\.(weight|bias)$")


def is_transformers_layout(tensors: Mapping[str, object]) -> bool:
    """Whether these names are those of `transformers`' DINOv3 ViT."""
    return "embeddings.cls_token" in tensors and "embeddings.patch_embeddings.weight" in tensors


def original_names(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the original names: q, k and v in one matrix, constants added.

    Args:
        tensors: As in the file. Names that are not known stay, so that the caller can refuse them.
        own: State dict of the network they are for; gives the constants that `transformers` does not store.
    """
    ffn_names = _GATED_FFN if any(".gate_proj." in key for key in tensors) else _PLAIN_FFN
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        if match := _QKV.match(key):
            parts.setdefault(f"{match[1]}.attn.qkv.{match[3]}", {})[match[2]] = value
        elif match := _FFN.match(key):
            renamed[f"{match[1]}.{ffn_names.get(match[2], match[2])}.{match[3]}"] = value
        else:
            renamed[key] = value.reshape(own[key].shape) if key == "mask_token" and key in own else value
    for key, by_letter in parts.items():
        # DINOv3's keys have no bias, which the original stores as a mask over one.
        filled = [by_letter.get(letter, torch.zeros_like(by_letter["q"])) for letter in "qkv" if "q" in by_letter]
        renamed[key] = torch.cat(filled or list(by_letter.values()))
    constants = {key: value for key, value in own.items() if key.endswith((".bias_mask", "rope_embed.periods"))}
    return constants | renamed
