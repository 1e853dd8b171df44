"""Options that several commands share."""

from __future__ import annotations

import os
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from tf_d2.kernels import FROZEN_WEIGHTS, ONEDNN, X86_64
from weights.errors import UsageError

ConfigOption = Annotated[
    str,
    typer.Option(
        "--config-file",
        help="detectron2 YAML, the name of a published model (see tf-d2 zoo list), or a converted .weights.h5, "
        "which holds both config and weights.",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights", help="Checkpoint; left out: the config's MODEL.WEIGHTS, or the published model's own."
    ),
]
NonfiniteOption = Annotated[
    bool,
    typer.Option("--allow-nonfinite", help="Load NaN and infinite weights, with a warning."),
]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Write over what is in the folder; without it, that is an error."),
]
OptsArgument = Annotated[
    list[str] | None,
    typer.Option("--opts", metavar="KEY VALUE ...", help="Overrides, as in detectron2."),
]

ConventionsOption = Annotated[
    Literal["detectron2", "detectron", "maskrcnn-benchmark"] | None,
    typer.Option(
        "--conventions",
        help="Whose arithmetic to follow; left out: that of the project whose configuration it is.",
    ),
]

IgnoreKeysOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-keys",
        metavar="KEY ...",
        help="Keys of the configuration that detectron2 does not have and that you know to change nothing: "
        "--ignore-keys KEY [KEY ...]; a section or a pattern (MODEL.MY_*) covers all below it.",
    ),
]

IgnoreTensorsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-tensors",
        metavar="PATTERN ...",
        help="Tensors of the checkpoint that the model has no place for, left out: --ignore-tensors PATTERN "
        "[PATTERN ...], for example 'discriminator.*'.",
    ),
]
PrefixOption = Annotated[
    str | None,
    typer.Option(
        "--prefix",
        help="Which of several models in the checkpoint: an entry of the file (teacher) or the start of its names "
        "(modelTeacher.).",
    ),
]


def checked_opts(opts: list[str] | None) -> list[str]:
    """``[KEY, VALUE, ...]``; an odd number of words is an error."""
    words = list(opts or [])
    if len(words) % 2:
        raise UsageError(f"--opts takes pairs KEY VALUE, got {len(words)} words: {' '.join(words)}")
    return words


@contextmanager
def native_notices_hidden() -> Iterator[None]:
    """Keep what native code writes to file descriptor 2 away from the terminal. ``TF_D2_DEBUG`` shows it.

    TensorFlow announces the libraries it found and did not find there, before and beside any log level.
    """
    if os.environ.get("TF_D2_DEBUG"):
        yield
        return
    sys.stderr.flush()
    visible, hidden = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(hidden, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(visible, 2)
        os.close(visible)
        os.close(hidden)


@contextmanager
def terminated_by_exception() -> Iterator[None]:
    """Let SIGTERM (a container that is stopped, `timeout`) end the block as an exception, which cleans up."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def choose_kernels() -> None:
    """Ask TensorFlow for its fastest CPU kernels, for a process that runs one model whose weights never change, as a
    graph. Before TensorFlow is imported; what the user's environment says stays.

    oneDNN may lay the weights out once. With that it is faster than TensorFlow's own kernels also on processors where
    TensorFlow would not take it by itself (those without AVX512_VNNI), and without that slower.
    """
    os.environ.setdefault(FROZEN_WEIGHTS, "1")
    if os.environ[FROZEN_WEIGHTS].lower() in ("1", "true") and platform.machine() in X86_64:
        os.environ.setdefault(ONEDNN, "1")


def import_tensorflow() -> None:
    """Import TensorFlow without its start-up notices."""
    with native_notices_hidden():
        import tensorflow as tf

        tf.config.list_physical_devices()  # the search for GPUs is what complains most
        tf.get_logger().setLevel("ERROR")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is either whole or absent. OSError names it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        Path(temporary).unlink(missing_ok=True)
