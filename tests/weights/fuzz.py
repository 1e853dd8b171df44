"""Feeds damaged and made-up files to every checkpoint reader and checks that each is refused or read, never
more.

    python tests/weights/fuzz.py --count 1000000 --seed 1

For every input: the outcome is a Checkpoint or a CheckpointError, within the time limit, without opening,
importing or running anything (watched by an audit hook), and every array that comes back can be read to its
last byte. Memory is bounded by the process limit. Inputs that reach lines of `weights` no input reached
before join the corpus (every 16th input is traced), so the search is guided by coverage. Failures are
written to --keep as files.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import random
import resource
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import weights
from weights import _pickler as op
from weights._torch import LEGACY_PREFIX
from weights.checkpoint import _Choice, _read

TIME_LIMIT = 3.0  # seconds of the processor for one input; they have a few kilobytes
MEMORY_LIMIT = 3 << 30
TRACE_EVERY = 16
Wrap = Callable[[bytes], bytes]

ARRAYS = {
    "backbone.conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "backbone.conv1.norm.bias": np.arange(3, dtype=np.float16),
    "roi_heads.fc1.weight": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "steps": np.array(7),
}

CHOICE = _Choice()


@dataclass(frozen=True)
class Seed:
    """A valid payload and how it becomes a file: mutations inside of checksums reach what is behind."""

    name: str
    payload: bytes
    wrap: Wrap = bytes


def written(write: Callable[..., None], suffix: str, *args: object, **kwargs: object) -> bytes:
    """What one of our writers writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"file{suffix}")
        write(path, *args, **kwargs)
        return path.read_bytes()


def zip_with(entries: dict[str, bytes]) -> bytes:
    """A zip file with correct checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def torch_zip(payload: bytes) -> bytes:
    """A torch file around a pickle; its storages hold 64 bytes."""
    storages = {f"archive/data/{index}": bytes(range(64)) for index in range(4)}
    return zip_with({"archive/data.pkl": payload, "archive/byteorder": b"little", **storages})


def torch_pickle() -> bytes:
    """A pickle of four tensors with the storages of :func:`torch_zip`, and what else training files hold."""
    parts = [op.protocol(2), op.EMPTY_DICT, op.MARK, op.text("model"), op.EMPTY_DICT, op.MARK]
    for index, (storage, shape) in enumerate(
        [
            ("FloatStorage", (2, 8)),
            ("HalfStorage", (32,)),
            ("BFloat16Storage", (4, 8)),
            ("LongStorage", (2, 2, 2)),
        ]
    ):
        parts += [op.text(f"layer.{index}.weight"), op.torch_tensor(storage, str(index), shape)]
    parts += [op.SET_ITEMS, op.text("iteration"), op.integer(12), op.text("ema_state"), op.EMPTY_DICT]
    return b"".join([*parts, op.SET_ITEMS, op.STOP])


_torch_prefix = LEGACY_PREFIX


def torch_dict(entries: dict[str, bytes]) -> bytes:
    """A pickle of a dictionary of pickled values."""
    parts = [op.protocol(2), op.EMPTY_DICT, op.MARK]
    for key, value in entries.items():
        parts += [op.text(key), value]
    return b"".join([*parts, op.SET_ITEMS, op.STOP])


def inner_dict(entries: dict[str, bytes]) -> bytes:
    """:func:`torch_dict` as a value within another pickle."""
    return torch_dict(entries)[2:-1]


def torch_training() -> bytes:
    """A distributed run's file: "module." everywhere, EMA weights, one storage seen as two dtypes, a
    config object."""
    floats = op.torch_tensor("FloatStorage", "0", (2, 8))
    state = {"module.a": floats, "module.b": op.torch_tensor("IntStorage", "0", (16,))}
    ema = {"state_dict": inner_dict({"module.a": op.torch_tensor("FloatStorage", "1", (2, 8))})}
    config = op.name("yacs.config", "CfgNode") + b")\x81" + op.EMPTY_DICT + op.BUILD
    return torch_dict({"model": inner_dict(state), "model_ema": inner_dict(ema), "cfg": config})


def torch_pycls() -> bytes:
    """What pycls saves."""
    tensors = {"stem.weight": op.torch_tensor("FloatStorage", "0", (4, 4))}
    return torch_dict({"model_state": inner_dict(tensors), "epoch": op.integer(3), "cfg": op.text("A: 1")})


def deflated_torch(payload: bytes) -> bytes:
    """:func:`torch_zip` compressed, as some tools store it again."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", payload)
        for index in range(4):
            archive.writestr(f"archive/data/{index}", bytes(range(64)))
    return buffer.getvalue()


def legacy_file(body: bytes) -> bytes:
    """A file of torch's format before 1.6: header, pickle, one storage of four floats."""
    header = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return (
        b"".join(pickle.dumps(part, 2) for part in header)
        + body
        + pickle.dumps(["0"], 2)
        + struct.pack("<q16x", 4)
    )


def legacy_reference() -> bytes:
    """The persistent id of that storage, with the view metadata of the old format."""
    items = (
        op.text("storage") + op.name("torch", "FloatStorage") + op.text("0") + op.text("cpu") + op.integer(4)
    )
    return op.MARK + items + b"N" + op.TUPLE + op.PERSISTENT


def rebuilt(storage: bytes) -> bytes:
    """A tensor of shape (2, 2) on a pickled storage."""
    arguments = (storage, op.integer(0), op.integers((2, 2)), op.integers((2, 1)), op.FALSE, op.EMPTY_DICT)
    return op.call(op.name("torch._utils", "_rebuild_tensor_v2"), *arguments)


def legacy_torch() -> bytes:
    """An old torch file with one tensor."""
    return legacy_file(torch_dict({"a.weight": rebuilt(legacy_reference())}))


def nested_torch() -> bytes:
    """A plain pickle of a torch tensor: its storage is a torch file inside."""
    storage = legacy_file(op.protocol(2) + legacy_reference() + op.STOP)
    nested = op.call(
        op.name("torch.storage", "_load_from_bytes"), b"B" + struct.pack("<I", len(storage)) + storage
    )
    return torch_dict({"model": inner_dict({"a.weight": rebuilt(nested)}), "__author__": op.text("x")})


def python2_pickle() -> bytes:
    """Blobs as Python 2 pickled them: bytes are strings, here longer than those that are decoded at once."""
    data = np.arange(1100, dtype=np.float32).tobytes()
    shell = op.call(
        op.name("numpy.core.multiarray", "_reconstruct"), op.name("numpy", "ndarray"), b")", b"U\x01b"
    )
    state = op.MARK + op.integer(1) + op.integers((1100,)) + op.numpy_dtype(np.dtype("<f4")) + op.FALSE
    array = shell + state + b"T" + struct.pack("<I", len(data)) + data + op.TUPLE + op.BUILD
    return torch_dict({"bbox_pred_b": array})


def npy(payload: bytes) -> bytes:
    """A tensorpack file around one npy payload."""
    return zip_with({"conv0/W.npy": payload})


def safetensors(header: bytes) -> bytes:
    """A safetensors file around a header, for 64 bytes of data."""
    return struct.pack("<Q", len(header)) + header + bytes(64)


def array_file(array: np.ndarray) -> bytes:
    """``array`` as ``.npy``."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def seeds() -> list[Seed]:
    """One valid file of every format at least."""
    keras = {
        "conv/kernel": np.ones((1, 1, 2, 3), np.float32),
        "fc1/kernel": np.ones((1, 1, 2, 3), np.float32),
    }
    source = {"fc1.weight": np.ones((3, 2), np.float16)}
    blobs = {
        "conv1_w": np.ones((2, 3)),
        "conv1_b": np.zeros(2),
        "cls_score_b": np.ones(3),
        "bbox_pred_b": np.ones(8),
        "mask_fcn_logits_b": np.ones(3),
        "conv1_w_momentum": np.ones(2),
    }
    zoo = {"model": ARRAYS, "__author__": "zoo"}
    numbers = (
        b'{"a":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]},'
        b'"b":{"dtype":"BF16","shape":[16],"data_offsets":[32,64]}}'
    )
    raw = [
        Seed("pkl", written(weights.write_detectron2_pkl, ".pkl", ARRAYS, iteration=3)),
        *(Seed(f"pickle{protocol}", pickle.dumps(zoo, protocol)) for protocol in (0, 2, 4, 5)),
        Seed("caffe2", pickle.dumps({"blobs": blobs, "cfg": "x"}, 2)),
        Seed("pth", written(weights.write_pth, ".pth", {"a.b": np.ones(3, np.float32)})),
        Seed("legacy", legacy_torch()),
        Seed("nested", nested_torch()),
        Seed("python 2", python2_pickle()),
        Seed(
            "safetensors metadata",
            written(weights.write_safetensors, ".safetensors", ARRAYS, metadata={"a": "b"}),
        ),
        Seed("npz", npy(array_file(np.ones((3, 2), np.float32)))),
        Seed("safetensors", written(weights.write_safetensors, ".safetensors", ARRAYS)),
        Seed(
            "keras",
            written(
                weights.write_keras_h5,
                ".weights.h5",
                keras,
                provenance={"source": "x"},
                config_yaml="VERSION: 2",
                extra_state={"steps": np.array(1)},
                source=source,
            ),
        ),
    ]
    wrapped = [
        Seed("pth pickle", torch_pickle(), torch_zip),
        Seed("pth training", torch_training(), torch_zip),
        Seed("pth pycls", torch_pycls(), torch_zip),
        Seed("pth deflated", torch_pickle(), deflated_torch),
        Seed("npy", array_file(np.ones((3, 2), np.float32)), npy),
        Seed("safetensors header", numbers, safetensors),
    ]
    return raw + wrapped


# --- mutation ---------------------------------------------------------------------------------------

EDGES = [
    0,
    1,
    2,
    1 << 7,
    0xFF,
    0xFFFF,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 62,
    (1 << 63) - 1,
    (1 << 64) - 1,
]
OPCODES = b"()]}.012BCFGIJKLMNQRSTUVXabcdeghijlopqrstu" + bytes([0x80, 0x81, *range(0x85, 0x97)])
TOKENS = [
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch.storage\n_load_from_bytes\n",
    b"c_codecs\nencode\n",
    b"X\x05\x00\x00\x00model",
    b"\x8a\x0a" + b"\xff" * 10,
]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """``data`` with one to four random changes."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        if not result:
            break
        where = rng.randrange(len(result))
        rng.choice(CHANGES)(result, where, rng)
    return bytes(result)


def _flip(data: bytearray, where: int, rng: random.Random) -> None:
    data[where] ^= 1 << rng.randrange(8)


def _byte(data: bytearray, where: int, rng: random.Random) -> None:
    data[where] = rng.choice(OPCODES) if rng.random() < 0.6 else rng.randrange(256)


def _edge(data: bytearray, where: int, rng: random.Random) -> None:
    size = rng.choice((1, 2, 4, 8))
    value = (rng.choice(EDGES) + rng.choice((-1, 0, 0, 1))) % (1 << (8 * size))
    data[where : where + size] = value.to_bytes(size, "little")


def _delete(data: bytearray, where: int, rng: random.Random) -> None:
    del data[where : where + rng.choice((1, 2, 4, 8, 64))]


def _repeat(data: bytearray, where: int, rng: random.Random) -> None:
    piece = bytes(data[where : where + rng.choice((1, 2, 8, 32, 200))])
    data[where:where] = piece * rng.choice((1, 1, 2, 50))


def _move(data: bytearray, where: int, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice((4, 16, 64))]
    data[where : where + (len(piece) if rng.random() < 0.5 else 0)] = piece


def _insert(data: bytearray, where: int, rng: random.Random) -> None:
    piece = rng.choice(TOKENS) if rng.random() < 0.5 else bytes(rng.choices(OPCODES, k=rng.randrange(1, 12)))
    data[where:where] = piece


def _digit(data: bytearray, where: int, rng: random.Random) -> None:
    """Change a number or a letter of the text that some formats consist of."""
    digits = [index for index in range(where, min(where + 200, len(data))) if chr(data[index]).isalnum()]
    if digits:
        data[rng.choice(digits)] = rng.choice(b"0123456789-eE.[]{},:\"'LFBIUO<>|")


def _truncate(data: bytearray, where: int, rng: random.Random) -> None:
    del data[where:]


CHANGES = [_flip, _byte, _edge, _delete, _repeat, _move, _insert, _digit, _flip, _byte, _edge, _truncate]


def opcode_soup(rng: random.Random) -> bytes:
    """A made-up pickle: opcodes and tokens at random, beginning and ending as pickles do."""
    parts = [
        bytes([rng.choice(OPCODES)]) if rng.random() < 0.8 else rng.choice(TOKENS)
        for _ in range(rng.randrange(3, 60))
    ]
    return b"\x80" + bytes([rng.randrange(6)]) + b"".join(parts) + b"."


# --- one input --------------------------------------------------------------------------------------

FORBIDDEN = (
    "open",
    "import",
    "exec",
    "compile",
    "os.",
    "subprocess.",
    "socket.",
    "shutil.",
    "ctypes.",
    "pickle.",
)
_watching = False
_events: list[str] = []


def _audit(event: str, args: tuple[object, ...]) -> None:
    if _watching and event.startswith(FORBIDDEN):
        _events.append(f"{event}{args!r}"[:300])


def check(data: bytes, ema: bool = False) -> str:
    """Read ``data`` as a checkpoint. Returns what happened; raises AssertionError if that must not happen."""
    global _watching
    _events.clear()
    start = time.process_time()  # not wall time: other programs share the machine
    _watching = True
    try:
        checkpoint = _read(memoryview(data), _Choice(ema))
        for array in checkpoint.state.values():
            array.tobytes()  # every element is inside of the file, or this crashes
        outcome = f"read {checkpoint.format}"
    except weights.CheckpointError as error:
        outcome = "".join(letter for letter in str(error) if not letter.isdigit())[:60]
    finally:
        _watching = False
    seconds = time.process_time() - start
    assert seconds < TIME_LIMIT, f"took {seconds:.1f} s"
    assert not _events, f"did {_events[0]}"
    return outcome


@dataclass
class Report:
    """What a run saw."""

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, bytes]] = field(default_factory=list)
    lines: set[tuple[str, int]] = field(default_factory=set)
    corpus: list[Seed] = field(default_factory=list)
    slowest: float = 0.0


def run(count: int, seed: int, seconds: float = float("inf")) -> Report:
    """Feed ``count`` inputs (or as many as ``seconds`` allow) to the readers."""
    rng = random.Random(seed)
    report = Report(corpus=seeds())
    valid = len(report.corpus)
    for item in report.corpus:
        _read(memoryview(item.wrap(item.payload)), CHOICE)  # the codecs it needs are imported now, unwatched
        assert check(item.wrap(item.payload)).startswith("read "), item.name
    end = time.monotonic() + seconds
    while report.inputs < count and time.monotonic() < end:
        item = _next(report.corpus, valid, rng)
        try:
            data = item.wrap(item.payload)
        except (ValueError, struct.error):
            continue
        report.inputs += 1
        traced = report.inputs % TRACE_EVERY == 0
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _one(report, item, data, traced, ema=rng.random() < 0.3)
        report.slowest = max(report.slowest, time.perf_counter() - started)
    return report


def _next(corpus: list[Seed], valid: int, rng: random.Random) -> Seed:
    """A mutant of the corpus, or something made up; the ``valid`` files it begins with get half of the
    work."""
    if rng.random() < 0.1:
        wrap = rng.choice((torch_zip, bytes))
        return Seed("soup", opcode_soup(rng), wrap)
    parent = rng.choice(corpus if rng.random() < 0.5 else corpus[:valid])
    return Seed(parent.name, mutate(parent.payload, rng), parent.wrap)


def _one(report: Report, item: Seed, data: bytes, traced: bool, ema: bool) -> None:
    known = len(report.lines)
    if traced:
        sys.settrace(_tracer(report.lines))
    try:
        outcome = check(data, ema)
    except Exception as error:  # any other exception than CheckpointError is a finding
        outcome = f"FAILED {type(error).__name__}: {error}"
        report.failures.append((outcome, data))
    finally:
        sys.settrace(None)
    report.outcomes[outcome] += 1
    if len(report.lines) > known and len(item.payload) < 20_000:
        report.corpus.append(item)


def _tracer(lines: set[tuple[str, int]]) -> Callable:
    package = os.path.dirname(weights.__file__)

    def trace(frame, event, arg):
        name = frame.f_code.co_filename
        if not name.startswith(package):
            return None
        if event == "line":
            lines.add((name, frame.f_lineno))
        return trace

    return trace


sys.addaudithook(_audit)


def main() -> None:
    """Run from the command line; exit status 1 if anything failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--keep", type=Path, help="folder for inputs that fail")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    report = run(args.count, args.seed, args.seconds)
    for outcome, number in report.outcomes.most_common(60):
        print(f"{number:9d}  {outcome}")
    print(
        f"{report.inputs} inputs, {len(report.outcomes)} outcomes, {len(report.lines)} lines reached, corpus "
        f"{len(report.corpus)}, slowest {report.slowest:.3f} s, {len(report.failures)} failures"
    )
    if args.keep and report.failures:
        args.keep.mkdir(parents=True, exist_ok=True)
        for index, (outcome, data) in enumerate(report.failures[:200]):
            (args.keep / f"seed{args.seed}_{index}.bin").write_bytes(data)
            print(index, outcome)
    raise SystemExit(1 if report.failures else 0)


if __name__ == "__main__":
    main()
