"""What to look at: files, folders, patterns, videos, cameras."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError
from data.images import IMAGE_SUFFIXES

VIDEO_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in ("mp4", "avi", "mov", "mkv", "m4v", "wmv", "mpg", "mpeg", "webm", "flv", "ogv", "mts", "m2ts", "3gp")
)


@dataclass(frozen=True)
class ImageSource:
    """One image file."""

    path: Path
    name: str
    """Path below the folder it was found in, or as given where another one has the same; with forward slashes, for the
    tables."""
    stem: str
    """Path of its results below the output folder, without suffix; no two images share one."""


@dataclass(frozen=True)
class VideoSource:
    """A video file, or a camera."""

    source: Path | int
    name: str
    stem: str

    @property
    def is_camera(self) -> bool:
        """Has no end of its own."""
        return isinstance(self.source, int)


@dataclass(frozen=True)
class Sources:
    """Everything to look at, in the order given; a file that comes twice is taken once."""

    images: tuple[ImageSource, ...]
    videos: tuple[VideoSource, ...]


def find_sources(arguments: Sequence[str], *, recursive: bool = False, exclude: Path | None = None) -> Sources:
    """Resolve the arguments of the command line.

    A folder gives its images and videos, known by their suffix; a file that is named is taken whatever its suffix is; a
    pattern (`*`, `?`, `[...]`, `**`) is resolved here too, since not every shell does it; a whole number that
    names no file is a camera.

    Args:
        arguments: In the order given.
        recursive: Look into the folders' folders.
        exclude: A folder to pass over: the output's.

    Raises:
        UserError: Arguments that lead nowhere, all of them.
    """
    found: list[tuple[Path, str]] = []
    cameras: list[int] = []
    problems: list[str] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = _files_of(path, recursive, exclude)
            found += [(file, file.relative_to(path).as_posix()) for file in files]
            if not files:
                deeper = "" if recursive else "; --recursive looks into its folders too"
                problems.append(f"{argument}: no image or video in this folder{deeper}")
        elif path.exists():
            found.append((path, path.name))
        elif argument.isdecimal():
            cameras.append(int(argument))
        elif glob.has_magic(argument):
            matches = sorted(Path(match) for match in glob.glob(argument, recursive=True))
            files = [match for match in matches if match.is_file() and _kind(match) is not None]
            found += [(file, file.name) for file in files]
            if not files:
                problems.append(f"{argument}: no image or video matches this pattern")
        else:
            problems.append(f"{argument}: no such file or folder")
    if problems:
        raise UserError("There is nothing to look at:", problems)
    return _named(found, cameras)


def _kind(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if path.name.startswith("."):  # also the shadow files ._NAME of a Mac
        return None
    return "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None


def _files_of(folder: Path, recursive: bool, exclude: Path | None) -> list[Path]:
    excluded = None if exclude is None else exclude.resolve()
    files: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if recursive and Path(root, name).resolve() != excluded)
        files += [path for path in sorted(Path(root, name) for name in names) if _kind(path) is not None]
    return files


def _named(found: Iterable[tuple[Path, str]], cameras: Iterable[int]) -> Sources:
    images: list[ImageSource] = []
    videos: list[VideoSource] = []
    once: dict[Path, tuple[Path, str]] = {}
    for path, name in found:
        once.setdefault(path.resolve(), (path, name))
    uses = Counter(name for _, name in once.values())
    stems: set[str] = set()
    for path, name in once.values():
        unique = name if uses[name] == 1 else path.as_posix()
        stem = _free_stem(name, stems)
        if _kind(path) == "video":
            videos.append(VideoSource(path, unique, stem))
        else:
            images.append(ImageSource(path, unique, stem))
    for camera in dict.fromkeys(cameras):
        videos.append(VideoSource(camera, f"camera {camera}", _free_stem(f"camera_{camera}", stems)))
    return Sources(tuple(images), tuple(videos))


def _free_stem(name: str, taken: set[str]) -> str:
    """`a/b.png` -> `a/b`, or `a/b_png`, `a/b_png_2`, ... where that is taken, in any case of letters: Windows."""
    path = Path(name)
    stem = path.with_suffix("").as_posix() if path.suffix else name
    plain = f"{stem}_{path.suffix[1:]}" if path.suffix else stem
    candidate, number = stem, 1
    while candidate.casefold() in taken:
        candidate = plain if number == 1 and plain != stem else f"{plain}_{number}"
        number += 1
    taken.add(candidate.casefold())
    return candidate
