"""The one reader of weight files: nothing in them is executed, and the official ones are recognised.

DINOv3's ViTs as `transformers` stores them on the Hugging Face hub get the names of the original release.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from data.errors import UserError

log = logging.getLogger(__name__)

# A file may be made to crash or to fill the memory of whoever reads it. What honest files need is far below these.
MAX_JSON_BYTES = 4 * 2**20
_MAX_PICKLE_BYTES = 4 * 2**20
_MAX_ITEMS = 1_000_000
_MAX_DEPTH = 100


# DINOv3 in `transformers`' layout
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


@dataclass(frozen=True)
class KnownFile:
    """A published weight file, as seen in one mirror (a later release may differ)."""

    name: str
    sha256: str
    """Hexadecimal; of the DINOv3 files only the start, which their names state."""
    size_bytes: int | None
    what: str


KNOWN_FILES = (
    KnownFile(
        "deimv2_dinov3_s_coco.pth",
        "9491ab33b68ecfc0e34043abb3009599ab1e892fb953a1faad12ef4fca5a35c4",
        39_537_357,
        "official DEIMv2-S, COCO",
    ),
    KnownFile(
        "vitt_distill.pt",
        "2053b865f4e2673fba3f95f7e7e54ad5ee18143885e3ad27eaabb5b3b9919738",
        21_996_698,
        "official ViT-Tiny distilled from DINOv3, backbone of DEIMv2-S",
    ),
    KnownFile(
        "vittplus_distill.pt",
        "470b65d9a7704973ae105057f7ec7a4c85f853bc379a7bfbcc49ecc80a17e25b",
        38_749_082,
        "official ViT-Tiny+ distilled from DINOv3, backbone of DEIMv2-M",
    ),
    KnownFile(
        "dinov3_vits16_pretrain_lvd1689m-08c60483.pth",
        "08c60483",
        None,
        "DINOv3 ViT-S/16, backbone of DEIMv2-L",
    ),
    KnownFile(
        "dinov3_vits16plus_pretrain_lvd1689m-4057cbaa.pth",
        "4057cbaa",
        None,
        "DINOv3 ViT-S+/16, backbone of DEIMv2-X",
    ),
)


def identify(path: Path, known_files: tuple[KnownFile, ...] = KNOWN_FILES) -> KnownFile | None:
    """The published file that `path` is, byte for byte, under whatever name; says so in the log.

    A file with a published name but another content gets a warning and None: it may be a newer release, or damaged.
    """
    size = path.stat().st_size
    named = next((known for known in known_files if known.name == path.name), None)
    if named is None and size not in {known.size_bytes for known in known_files}:
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for known in known_files:
        if known.size_bytes in (None, size) and digest.startswith(known.sha256):
            log.info("%s: is %s (%s), sha256 %s verified", path, known.name, known.what, known.sha256[:12])
            return known
    if named is not None:
        expected = "" if named.size_bytes is None else f"{named.size_bytes:,} bytes, "
        log.warning(
            "%s: is not the %s known here (%s): found %s bytes, sha256 %s, expected %ssha256 %s. It may be a newer "
            "release, or damaged; loading it all the same",
            path,
            named.name,
            named.what,
            f"{size:,}",
            digest[:16],
            expected,
            named.sha256[:16],
        )
    return None


def read_weight_file(path: Path, *, what: str = "Weight file") -> object:
    """The content of a .safetensors file (name -> tensor) or of a .pth/.pt file (plain containers), on the CPU.

    Nothing in the file is executed (`weights_only`), and nothing that it claims is believed beyond its own size. A .pth
    file is not memory-mapped: Windows could not replace it while it is in use.

    Args:
        path: An existing file.
        what: How messages call it.

    Raises:
        UserError: It cannot be read, is damaged, or holds more than data.
    """
    try:
        identify(path)
        if path.suffix == ".safetensors":
            _check_header(path)
            return load_file(path)
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of files that are refused anyway
            content: object = torch.load(path, map_location="cpu", weights_only=True)
        _check_content(content, path.stat().st_size)
        return content
    except PermissionError as error:
        raise UserError(f"{what} {path}: cannot be read ({error.strerror}); check its permissions.") from error
    except SafetensorError as error:
        raise UserError(f"{what} {path}: damaged or not a safetensors file ({error}); copy it again.") from error
    except Exception as error:
        # The unpickler meets arbitrary bytes here and raises a dozen types; all mean that the file is unusable.
        raise UserError(_unreadable_message(path, error, what)) from error


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors.

    Raises:
        UserError: It is damaged.
    """
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"Weight file {path}: damaged or not a safetensors file ({error}); copy it again.") from error


def parse_json(text: str | bytes) -> Any:
    """JSON of somebody else's: neither huge nor deep.

    Raises:
        ValueError: It is, or it is no JSON.
    """
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"{len(text):,} bytes of JSON, at most {MAX_JSON_BYTES:,} are read")
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check_content(content, len(text))
    return content


def _check_header(path: Path) -> None:
    """The length of a safetensors file's header; everything else is checked by the library."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_JSON_BYTES:
        raise ValueError(f"a header of {length:,} bytes")


def _check_archive(path: Path) -> None:
    """A .pth file's records, before any is read: torch compresses none, so together they are no larger than the file.

    Files of torch's format before 1.6 are no archives.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    size = path.stat().st_size
    claimed = sum(record.file_size for record in records)
    if claimed > size:
        raise ValueError(f"a file of {size:,} bytes that unpacks to {claimed:,}")
    pickled = max((record.file_size for record in records if record.filename.endswith("data.pkl")), default=0)
    if pickled > _MAX_PICKLE_BYTES:
        raise ValueError(f"{pickled:,} bytes of names and settings")


def _check_content(content: object, file_bytes: int) -> None:
    """Containers and tensors as they may be used: a few bytes can stand for a structure or a tensor without end.

    Raises:
        ValueError: Written out, the content would be far larger than the file.
    """
    items = characters = tensor_bytes = 0
    storages: dict[int, int] = {}
    level: list[object] = [content]
    for _ in range(_MAX_DEPTH):
        below: list[object] = []
        for part in level:
            children: Iterable[object] = ()
            if isinstance(part, Tensor):
                odd = part.is_quantized or part.is_nested or part.is_complex()
                if odd or part.layout != torch.strided or part.device.type != "cpu":
                    raise ValueError(f"a tensor that is {part.layout}, {part.dtype}, on {part.device.type}")
                tensor_bytes += part.nbytes
                storages[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
            elif isinstance(part, Mapping):
                children = [*part.keys(), *part.values()]
            elif isinstance(part, (list, tuple, set, frozenset)):
                children = part
            elif isinstance(part, (str, bytes, bytearray)):
                characters += len(part)
            items += 1
            below.extend(children)
            if items + len(below) > _MAX_ITEMS or characters > MAX_JSON_BYTES:
                raise ValueError("one part used over and over: written out it would be without end")
        level = below
        if not level:
            break
    else:
        raise ValueError(f"nested more than {_MAX_DEPTH} deep")
    # An alias or two is nothing unusual, but no file holds the same weights many times.
    if sum(storages.values()) > file_bytes or tensor_bytes > 8 * file_bytes:
        raise ValueError(f"tensors of {tensor_bytes:,} bytes in a file of {file_bytes:,}")


def is_state_dict(part: object) -> bool:
    """Whether `part` is a dict of names to tensors and nothing else."""
    return isinstance(part, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in part.items()
    )


def _unreadable_message(path: Path, error: Exception, what: str) -> str:
    text = str(error)
    refused = re.search(r"GLOBAL (\S+)", text)
    if refused:
        return (
            f"{what} {path}: it holds a Python object ({refused[1]}), not only weights. Loading that could run "
            "foreign code, so nothing was loaded. Ask its author for a file of plain tensors."
        )
    # The unpickler's own text is long and advises to switch the protection off.
    detail = "" if isinstance(error, pickle.UnpicklingError) else f" ({(text.splitlines() or [''])[0][:160]})"
    return (
        f"{what} {path}: damaged, cut short or not a {what.lower()}{detail}. "
        "Copy or download it again, or use an earlier one."
    )


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
