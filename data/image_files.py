"""Do the image files of a split exist, inside the image folder? Folders are listed, no file is opened."""

from __future__ import annotations

import os
import posixpath
import stat
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

from data.names import composed, name_key
from data.problems import Problem, Severity, shorten


def require_regular_file(path: Path) -> None:
    """Refuse what would block or never end when it is read: named pipes, devices, sockets.

    Raises:
        OSError: It is one of them, or there is nothing.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is no ordinary file (a folder, named pipe or device)")


def check_image_files(file: str, img_folder: Path, images: Iterable[tuple[int, str]]) -> list[Problem]:
    """Check that every image is a file below the image folder, under exactly the name the annotations give.

    `images` are ids and file names, `file` is the annotation file, for the messages.
    """
    if not os.path.isdir(img_folder):
        found = "is a file, expected a folder" if os.path.exists(img_folder) else "does not exist"
        fix = "Correct img_folder in the config"
        return [Problem("error", file, f"image folder {img_folder}", found, fix, kind="image folder")]
    finder = ImageFolder(img_folder)
    problems = []
    for image_id, name in images:
        if fault := finder.fault(name):
            where, bad = f"image {image_id} ({shorten(name)})", image_id if fault[3] == "error" else None
            problems.append(Problem(fault[3], file, where, *fault[:3], skippable=True, bad_image_id=bad))
    return problems


_Fault = tuple[str, str, str, Severity]
"""What was found, the fix, the kind."""


class ImageFolder:
    """Looks files up in folder listings, each read once: asking per image would be slow on a network."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._real_folder = Path(os.path.realpath(folder))
        self._listings: dict[str, dict[str, tuple[bool, bool]]] = {}
        self._alike: dict[str, dict[str, list[str]]] = {}
        self._inside: dict[str, bool] = {}

    def path(self, name: str) -> Path:
        """Return the file's path as the disk spells it."""
        return self._folder / self._spelled(name)

    def fault(self, name: str) -> _Fault | None:
        """Say what is wrong with a file name, or None."""
        if PureWindowsPath(name).drive or PureWindowsPath(name).root:
            fix = f"Write file_name relative to the image folder {self._folder}"
            return "file_name is an absolute path", fix, "path leaves the image folder", "error"
        normal = self._spelled(name)
        if normal == ".." or normal.startswith("../"):
            fix = f"Move the image below {self._folder}, or set img_folder to the common folder"
            return "the path leaves the image folder", fix, "path leaves the image folder", "error"
        parent, base = posixpath.split(normal)
        entry = self._listing(parent).get(base)
        if entry is None:
            return self._missing(parent, base, normal)
        is_file, is_link = entry
        if not is_file:
            fix = "Correct file_name: it is a folder, pipe, device or broken link"
            return "is not a file", fix, "missing image", "error"
        if parent and parent not in self._inside:
            self._inside[parent] = self._resolves_inside(parent)
        if not self._inside.get(parent, True) or (is_link and not self._resolves_inside(normal)):
            fix = f"Copy the image below {self._folder}, or set img_folder to where it really is"
            return "is a link that leaves the image folder", fix, "path leaves the image folder", "error"
        return None

    def _spelled(self, name: str) -> str:
        """The relative path, each part as its folder has it: accents are composed or not, as the system likes."""
        normal = posixpath.normpath(name.replace(os.sep, "/"))
        if normal.isascii() or normal.startswith(("/", "../")):
            return normal
        path = ""
        for part in normal.split("/"):
            if part not in self._listing(path):
                alike = (n for n in self._names_alike(path, part) if composed(n) == composed(part))
                part = next(alike, part)
            path = posixpath.join(path, part)
        return path

    def _missing(self, parent: str, base: str, normal: str) -> _Fault:
        alike, path = self._names_alike(parent, base), self._folder / normal
        same_but_case = [n for n in alike if composed(n).casefold() == composed(base).casefold()]
        if same_but_case and os.path.isfile(path):  # a file system that ignores case
            found = f"is called {same_but_case[0]} on disk: found here, but not on Linux"
            return found, "Use the same upper and lower case in both", "case of file names", "warning"
        fix, found = "Restore the file, correct file_name or img_folder", f"there is no file {shorten(str(path), 400)}"
        decoded = unquote(normal)
        if same_but_case:
            fix = f"There is {same_but_case[0]}: upper and lower case differ, which works on Windows but not on Linux"
        elif alike:
            why = "percent-encoding, as in a web address, or outer spaces differ"
            fix = f"There is {alike[0]}: {why}; write both alike"
        elif decoded != normal and os.path.isfile(self.path(decoded)):
            fix = f"There is {decoded}: file_name is percent-encoded as in a web address; write it as on disk"
        elif "\\" in normal:
            fix = "Write file_name with / instead of \\"
        elif parent and base in self._listing(""):
            fix = f"There is {self._folder / base}: img_folder and file_name both name the folder {parent}"
        return found, fix, "missing image", "error"

    def _names_alike(self, parent: str, base: str) -> list[str]:
        """Names in a folder that differ from `base` only in case, accents' composition or percent-encoding."""
        if parent not in self._alike:
            names = self._alike[parent] = defaultdict(list)
            for name in self._listing(parent):
                names[_core(name)].append(name)
        return self._alike[parent].get(_core(base), [])

    def _listing(self, parent: str) -> dict[str, tuple[bool, bool]]:
        """File name -> (is a file, is a link)."""
        if parent not in self._listings:
            try:
                with os.scandir(self._folder / parent) as entries:
                    self._listings[parent] = {e.name: (e.is_file(), e.is_symlink()) for e in entries}
            except (OSError, ValueError):  # ValueError: what is no name on this system
                self._listings[parent] = {}
        return self._listings[parent]

    def _resolves_inside(self, relative: str) -> bool:
        return Path(os.path.realpath(self._folder / relative)).is_relative_to(self._real_folder)


def _core(name: str) -> str:
    return name_key(unquote(name))
