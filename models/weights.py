"""Weights in: any file's tensors, checked, and put into the network that they fit (docs/deimv2.md, State dict).

Official files fit without renaming. Nothing in a file is ever executed, and nothing it claims is believed beyond its
own size.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from data.errors import UserError
from data.files import file_sha256
from models.baselines import TorchvisionDetector, body_of
from models.config import BaselineConfig, ModelConfig
from models.detector import DEIM
from models.text_fusion import PREFIX as FUSION_PREFIX

log = logging.getLogger(__name__)

# --- reading files ------------------------------------------------------------------------------------------------

# A file may be made to crash or to fill the memory of whoever reads it. What honest files need is far below these.
MAX_JSON_BYTES = 4 * 2**20
_MAX_PICKLE_BYTES = 4 * 2**20
_MAX_ITEMS = 1_000_000
_MAX_DEPTH = 100


class KnownFile(NamedTuple):
    """A published weight file, as seen in one mirror (a later release may differ)."""

    name: str
    sha256: str
    """Its first hexadecimal digits; of the DINOv3 files those that their names state."""
    size_bytes: int | None
    what: str


_RELEASE = "dinov3_vits16{}_pretrain_lvd1689m-{}.pth"
KNOWN_FILES = (
    KnownFile("deimv2_dinov3_s_coco.pth", "9491ab33b68ecfc0e34043ab", 39_537_357, "official DEIMv2-S, COCO"),
    KnownFile("vitt_distill.pt", "2053b865f4e2673fba3f95f7", 21_996_698, "official ViT-Tiny, backbone of DEIMv2-S"),
    KnownFile(
        "vittplus_distill.pt", "470b65d9a7704973ae105057", 38_749_082, "official ViT-Tiny+, backbone of DEIMv2-M"
    ),
    KnownFile(_RELEASE.format("", "08c60483"), "08c60483", None, "DINOv3 ViT-S/16, backbone of DEIMv2-L"),
    KnownFile(_RELEASE.format("plus", "4057cbaa"), "4057cbaa", None, "DINOv3 ViT-S+/16, backbone of DEIMv2-X"),
)


def identify(path: Path, known_files: Sequence[KnownFile] = KNOWN_FILES) -> KnownFile | None:
    """Recognise a published file, byte for byte, under whatever name, and say so in the log.

    A file with a published name but another content gets a warning and None: it may be a newer release, or damaged.
    """
    size = path.stat().st_size
    named = next((known for known in known_files if known.name == path.name), None)
    if named is None and size not in {known.size_bytes for known in known_files}:
        return None  # the hash of a large file takes seconds
    digest = file_sha256(path)
    for known in known_files:
        if known.size_bytes in (None, size) and digest.startswith(known.sha256):
            log.info("%s: is %s (%s), sha256 %s verified", path, known.name, known.what, known.sha256)
            return known
    if named is not None:
        expected = "" if named.size_bytes is None else f"{named.size_bytes:,} bytes, "
        log.warning(
            "%s: is not the %s known here (%s): found %s bytes, sha256 %s, expected %ssha256 %s. It may be a newer "
            "release, or damaged; loading it all the same",
            *(path, named.name, named.what, f"{size:,}", digest[:24], expected, named.sha256),
        )
    return None


def read_weight_file(path: Path, *, what: str = "Weight file") -> object:
    """Read a .safetensors file (name -> tensor) or a .pth/.pt file (plain containers) onto the CPU.

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
            # Not memory-mapped: Windows could not replace the file while it is in use.
            content: object = torch.load(path, map_location="cpu", weights_only=True)
        _check_content(content, path.stat().st_size)
        return content
    except PermissionError as error:
        raise UserError(f"{what} {path}: cannot be read ({error.strerror}); check its permissions.") from error
    except SafetensorError as error:
        raise UserError(f"{what} {path}: damaged or not a safetensors file ({error}); copy it again.") from error
    except Exception as error:
        # The unpickler meets arbitrary bytes here and raises a dozen types; all mean that the file is unusable.
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{what} {path}: it holds a Python object ({refused[1]}), not only weights. Loading that could run "
                "foreign code, so nothing was loaded. Ask its author for a file of plain tensors."
            ) from error
        # The unpickler's own text is long and advises to switch the protection off.
        told = not isinstance(error, pickle.UnpicklingError)
        detail = f" ({(str(error).splitlines() or [''])[0][:160]})" if told else ""
        raise UserError(
            f"{what} {path}: damaged, cut short or not a {what.lower()}{detail}. Copy or download it again, or use an "
            "earlier one."
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Read the texts that a safetensors file carries beside its tensors.

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
    """Parse JSON of somebody else's: neither huge nor deep.

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
    """Check the length of a safetensors file's header; everything else is checked by the library."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_JSON_BYTES:
        raise ValueError(f"a header of {length:,} bytes")


def _check_archive(path: Path) -> None:
    """Check a .pth file's records before any is read: torch compresses none, so all together fit the file's size."""
    if not zipfile.is_zipfile(path):  # torch's format before 1.6
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    size, claimed = path.stat().st_size, sum(record.file_size for record in records)
    if claimed > size:
        raise ValueError(f"a file of {size:,} bytes that unpacks to {claimed:,}")
    pickled = max((record.file_size for record in records if record.filename.endswith("data.pkl")), default=0)
    if pickled > _MAX_PICKLE_BYTES:
        raise ValueError(f"{pickled:,} bytes of names and settings")


def _check_content(content: object, file_bytes: int) -> None:
    """Refuse what a few bytes can stand for: a structure or a tensor without end.

    Raises:
        ValueError: Written out, the content would be far larger than the file.
    """
    items = characters = tensor_bytes = 0
    storages: dict[int, int] = {}
    waiting: list[tuple[object, int]] = [(content, 0)]
    while waiting:
        part, depth = waiting.pop()
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
        waiting.extend((child, depth + 1) for child in children)
        if depth >= _MAX_DEPTH:
            raise ValueError(f"nested more than {_MAX_DEPTH} deep")
        if items + len(waiting) > _MAX_ITEMS or characters > MAX_JSON_BYTES:
            raise ValueError("one part used over and over: written out it would be without end")
    # An alias or two is nothing unusual, but no file holds the same weights many times.
    if sum(storages.values()) > file_bytes or tensor_bytes > 8 * file_bytes:
        raise ValueError(f"tensors of {tensor_bytes:,} bytes in a file of {file_bytes:,}")


def is_state_dict(part: object) -> TypeGuard[dict[str, Tensor]]:
    """Tell whether `part` is a dict of names to tensors and nothing else."""
    return isinstance(part, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in part.items())


def _read_tensors(path: Path) -> dict[str, Tensor]:
    content = read_weight_file(path)
    if not is_state_dict(content):
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: expected a plain state dict (key -> tensor), found {keys}")
    return content


# --- what fits a network -------------------------------------------------------------------------------------------

_ALIASES = (("decoder.up", "decoder.decoder.up"), ("decoder.reg_scale", "decoder.decoder.reg_scale"))
"""One tensor under two names; safetensors files hold only one of them."""
_SIZE_DEPENDENT = ("decoder.anchors", "decoder.valid_mask")
"""Follow from the evaluation size; a file of another size is as good."""
_SCORE_HEADS = {
    "decoder.enc_score_head.weight": 0,
    "detector.roi_heads.box_predictor.cls_score.weight": 1,
    "detector.head.classification_head.cls_logits.weight": 0,
}
"""Whose first size tells the number of classes, plus this many for the background."""
_CLASS_ROWS = (
    (r"decoder\.(?:enc_score_head|dec_score_head\.\d+)\.(?:weight|bias)", 1, 0),
    (r"decoder\.denoising_class_embed\.weight", 1, 0),  # the last row, the padding, is of no class
    (r"text_fusion\.(?:texts\.(?:offsets|embeds|mask)|head\.readouts\.\d+\.linear\.(?:weight|bias))", 1, 0),
    (r"detector\.roi_heads\.box_predictor\.cls_score\.(?:weight|bias)", 1, 1),
    (r"detector\.roi_heads\.box_predictor\.bbox_pred\.(?:weight|bias)", 4, 4),
    (r"detector\.head\.classification_head\.cls_logits\.(?:weight|bias)", 1, 0),
)
"""Tensors with rows of the classes in label order: name, rows per class, rows before the first class (background)."""
_PARTS = {
    "heads": r"decoder\.((enc|dec|pre)_\w+_head|denoising_class_embed)\.|detector\.(rpn|roi_heads|head)\.",
    "backbone": r"backbone\.|detector\.backbone\.body\.",
    "encoder": r"encoder\.|detector\.backbone\.fpn\.",
    "decoder": r"decoder\.",
    "text_fusion": re.escape(FUSION_PREFIX),
}
"""Parts of a detector, by the start of their tensors' names; the first that matches counts."""
_MOST_LISTED = 20
_LEAST_FITTING_SHARE = 0.5


class LoadReport(NamedTuple):
    """What of a file does not fit a model."""

    missing: tuple[str, ...]
    """In the model, not in the file: fresh weights."""
    unexpected: tuple[str, ...]
    """In the file, not in the model: ignored."""
    mismatched: tuple[str, ...]
    """Another shape in the file (another class count, say): fresh weights. "key: found ..., expected ..."."""

    def problems(self) -> list[str]:
        """One line each; long lists are cut."""
        missing = [f"{key}: missing in the file" for key in self.missing]
        return cut([*self.mismatched, *missing, *(f"{key}: not in the model" for key in self.unexpected)])


def weight_problems(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> LoadReport:
    """Compare the names, shapes and kinds of a file's tensors with a network's own."""

    def kind(key: str) -> str:  # the shape, and the type where whole numbers stand for a weight
        whole = own[key].is_floating_point() and not found[key].is_floating_point()
        return f"{str(found[key].dtype).removeprefix('torch.')} " * whole + str(list(found[key].shape))

    expected = {key: str(list(value.shape)) for key, value in own.items()}
    return LoadReport(
        missing=tuple(key for key in own if key not in found),
        unexpected=tuple(key for key in found if key not in own),
        mismatched=tuple(
            f"{key}: found {kind(key)}, expected {shape}"
            for key, shape in expected.items()
            if key in found and kind(key) != shape
        ),
    )


def cut(lines: Sequence[str]) -> list[str]:
    """Return the lines, or the first ones and how many more there are."""
    rest = len(lines) - _MOST_LISTED
    return list(lines) if rest <= 1 else [*lines[:_MOST_LISTED], f"... and {rest} more"]


def completed(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy `state_dict` with the aliases filled and the size-dependent constants made to fit."""
    tensors = dict(state_dict)
    for first, second in _ALIASES:
        for name, other in ((first, second), (second, first)):
            if name not in tensors and other in tensors:
                tensors[name] = tensors[other]
    for name in _SIZE_DEPENDENT:
        if name in own and (name not in tensors or tensors[name].shape != own[name].shape):
            tensors[name] = own[name]
    return tensors


def num_classes_of(state_dict: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes that a detector's weights are for; None for other weights."""
    heads = (name for name in _SCORE_HEADS if name in state_dict and state_dict[name].ndim)
    return next((len(state_dict[name]) - _SCORE_HEADS[name] for name in heads), None)


def has_fusion(state_dict: Mapping[str, Any]) -> bool:
    """Tell whether these are the weights of a detector with text."""
    return any(key.startswith(FUSION_PREFIX) for key in state_dict)


def log_origin(model: nn.Module, loaded: Collection[str], source: object, *, fresh: Collection[str] = ()) -> None:
    """Say in the log which parts of the network come from `source` and which stayed random.

    A part that stays random is a warning, unless it is meant to be `fresh`.
    """

    def part_of(name: str) -> str:
        return next((part for part, pattern in _PARTS.items() if re.match(pattern, name)), "other")

    names = [name for name in model.state_dict() if name not in _SIZE_DEPENDENT]
    total, found = Counter(map(part_of, names)), Counter(part_of(name) for name in names if name in loaded)
    if found:
        parts = (f"{part} ({found[part]} of {total[part]} tensors)" for part in total if found[part])
        log.info("from %s: %s", source, ", ".join(parts))
    random = [part for part in total if found[part] < total[part]]
    if random:
        parts = (f"{part} ({total[part] - found[part]} of {total[part]} tensors)" for part in random)
        level = logging.INFO if set(random) <= set(fresh) else logging.WARNING
        log.log(level, "stays random, being not in %s: %s", source, ", ".join(parts))


# --- detectors -----------------------------------------------------------------------------------------------------


def load_state_dict_strict(model: nn.Module, state_dict: Mapping[str, Tensor], source: Path | None = None) -> None:
    """Load a detector's weights; every key and shape must fit.

    Two liberties, both harmless: one of two alias names may be missing, and `decoder.anchors` and `decoder.valid_mask`
    may be missing or of another evaluation size (the model's own are right then). Stored constants, such as the RoPE
    periods, are taken over as they are.

    Raises:
        UserError: Keys are missing or unknown, or shapes differ (names them, and `source` if given).
    """
    model.load_state_dict(_fitting(model.state_dict(), state_dict, source))


def load_phase_1(model: nn.Module, state_dict: Mapping[str, Tensor], source: Path | None = None) -> None:
    """Load phase 1's weights into a detector with text fusion, whose own parts keep their fresh weights.

    Raises:
        UserError: As `load_state_dict_strict`, for everything else.
    """
    shared = {key: value for key, value in model.state_dict().items() if not key.startswith(FUSION_PREFIX)}
    model.load_state_dict(_fitting(shared, state_dict, source), strict=False)
    log_origin(model, shared, source, fresh=[FUSION_PREFIX.rstrip(".")])


def _fitting(own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], source: Path | None) -> dict[str, Tensor]:
    """Complete `state_dict`, or explain why it is not one of the network."""
    tensors = completed(state_dict, own)
    problems = weight_problems(own, tensors).problems()
    if not problems:
        return tensors
    hint, ours, theirs = "", num_classes_of(own), num_classes_of(tensors)
    if None not in (ours, theirs) and ours != theirs:
        hint += (
            f" The weights are for {theirs} classes, the config says num_classes {ours}; to train with other classes "
            "start from them with -t."
        )
    if has_fusion(own) and not has_fusion(tensors):
        hint += (
            " The config asks for text fusion (MultimodalFusion), the weights are of phase 1, without text; "
            "train_deimv2_multimodal.py -r starts phase 2 from them."
        )
    if has_fusion(tensors) and not has_fusion(own):
        hint += " The weights have text fusion, the config has not (MultimodalFusion)."
    raise UserError(
        f"{source or 'state dict'}: these are not the weights of the configured model.{hint} "
        "Use the config that the weights were trained with.",
        problems,
    )


def load_for_tuning(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    class_rows: Mapping[int, int] | None = None,
    source: object = "the file",
) -> LoadReport:
    """Copy what fits, by name and shape; the rest keeps its fresh weights and is told in the log, key by key.

    Args:
        class_rows: Label of the model -> label of the file: these classes' rows are copied, those of other labels start
            fresh, whatever the file's class count. None: heads are copied whole where the shapes fit.

    Raises:
        UserError: Less than half of the model would be filled: these are another model's weights.
    """
    own = model.state_dict()
    tensors = completed(state_dict, own)
    if class_rows is not None:
        tensors |= _rows_by_class(own, tensors, class_rows)
    report = weight_problems(own, tensors)
    strange = {line.partition(":")[0] for line in report.mismatched}
    fitting = {key: value for key, value in tensors.items() if key in own and key not in strange}
    filled = sum(value.numel() for value in fitting.values()) / sum(value.numel() for value in own.values())
    if filled < _LEAST_FITTING_SHARE:
        raise UserError(
            f"{source}: these weights fill only {filled:.0%} of the configured model, so they belong to another one. "
            "Use weights of the same model size (a different number of classes is fine).",
            report.problems(),
        )
    model.load_state_dict(fitting, strict=False)
    log_origin(model, fitting, source)
    if any(report):
        log.warning("%s: loaded all weights except these", source)
    else:
        fresh = 0 if class_rows is None else (num_classes_of(own) or 0) - len(class_rows)
        but = f", but for the rows of {fresh} classes" if fresh else ""
        log.info("%s: every weight of the model was loaded%s", source, but)
    for text, keys in (
        ("other shape, starts fresh", report.mismatched),
        ("not in the file, starts fresh", report.missing),
        ("not in the model, ignored", report.unexpected),
    ):
        for key in cut(keys):
            log.warning("  %s: %s", text, key)
    return report


def _rows_by_class(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor], class_rows: Mapping[int, int]
) -> dict[str, Tensor]:
    """Fill the chosen classes' rows of the model's per-class tensors from the file's."""
    mapped = {}
    for key, value in own.items():
        for pattern, count, first in _CLASS_ROWS:
            if not re.fullmatch(pattern, key) or key not in found or found[key].shape[1:] != value.shape[1:]:
                continue
            mapped[key] = value.clone()
            mapped[key][:first] = found[key][:first].to(value)
            for ours, theirs in class_rows.items():
                rows = found[key][first + theirs * count :][:count].to(value)
                if len(rows) == count:
                    mapped[key][first + ours * count :][:count] = rows
    return mapped


# --- backbones -----------------------------------------------------------------------------------------------------

_DEIM_TABLE = "see the table of backbone checkpoints in https://github.com/Intellindust-AI-Lab/DEIMv2"
_DINOV3 = "part of the DINOv3 release (on request, DINOv3 licence), https://github.com/facebookresearch/dinov3"
_SOURCES = {
    "vit_tiny": f"vitt_distill.pt: {_DEIM_TABLE}",
    "vit_tinyplus": f"vittplus_distill.pt: {_DEIM_TABLE}",
    "dinov3_vits16": f"dinov3_vits16_pretrain_lvd1689m-08c60483.pth: {_DINOV3}",
    "dinov3_vits16plus": f"dinov3_vits16plus_pretrain_lvd1689m-4057cbaa.pth: {_DINOV3}",
    "vit_custom": "there is no official file for a ViT of your own size",
}

# DINOv3 in `transformers`' layout
_RENAMED = (
    (r"^(?:model\.)?layer\.", "blocks."),
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.register_tokens$", "storage_tokens"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
)
_PLAIN_FFN = {"up_proj": "fc1", "down_proj": "fc2"}
_GATED_FFN = {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"}
_QKV = re.compile(r"(.*)\.attention\.([qkv])_proj\.(weight|bias)$")
_FFN = re.compile(r"(.*\.mlp)\.(\w+_proj)\.(weight|bias)$")


def load_backbone_weights(model: nn.Module, config: ModelConfig) -> None:
    """Load the backbone's own weights, if the config names any; null leaves random ones.

    DEIMv2's ViT: a file of a bare state dict, of which every key must fit. A baseline's CNN: torchvision's ImageNet
    weights, downloaded once by torchvision, or a file of the same.

    Raises:
        UserError: The file is missing and cannot be downloaded, is damaged or hostile, or another network's.
    """
    if config.Baseline is not None:
        assert isinstance(model, TorchvisionDetector)
        _load_imagenet_weights(model.body, config.Baseline)
        return
    backbone = config.deimv2.backbone
    path = backbone.weights_path
    if path is None:
        return
    if not path.is_file():
        raise UserError(
            f"DINOv3STAs.weights_path: there is no file {path} (looked in {Path.cwd()}). Get it ("
            f"{_SOURCES[backbone.name]}) and put it there, or start from random weights with "
            "`DINOv3STAs.weights_path: null`, which needs many more images and epochs."
        )
    load_vit(model, config, _read_tensors(path), f"DINOv3STAs.weights_path: {path}")


def is_vit(state_dict: Mapping[str, object]) -> bool:
    """Tell whether these are a bare ViT's weights, such as `vitt_distill.pt`, and no detector's."""
    original = "cls_token" in state_dict and "patch_embed.proj.weight" in state_dict
    return original or _is_transformers_layout(state_dict)


def _is_transformers_layout(tensors: Mapping[str, object]) -> bool:
    return "embeddings.cls_token" in tensors and "embeddings.patch_embeddings.weight" in tensors


def load_vit(model: nn.Module, config: ModelConfig, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load a bare ViT's weights into the backbone; every key must fit, in the names of DINOv3 or of `transformers`.

    Raises:
        UserError: `model` is a baseline, or the weights are another network's.
    """
    if not isinstance(model, DEIM):
        raise UserError(f"{source} is the backbone of a DEIMv2, the config describes a baseline (section Baseline).")
    name, vit = config.deimv2.backbone.name, model.backbone.vit
    try:
        if _is_transformers_layout(tensors):
            tensors = original_names(tensors, vit.state_dict())
        problems = weight_problems(vit.state_dict(), tensors).problems()
    except RuntimeError as error:  # q, k and v of shapes that do not go together
        problems = [str(error)]
    if problems:
        raise UserError(
            f"{source} does not hold the weights of `{name}` as configured. Expected: {_SOURCES[name]}.", problems
        )
    vit.load_state_dict(tensors)
    prefix = next(name for name, module in model.named_modules() if module is vit)
    log_origin(model, {f"{prefix}.{key}" for key in tensors}, source.rstrip(":"), fresh=_PARTS)


def original_names(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give DINOv3's weights of `transformers` their original names: q, k and v in one matrix.

    Unknown names stay, so that the caller can refuse them; constants that `transformers` does not store are `own`'s.
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


def _load_imagenet_weights(body: nn.Module, config: BaselineConfig) -> None:
    """Load those layers of a classification network that `body` has; its classifier is left out."""
    if config.weights is None:
        return
    weights, prefix = body_of(config).weights, body_of(config).prefix
    file_name = Path(weights.url).name
    if isinstance(config.weights, Path):
        source: object = config.weights
        if not config.weights.is_file():
            raise UserError(
                f"Baseline.weights: there is no file {config.weights} (looked in {Path.cwd()}). Get {weights.url} and "
                "put it there, or have torchvision get it with `Baseline.weights: IMAGENET1K_V1`, or start from "
                "random weights with `Baseline.weights: null`."
            )
        tensors = _read_tensors(config.weights)
    else:
        source = Path(torch.hub.get_dir(), "checkpoints", file_name)
        tensors = _read_tensors(source) if source.is_file() else _download(weights, source)
    own = body.state_dict()
    found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    # Files from before PyTorch 0.4.1 do not count BatchNorm's batches; the count is not used.
    chosen = {key: found.get(key, own[key]) for key in own if key in found or key.endswith("num_batches_tracked")}
    problems = weight_problems(own, chosen).problems()
    if problems:
        raise UserError(
            f"Baseline.weights: {source} does not hold the weights of the backbone of `{config.name}`. Expected: "
            f"torchvision's {file_name}, {weights.url}.",
            problems,
        )
    body.load_state_dict(chosen)


def _download(weights: Any, target: Path) -> dict[str, Tensor]:
    """Fetch ImageNet weights as torchvision does; the file stays at `target` for the next time."""
    log.info("downloading %s to %s", weights.url, target)
    try:
        state: dict[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError, HTTPException) as error:  # no network, no space, or a broken transfer
        raise UserError(
            f"Baseline.weights: {weights} could not be downloaded from {weights.url} ({error}). Without a network, "
            f"get {target.name} on another machine and put it into the folder {target.parent}, or give its path: "
            f"-u Baseline.weights=PATH/{target.name}. `Baseline.weights: null` starts from random weights."
        ) from error
    return state
