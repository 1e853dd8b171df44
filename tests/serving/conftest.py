"""The demo model, exported once for all tests of this folder."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

DEMO = Path(str(files("tf_d2"))) / "data" / "demo"

Run = Callable[..., dict[str, np.ndarray]]


def open_session(folder: Path) -> tuple[Run, Callable[[], None]]:
    """``run(signature, **inputs)`` through the TF1 loader and a Session, as TensorFlow Serving does it."""
    import tensorflow as tf

    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))

    def run(signature: str, **inputs: Any) -> dict[str, np.ndarray]:
        definition = loaded.signature_def[signature]
        feed = {definition.inputs[name].name: value for name, value in inputs.items()}
        return session.run({name: info.name for name, info in definition.outputs.items()}, feed)

    return run, session.close


@pytest.fixture(autouse=True)
def exports_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export loads what it wrote and times two requests, a third of its time; :func:`demo_export` still does."""
    monkeypatch.setattr("tf_d2.serving.exporter.measure", lambda *arguments, **options: (0.0, 0.0, 0.0))


@pytest.fixture
def pixels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports without the signature that decodes files, a third of an export's time: where the model matters."""
    monkeypatch.setattr("tf_d2.serving.exporter.takes_files", lambda channels: False)


@pytest.fixture(scope="session")
def demo_export(exported_demo: SimpleNamespace) -> SimpleNamespace:
    """``report``, ``root`` and ``folder`` of the exported demo, ``run`` to call it."""
    report = exported_demo.report
    run, close = open_session(report.path)
    yield SimpleNamespace(report=report, root=exported_demo.root, folder=report.path, run=run)
    close()


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """The embedded picture, RGB."""
    return np.asarray(Image.open(DEMO / "shapes.png").convert("RGB"))


def encoded(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """``image`` as the contents of a file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def png16(samples: np.ndarray, colour_type: int) -> bytes:
    """A 16-bit PNG of any colour type; Pillow writes grey ones only."""
    height, width = samples.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    framed = (
        struct.pack(">I", len(b)) + kind + b + struct.pack(">I", zlib.crc32(kind + b)) for kind, b in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)
