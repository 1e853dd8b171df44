"""The errors of this package: each says what is wrong, where, and what to do next."""

from __future__ import annotations


class WeightsError(ValueError):
    """Base of every error that :mod:`weights` raises on purpose."""


class CheckpointError(WeightsError):
    """A file that cannot be read as a checkpoint: damaged, hostile, or of an unknown kind."""


class ConversionError(WeightsError):
    """A readable checkpoint that does not match the model it should fill."""


class CheckpointNotice(UserWarning):
    """How a file was read that could be read in another way; the message says what was done."""
