"""One base for whatever a user can cause, in all three packages; and the classes that users catch stay bases, too."""

import ast
import builtins
import pickle
from pathlib import Path

import pytest

import tf_d2
import weights
from tf_d2.client import BadImageError, ServingError
from tf_d2.config import ConfigError, DownloadError
from weights.errors import CheckpointError, ConversionError, UsageError, UserError, WeightsError

ROOT = Path(weights.__file__).parents[1]
# A worker's errors reach the user as the message of a BackendError.
WORKERS = "parity/backends/"


def exception_classes() -> dict[str, set[str]]:
    """Public exceptions of the three packages -> names of all their bases, as the source says."""
    bases: dict[str, set[str]] = {}
    for package in ("weights", "tf_d2", "parity"):
        for path in (ROOT / package).rglob("*.py"):
            if path.relative_to(ROOT).as_posix().startswith(WORKERS):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    bases[node.name] = {b.id for b in node.bases if isinstance(b, ast.Name)}

    def known(name: str) -> set[str]:
        found = {name}
        for base in bases.get(name, set()):
            found |= known(base)
        return found

    every = {name: known(name) for name in bases}
    builtin = {n for n, c in vars(builtins).items() if isinstance(c, type) and issubclass(c, Exception)}
    warned = {n for n, c in vars(builtins).items() if isinstance(c, type) and issubclass(c, Warning)}
    return {
        name: found
        for name, found in every.items()
        if found & builtin and not found & warned and not name.startswith("_")
    }


def test_every_public_exception_is_a_users():
    classes = exception_classes()
    assert {"ConfigError", "WeightsError", "ImageError", "BackendError", "PictureError"} <= set(classes)
    assert sorted(name for name, found in classes.items() if "UserError" not in found) == []


@pytest.mark.parametrize(
    "error, base",
    [
        (UsageError, ValueError),
        (WeightsError, ValueError),
        (CheckpointError, WeightsError),
        (ConversionError, WeightsError),
        (ConfigError, ValueError),
        (DownloadError, OSError),
        (ServingError, RuntimeError),
        (BadImageError, ServingError),
        (tf_d2.ImageError, ValueError),
    ],
)
def test_what_users_catch_today_stays_a_base(error, base):
    assert issubclass(error, base) and issubclass(error, UserError)
    raised = error("what is wrong")
    assert str(raised) == "what is wrong" and str(pickle.loads(pickle.dumps(raised))) == "what is wrong"


def test_the_errors_bring_no_library():
    """Everything imports them, the command line's help and the client included."""
    import subprocess
    import sys

    code = "import sys, weights.errors; print({'numpy', 'h5py', 'weights.checkpoint'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_public_names_exist():
    assert set(weights._HOME) == set(weights.__all__)
    assert all(hasattr(weights, name) for name in weights.__all__)
    assert set(weights.__all__) <= set(dir(weights))
    with pytest.raises(AttributeError, match="'weights' has no attribute 'load'"):
        weights.load  # noqa: B018
