"""Commands below a command: `tf-d2 parity run`, which is also meant by `tf-d2 parity --config-file ...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from typer.core import TyperGroup


class _DefaultGroup(TyperGroup):
    """A group whose first command is meant where options stand in the place of a command's name."""

    # Option -> the command that it stood for when there was only one command.
    flags: ClassVar[dict[str, str]] = {}
    default: ClassVar[str] = "run"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command's name before options that stand for themselves."""
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = [self.meant(args), *args]
        return super().parse_args(ctx, args)

    def meant(self, args: Sequence[str]) -> str:
        """The command that ``args``, which name none, are for."""
        given = {word.partition("=")[0] for word in args}
        return next((name for flag, name in self.flags.items() if flag in given), self.default)


class ParityGroup(_DefaultGroup):
    """``tf-d2 parity``; ``--ops`` and ``--bisect`` are options of ``run``, too."""


class BenchGroup(_DefaultGroup):
    """``tf-d2 bench``; options that only the suite has choose it."""

    flags: ClassVar[dict[str, str]] = dict.fromkeys(("--all", "--only", "--render", "--prepare"), "suite")
