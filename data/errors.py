"""Errors that are the user's to mend: shown as text, without a traceback."""

from collections.abc import Sequence


class UserError(Exception):
    """Bad input, described for the person who has to fix it.

    Args:
        message: What was found, what was expected and how to fix it.
        problems: Further lines when several things are wrong; they are shown as a list under the message,
            so that one run reports everything.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in self.problems)]))
