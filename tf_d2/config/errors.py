"""The exceptions and the warning of this package."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from weights.errors import UserError


class ConfigError(UserError, ValueError):
    """A configuration that cannot be read, or that this version cannot reproduce exactly."""


class UnknownKeys(ConfigError):
    """Keys that detectron2 does not have and that cannot be left out.

    Attributes:
        listing: which keys, and why.
        merged: the keys that detectron2 has, with their values.
    """

    def __init__(self, listing: str, advice: str, merged: dict) -> None:
        super().__init__(listing + advice)
        self.listing, self.merged = listing, merged


class ConfigNotice(UserWarning):
    """Something in a configuration that was passed over; the message says what and why."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean ...?)`` for the known names closest to ``name``, or an empty string."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.75)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


class DownloadError(UserError, OSError):
    """Weights that are not here and could not be fetched; says what to fetch by hand, and where to."""
