"""Find what to look at: files, folders, patterns, videos, cameras, streams."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from data.errors import UNPRINTABLE, UserError, printable
from data.images import IMAGE_SUFFIXES, is_image
from deploy.video import count_frames

VIDEO_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in ("mp4", "avi", "mov", "mkv", "m4v", "wmv", "mpg", "mpeg", "webm", "flv", "ogv", "mts", "m2ts", "3gp")
)
_STREAM = re.compile(r"(rtsps?|rtmps?|https?|udp|rtp|srt)://", re.IGNORECASE)
_RESULTS = (".jpg", ".png", ".txt", ".csv", ".mp4", ".avi")
"""What results end with: a folder of results does not."""
_LONGEST_NAME_BYTES = 200
"""Of a part of a path, out of 255: room for what results add."""
_RESERVED = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))]
)


class ImageSource(NamedTuple):
    """One image file, or a page of one."""

    path: Path
    name: str
    """Path below the folder it was found in, or as given where another one has the same; with forward slashes, for the
    tables; what is no printable character is escaped."""
    stem: str
    """Path of its results below the output folder, without suffix; no two images share one."""

    def page(self, number: int, taken: set[str]) -> ImageSource:
        """Return the source of its page `number`, from 1: `a.tif` and then `a_p2.tif`; see `Sources.stems`."""
        if number == 1:
            return self
        suffix = Path(self.name).suffix
        stem = _free_stem(f"{self.stem}_p{number}{suffix}", taken)
        return ImageSource(self.path, Path(self.name).with_name(f"{Path(stem).name}{suffix}").as_posix(), stem)


class VideoSource(NamedTuple):
    """A video file, a camera (its number) or a stream (its address)."""

    source: Path | int | str
    name: str
    """Of an address without user, password and query."""
    stem: str

    @property
    def is_live(self) -> bool:
        """Whether it has no end of its own."""
        return not isinstance(self.source, Path)


class Sources(NamedTuple):
    """Everything to look at, in the order given; a file that comes twice is taken once."""

    images: list[ImageSource]
    videos: list[VideoSource]
    skipped: list[str]
    """What has the name of an image but cannot be looked into, with the reason."""
    stems: set[str]
    """Stems in use, without regard to case."""


def find_sources(arguments: Sequence[str], *, recursive: bool = False, exclude: Path | None = None) -> Sources:
    """Resolve the arguments of the command line.

    A folder gives its images and videos, known by their suffix; a file that is named is taken whatever its suffix is; a
    pattern (`*`, `?`, `[...]`, `**`) is resolved here too, since not every shell does it; a whole number that names no
    file is a camera, `rtsp://...` and the like a stream. Pipes and devices are skipped: they might never end.

    The folder `exclude`, the output's, is passed over.

    Raises:
        UserError: Arguments that lead nowhere, all of them.
    """
    named: list[tuple[Path, str]] = []
    live: list[int | str] = []
    skipped: list[str] = []
    problems: list[str] = []
    for argument in arguments:
        path = Path(argument)
        if os.path.isdir(path):
            files = _regular(_files_of(path, recursive, exclude, skipped), skipped)
            named += [(file, file.relative_to(path).as_posix()) for file in files]
            nothing = "in this folder" + ("" if recursive else "; --recursive looks into its folders too")
        elif os.path.exists(path):
            named += [(file, file.name) for file in _regular([path], skipped)]
            continue
        elif argument.isdecimal() or _STREAM.match(argument):
            live.append(int(argument) if argument.isdecimal() else argument)
            continue
        elif glob.has_magic(argument):
            files = _regular(_matches(argument), skipped)
            named += [(file, file.name) for file in files]
            nothing = "matches this pattern"
        else:
            problems.append(f"{argument}: no such file or folder")
            continue
        if not files:
            problems.append(f"{argument}: no image or video {nothing}")
    if problems or not (named or live):
        raise UserError("There is nothing to look at:", [*problems, *skipped])
    return _told_apart(named, live, skipped)


def _matches(pattern: str) -> list[Path]:
    """Images and videos; folders that exist under the name in the pattern are meant, not what brackets may mean."""
    parts, depth = Path(pattern).parts, 0
    while os.path.isdir(Path(*parts[: depth + 1])):
        depth += 1
    literal, rest = Path(*parts[:depth]), "/".join(parts[depth:])
    for meaning in (rest, rest.replace("[", "[[]")):
        names = sorted(glob.glob(meaning, root_dir=literal, recursive=True))
        matches = [literal / name for name in names if _kind(literal / name)]
        if matches:
            return matches
    return []


def _files_of(folder: Path, recursive: bool, exclude: Path | None, skipped: list[str]) -> Iterator[Path]:
    """Images and videos of a folder, by their names."""
    excluded = None if exclude is None else exclude.resolve()

    def unreadable(error: OSError) -> None:
        skipped.append(printable(f"{error.filename}: the folder cannot be read ({error.strerror})"))

    for root, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if recursive and Path(root, name).resolve() != excluded)
        yield from (path for path in (Path(root, name) for name in sorted(names)) if _kind(path))


def _regular(paths: Iterable[Path], skipped: list[str]) -> list[Path]:
    """Those that are files; the others are noted, never opened."""
    kept = []
    for path in paths:
        if os.path.isfile(path):
            kept.append(path)
        elif not os.path.isdir(path):
            what = "a pipe, a socket or a device" if os.path.exists(path) else "a link that leads nowhere"
            hint = "; a camera is given by its number, e.g. 0" if "video" in path.name else ""
            skipped.append(printable(f"{path}: skipped, it is {what}, not a file{hint}"))
    return kept


def _kind(path: Path) -> Literal["image", "video", ""]:
    suffix = path.suffix.lower()
    if path.name.startswith("."):  # also the shadow files ._NAME of a Mac
        return ""
    return "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else ""


def _told_apart(named: Iterable[tuple[Path, str]], live: Iterable[int | str], skipped: list[str]) -> Sources:
    """Give each file its name in the tables and its results' path."""
    found = Sources([], [], skipped, set())
    once: dict[Path, tuple[Path, str]] = {}
    for path, name in named:
        once.setdefault(path.resolve(), (path, name))
    uses = Counter(name for _, name in once.values())
    for path, name in once.values():
        unique, stem = printable(name if uses[name] == 1 else path.as_posix()), _free_stem(name, found.stems)
        if _kind(path) == "video" or (not path.suffix and not is_image(path) and count_frames(path)):
            found.videos.append(VideoSource(path, unique, stem))
        else:
            found.images.append(ImageSource(path, unique, stem))
    for source in dict.fromkeys(live):
        name = _address(source) if isinstance(source, str) else f"camera {source}"
        stem = re.sub(r"[^\w-]+", "_", name.partition("://")[2] or name)
        found.videos.append(VideoSource(source, name, _free_stem(stem, found.stems)))
    return found


def _address(url: str) -> str:
    """Without user, password and query: they have no business in tables and logs."""
    parts = urlsplit(url)
    return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")


def _free_stem(name: str, taken: set[str]) -> str:
    """`a/b.png` -> `a/b`, or `a/b_png`, `a/b_png_2`, ... where that is taken, in any case of letters: Windows."""
    path = Path(name)
    folders = [f"{safe_part(part)}{'_' * part.lower().endswith(_RESULTS)}" for part in path.parts[:-1]]
    stem = "/".join([*folders, safe_part(path.stem)])
    plain = f"{stem}_{safe_part(path.suffix[1:20])}" if path.suffix else stem
    candidate, number = stem, 1
    while candidate.casefold() in taken:
        candidate = plain if number == 1 and plain != stem else f"{plain}_{number}"
        number += 1
    taken.add(candidate.casefold())
    return candidate


def safe_name(name: str) -> str:
    """A class name as a folder's name on any system."""
    cleaned = safe_part(re.sub(r'[<>:"/\\|?*]', "_", name)).strip(" .") or "_"
    return f"{cleaned}_" if cleaned.split(".")[0].casefold() in _RESERVED else cleaned


def safe_part(name: str) -> str:
    """A part of a path that every system and every program can open."""
    return UNPRINTABLE.sub("_", name).encode()[:_LONGEST_NAME_BYTES].decode(errors="ignore")
