"""Differences that are known and accepted until a date."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from weights.errors import UsageError


@dataclass(frozen=True)
class Waiver:
    """A stage that is known not to agree: why, and until when that is accepted."""

    stage: str
    reason: str
    until: date


def parse_waiver(text: str) -> Waiver:
    """``STAGE=REASON@YYYY-MM-DD``; ValueError where the reason or the date is missing."""
    stage, _, rest = text.partition("=")
    reason, _, until = rest.rpartition("@")
    if not stage.strip() or not reason.strip():
        raise UsageError(f"a waiver is STAGE=REASON@YYYY-MM-DD, not {text!r}")
    try:
        return Waiver(stage.strip(), reason.strip(), date.fromisoformat(until.strip()))
    except ValueError as error:
        raise UsageError(f"waiver {text!r} needs the date it ends on, as @YYYY-MM-DD") from error
