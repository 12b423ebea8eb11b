"""What is wrong with a data set, in words that lead to the mend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from data.errors import printable

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a data set."""

    severity: Severity
    """Errors corrupt training; warnings are worth a look."""
    file: str
    """The annotation file."""
    where: str
    """Annotation id, image id and file name, or the part of the file."""
    found: str
    """What was found, and what was expected."""
    fix: str
    """What to do."""
    kind: str = ""
    """Short name of this sort of fault: many of one kind are shown in part."""
    skippable: bool = False
    """Whether `on_bad_data: skip` can go on: the entry is left out (or, for repeated ids, renumbered)."""
    bad_image_id: int | None = None
    """The image that `on_bad_data: skip` has to leave out for it."""

    def __str__(self) -> str:
        return printable(f"{self.file}: {self.where}: {self.found.removesuffix('.')}. {self.fix}")


def errors_of(problems: Iterable[Problem]) -> list[Problem]:
    """Return the errors, which corrupt training."""
    return [problem for problem in problems if problem.severity == "error"]


def warnings_of(problems: Iterable[Problem]) -> list[Problem]:
    """Return the warnings, which are worth a look."""
    return [problem for problem in problems if problem.severity == "warning"]


def problem_lines(problems: Sequence[Problem], limit_per_kind: int | None) -> list[str]:
    """Return one line per problem; at most `limit_per_kind` of each kind, then a line that counts the rest."""
    total, shown = Counter(problem.kind for problem in problems), Counter[str]()
    lines = []
    for problem in problems:
        shown[problem.kind] += 1
        if limit_per_kind is None or shown[problem.kind] <= limit_per_kind:
            lines.append(str(problem))
        elif shown[problem.kind] == limit_per_kind + 1:
            lines.append(f"... and {total[problem.kind] - limit_per_kind} more of the kind: {problem.kind}")
    return lines


def shorten(text: str, limit: int = 120) -> str:
    """Return the beginning of a long text."""
    return text if len(text) <= limit else text[: limit - 4] + " ..."
