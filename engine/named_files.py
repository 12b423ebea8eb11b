"""Finds the file that a person names, a config or a checkpoint, or says which existing ones are nearest."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from pathlib import Path

from data.errors import UserError

log = logging.getLogger(__name__)

_CONFIGS = Path(__file__).parents[1] / "configs"
_WEIGHTS = (".pth", ".pt", ".safetensors")
_LEAST_LIKENESS = 0.6
_MOST_SHOWN = 8


def did_you_mean(path: Path, existing: Iterable[Path]) -> str:
    """Name the existing files that are called nearly as `path`, best those in a folder of that name; empty: none."""

    def likeness(file: Path) -> float:
        pairs = ((path.stem, file.stem), (path.parent.name, file.parent.name))
        stem, folder = (difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio() for one, other in pairs)
        return stem + 0.3 * folder if stem > _LEAST_LIKENESS else 0.0

    scores = {file: score for file in sorted(set(existing)) if (score := likeness(file))}
    best = max(scores.values(), default=0.0)
    near = [file for file in sorted(scores, key=lambda file: -scores[file]) if scores[file] > best - 0.1][:3]
    return f"did you mean {' or '.join(map(Path.as_posix, near))}?" if near else ""


def config_not_found(path: Path) -> UserError:
    """Describe a config that is no file: its nearest neighbours, or every config where a folder was named."""
    root = Path("configs") if Path("configs").is_dir() else _CONFIGS
    folder = path if path.is_dir() else root
    if path.is_dir() or path.as_posix().lower() in ("config", "configs", "list"):
        files = sorted(folder.glob("*.y*ml")) or sorted(root.glob("*.yml"))
        files += sorted((root / "baselines").glob("*.yml")) if files[0].parent == root else []
        what = f"{path}: is a folder" if path.is_dir() else f"{path}: there is no such config file"
        what += f" (did you mean {path}.yml?)" if path.with_suffix(".yml").is_file() else ""
        return UserError(f"{what}; give one of these with -c:", [f"{f.as_posix()}: {_first_comment(f)}" for f in files])
    near = did_you_mean(path, [*root.rglob("*.yml"), *(path.parent.glob("*.y*ml") if path.parent.is_dir() else ())])
    advice = near or "check the path given with -c"
    return UserError(f"{path}: config file not found; {advice} (`-c config` lists the configs)")


def _first_comment(config: Path) -> str:
    for line in config.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("# ") and "yaml-language-server" not in line:
            return line[2:].strip()
    return "no comment"


def checkpoint_of(path: Path, name: str = "best.pth") -> Path:
    """Return the checkpoint that `path` stands for: itself, or a run folder's `name`, which is said in the log.

    Raises:
        UserError: A run folder without it; says what is there.
    """
    if not path.is_dir() or (path / "model.safetensors").is_file():  # a hub folder
        return path
    if not (path / name).is_file():
        raise checkpoint_not_found(path, name)
    log.info("%s: %s is used", path, path / name)
    return path / name


def checkpoint_not_found(path: Path, name: str = "best.pth", hint: str = "") -> UserError:
    """Describe a checkpoint that is no file, or a run folder without `name`; `hint` where nothing is near."""
    folder = path if path.is_dir() else path.parent
    content = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    weights = [file for file in content if file.endswith(_WEIGHTS)]
    shown = weights or (content if path.is_dir() else [])
    listed = f"{', '.join(shown[:_MOST_SHOWN])}{', ...' if len(shown) > _MOST_SHOWN else ''}"
    holds = f"{folder} holds: {listed}" if shown else ""
    if path.is_dir():
        fix = "Train first, or give another run's folder or its best.pth."
        fix = f"Give one of them: -r {(path / weights[0]).as_posix()}" if weights else fix
        return UserError(f"Checkpoint {path}: it is a folder without {name}; {holds or 'it is empty'}. {fix}")
    trained = list(Path("outputs").glob("*/*.pth"))
    runs = [file.parent for file in trained if file.name == "best.pth"]
    near = did_you_mean(path, [*trained, *runs, *(folder / file for file in weights)])
    near = (f" {holds}." if holds else "") + (f" {near[0].upper()}{near[1:]}" if near else "")
    return UserError(f"Checkpoint {path}: no such file; expected a .pth file of a training run.{near or hint}")
