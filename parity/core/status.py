"""The five statuses a comparison can end in, and the exit codes they turn into.

Nothing passes by default: a status is always the result of a comparison that took place. The order of
``Status`` is the order of severity that combining several results follows.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class Status(str, Enum):
    """Outcome of one check. BORDERLINE is a difference whose margin certificate explains it."""

    PASS = "PASS"
    BORDERLINE = "BORDERLINE"
    FAIL = "FAIL"
    NOT_COMPARED = "NOT-COMPARED"
    ERROR = "ERROR"

    def __str__(self) -> str:
        return self.value


class Verdict(str, Enum):
    """Where the difference of a failing stage was made.

    LOCAL: the stage itself differs when fed with the reference's input. INHERITED: it only passes on what
    came in. AMPLIFIED: it is right, but enlarges the incoming difference well beyond what the reference's
    own noise is enlarged by. UNKNOWN: there was no teacher-forced run and the inputs do not settle it.
    """

    NONE = "-"
    LOCAL = "LOCAL"
    INHERITED = "INHERITED"
    AMPLIFIED = "AMPLIFIED"
    UNKNOWN = "UNKNOWN"

    def __str__(self) -> str:
        return self.value


EXIT_SAME = 0
EXIT_DIFFERENT = 1
EXIT_NOT_COMPARABLE = 2
EXIT_NOT_DETERMINISTIC = 3

_SEVERITY = {Status.PASS: 0, Status.BORDERLINE: 1, Status.NOT_COMPARED: 2, Status.FAIL: 3, Status.ERROR: 4}


def worst(statuses: Iterable[Status]) -> Status:
    """The most severe of ``statuses``. No statuses at all is NOT_COMPARED: an empty comparison proves
    nothing."""
    return max(statuses, key=_SEVERITY.__getitem__, default=Status.NOT_COMPARED)


def exit_code(status: Status, deterministic: bool = True) -> int:
    """Process exit code: 0 same, 1 different, 2 could not compare, 3 the reference is not deterministic.

    A difference found (FAIL) stays exit 1 even where other stages could not be compared.
    """
    if status is Status.ERROR:
        return EXIT_NOT_COMPARABLE
    if not deterministic:
        return EXIT_NOT_DETERMINISTIC
    if status is Status.FAIL:
        return EXIT_DIFFERENT
    return EXIT_NOT_COMPARABLE if status is Status.NOT_COMPARED else EXIT_SAME
