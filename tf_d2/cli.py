"""The command ``tf-d2``: one module with ``register(app)`` per sub-command; other packages add theirs by
entry point. A command's module is imported when that command is asked for, so that the help starts at once.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from weights.errors import UserError

# What `tf-d2 --help` says of each command, whose module is not imported for it.
COMMANDS = {
    "predict": "Detect on pictures; write COCO results, masks and drawings.",
    "batch": "Run an export over very many pictures, in shards, and go on where it stopped.",
    "beam": "Run an export over pictures on a runner of Apache Beam.",
    "convert": "Convert a checkpoint between detectron2's formats and Keras's.",
    "inspect": "Show what a checkpoint holds, or how two differ.",
    "export": "Write a SavedModel with everything a server needs.",
    "zoo": "List the models detectron2 publishes, and which of them run.",
}
# `parity` names its `register(app)` here, since tf_d2 does not import parity. Where the module of a plug-in has
# COMMANDS (name -> one line of help), `register` runs only when one of them is asked for.
_PLUGIN_GROUP = "tf_d2.commands"

_FORMAT = warnings.formatwarning
# What a user can cause: with a message written for the user (UserError), or raised by the libraries that read the
# user's files (ValueError). Anything else is a defect of this program.
_USER_ERRORS = (UserError, ValueError, OSError, MemoryError)


def make_app() -> typer.Typer:
    """All commands, those of installed plug-ins included; each is imported when it is asked for."""
    app = _empty_app(cls=_LazyCommands, no_args_is_help=True)
    app.info.help = "detectron2 models in TensorFlow: the same detections, proved, and served."
    return app


def _empty_app(**settings: Any) -> typer.Typer:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, **settings)
    app.callback()(_root)  # makes it a group, also around a single command
    return app


class _LazyCommands(TyperGroup):
    """The group of all commands: a list shows one line for each, and running one imports its module.

    ``commands`` holds a stand-in per name until the command is asked for, so that lists and the suggestion for
    a misspelt name need no module.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._pending: dict[str, Callable[[typer.Typer], None]] = {}
        self._listing = False
        self._has_plugins = False
        for name, line in COMMANDS.items():
            self._announce(name, line, _importer(name))

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order of the help, plug-ins last."""
        self._add_plugins()
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command; its stand-in while help is printed, and None where there is no such command."""
        if cmd_name not in self.commands:
            self._add_plugins()
        if not self._listing and cmd_name in self._pending:
            found = _commands_of(self._pending.pop(cmd_name))
            self.commands[cmd_name] = found[cmd_name]
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command and its words, each list option repeated for each of its values."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command, spread_lists(rest, list_options(command, rest))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help with one line per command."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False

    def _announce(self, name: str, line: str, register: Callable[[typer.Typer], None]) -> None:
        self.commands[name] = TyperCommand(name, help=line)
        self._pending[name] = register

    def _add_plugins(self) -> None:
        if self._has_plugins:
            return
        self._has_plugins = True
        from importlib.metadata import entry_points  # slow, and needed only here

        for plugin in sorted(entry_points(group=_PLUGIN_GROUP), key=lambda p: p.name):
            register = plugin.load()
            lines = getattr(sys.modules.get(register.__module__), "COMMANDS", None)
            if lines is None:
                self.commands.update(_commands_of(register))
            for name, line in (lines or {}).items():
                self._announce(name, line, register)


def _importer(name: str) -> Callable[[typer.Typer], None]:
    return lambda app: import_module(f"tf_d2.commands.{name}").register(app)


def _commands_of(register: Callable[[typer.Typer], None]) -> dict[str, Any]:
    """The commands that a ``register(app)`` adds, by name."""
    app = _empty_app()
    register(app)
    return dict(typer.main.get_group(app).commands)


def list_options(command: Any, words: Sequence[str]) -> frozenset[str]:
    """The options that take several values at once: their ``metavar`` ends in dots, "KEY VALUE ...".

    Of a group, those of the command that ``words`` begin with, or, where they begin with an option, of the command
    that the group then takes (``meant``).
    """
    while isinstance(command, TyperGroup) and words:
        meant = getattr(command, "meant", None)
        if words[0] in command.commands:
            command, words = command.commands[words[0]], words[1:]
        elif meant is not None:
            command = command.commands[meant(words)]
        else:
            break
    parameters = [p for p in getattr(command, "params", ()) if str(p.metavar).endswith("...")]
    return frozenset(name for p in parameters if p.param_type_name == "option" for name in p.opts)


def spread_lists(arguments: Sequence[str], lists: Collection[str]) -> list[str]:
    """``--input a b --opts K -1`` -> ``--input=a --input=b --opts=K --opts=-1`` for the options in ``lists``.

    detectron2's tools take lists after one option (argparse); click wants the option repeated. A list ends at
    the next word that starts with "--".
    """
    spread: list[str] = []
    current = ""
    for word in arguments:
        if word.startswith("--"):
            current = word if word in lists else ""
            if not current:
                spread.append(word)
        else:
            spread.append(f"{current}={word}" if current else word)
    return spread


def _root() -> None:
    """detectron2 models in TensorFlow."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit status 0 on success, 2 for errors (commands may define others)."""
    # TensorFlow's start-up notices would bury the answer; set the variable to 0 to see them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever the user's own programs run on
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a path the terminal cannot show is no reason to stop
    warnings.formatwarning = _note
    try:
        make_app()(args=sys.argv[1:] if arguments is None else arguments)
    except _USER_ERRORS as error:
        _fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if os.environ.get("TF_D2_DEBUG"):
            raise
        name = type(error).__name__
        _fail(f"internal error, {name}: {error} (set TF_D2_DEBUG=1 for the traceback, and please report it)")
    finally:
        warnings.formatwarning = _FORMAT


def _note(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """What the user is told beside the answer: one line, without the place in the code."""
    if issubclass(category, UserWarning):
        return f"tf-d2: note: {message}\n"
    return _FORMAT(message, category, filename, lineno, line)


def _fail(error: BaseException | str) -> None:
    if isinstance(error, str):
        message = error
    elif isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    else:
        message = str(error) or type(error).__name__
    if os.environ.get("TF_D2_DEBUG") and isinstance(error, BaseException):
        raise error
    print(f"tf-d2: error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
