"""The errors of this package, each saying what is wrong, where, and what to do next; and the base of every error that
a user can cause, which the other packages share."""

from __future__ import annotations


class UserError(Exception):
    """What the user can cause and mend: the message says how. Base of all such errors of weights, tf_d2 and parity.

    The command line prints the message alone and exits with 2, as it does with the ValueError and OSError of a library
    that reads the user's files; anything else it calls an internal error. Every subclass is also the ValueError,
    OSError or RuntimeError that it was before there was this base.
    """


class UsageError(UserError, ValueError):
    """An option, argument or file that cannot be used here."""


class WeightsError(UserError, ValueError):
    """Base of every error that :mod:`weights` raises on purpose."""


class CheckpointError(WeightsError):
    """A file that cannot be read as a checkpoint: damaged, hostile, or of an unknown kind."""


class ConversionError(WeightsError):
    """A readable checkpoint that does not match the model it should fill."""


class CheckpointNotice(UserWarning):
    """How a file was read that could be read in another way; the message says what was done."""
