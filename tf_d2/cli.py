"""The command ``tf-d2``: one module with ``register(app)`` per sub-command; other packages add theirs by
entry point.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from importlib import import_module
from importlib.metadata import entry_points

import typer

COMMANDS = ("predict", "batch", "convert", "inspect", "export", "zoo")
LIST_OPTIONS = (
    "--candidate",
    "--ignore-keys",
    "--ignore-tensors",
    "--input",
    "--opts",
    "--proposals",
    "--waive",
)
PLUGIN_GROUP = "tf_d2.commands"  # `parity` registers its commands here, since tf_d2 does not import parity

_FORMAT = warnings.formatwarning
# What a user can cause, with a message written for the user. Anything else is a defect of this program.
USER_ERRORS = (ValueError, OSError, KeyError, MemoryError)


def make_app() -> typer.Typer:
    """All commands, those of installed plug-ins included."""
    app = typer.Typer(
        help="detectron2 models in TensorFlow: the same detections, proved, and served.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for name in COMMANDS:
        import_module(f"tf_d2.commands.{name}").register(app)
    for plugin in sorted(entry_points(group=PLUGIN_GROUP), key=lambda p: p.name):
        plugin.load()(app)
    return app


def spread_lists(arguments: list[str]) -> list[str]:
    """``--input a b --opts K -1`` -> ``--input=a --input=b --opts=K --opts=-1``.

    detectron2's tools take lists after one option (argparse); click wants the option repeated. A list ends at
    the next word that starts with "--".
    """
    spread: list[str] = []
    current = ""
    for word in arguments:
        if word.startswith("--"):
            current = word if word in LIST_OPTIONS else ""
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a path the terminal cannot show is no reason to stop
    warnings.formatwarning = _note
    try:
        make_app()(args=spread_lists(sys.argv[1:] if arguments is None else arguments))
    except USER_ERRORS as error:
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
    elif isinstance(error, KeyError) and error.args:
        message = str(error.args[0])
    else:
        message = str(error) or type(error).__name__
    if os.environ.get("TF_D2_DEBUG") and isinstance(error, BaseException):
        raise error
    print(f"tf-d2: error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
