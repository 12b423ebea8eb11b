"""Errors that are the user's to mend: shown as text, without a traceback."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line ends, marks that turn the direction of writing, and bytes that are no UTF-8."""


def printable(text: str) -> str:
    """Escape what would break a line or a table, steer a terminal, or cannot be encoded, as names of files can."""
    return UNPRINTABLE.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


class UserError(Exception):
    """Bad input, described for the person who has to fix it: what was found, what was expected and how to fix it."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        """Show `problems` as a list under the message, so that one run reports everything that is wrong."""
        self.message, self.problems = message, tuple(problems)
        lines = [*message.split("\n"), *(f"  - {problem}" for problem in self.problems)]
        super().__init__("\n".join(map(printable, lines)))


@contextmanager
def collecting(problems: list[str], *, whole: bool = False) -> Iterator[None]:
    """Add the faults of a UserError, or all it says as one, to `problems`: others can be looked for, and all be said at
    once."""
    try:
        yield
    except UserError as error:
        problems += [str(error)] if whole else error.problems or [str(error)]
