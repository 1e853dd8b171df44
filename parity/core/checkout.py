"""What only a checkout of the repository has: the bugs that the harness tests itself with, and the suite behind the
repository's tables. Neither is installed with the package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from weights.errors import UsageError

NOT_INSTALLED = ("parity.selftest", "parity.bench.suite")


@contextmanager
def from_a_checkout(what: str) -> Iterator[None]:
    """Around imports of what is not installed; where it is missing, say so. ``what`` begins a sentence.

    Raises:
        UsageError: the modules are not there.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith(NOT_INSTALLED):
            raise
        raise UsageError(
            f"{what} are no part of the installed package: clone the repository of tf-d2, and in it "
            "pip install -e '.[parity]' and run this command there"
        ) from None
