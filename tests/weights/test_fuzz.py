"""A short slice of the fuzzing: the program is fuzz.py, which runs for millions of inputs."""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.weights_fuzz import fuzz

import weights
from weights import _pickler as op

SLICE = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

DIMENSIONS = st.lists(st.sampled_from([-1, 0, 1, 2, 3, 16, 1 << 31, 1 << 47]), max_size=3)


@pytest.mark.parametrize("seed", [1, 2])
def test_guided_mutations(seed):
    report = fuzz.run(2500, seed)
    assert report.inputs == 2500 and report.failures == []
    assert len(report.outcomes) > 100, "the inputs hardly reach anything: the harness is broken"
    assert sum(outcome.startswith("read ") for outcome in report.outcomes) >= 5


@SLICE
@given(st.integers(0, 1 << 30), st.sampled_from(fuzz.seeds()))
def test_mutated_files(number, seed):
    data = seed.wrap(fuzz.mutate(seed.payload, fuzz.random.Random(number)))
    fuzz.check(data)


@SLICE
@given(
    st.binary(max_size=60),
    st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"]),
)
def test_made_up_bytes(tail, head):
    fuzz.check(head + tail or b"\x00")


@SLICE
@given(
    st.integers(-2, 70),
    DIMENSIONS,
    DIMENSIONS,
    st.sampled_from(["FloatStorage", "BoolStorage", "BFloat16Storage"]),
)
def test_tensors_of_any_geometry(offset, shape, strides, storage):
    """Whatever offset, shape and strides a torch file declares: elements of its storage, or an error."""
    count = 32 if storage == "BFloat16Storage" else 16 if storage == "FloatStorage" else 64
    reference = (
        op.text("storage") + op.name("torch", storage) + op.text("0") + op.text("cpu") + op.integer(count)
    )
    tensor = op.call(
        op.name("torch._utils", "_rebuild_tensor_v2"),
        op.MARK + reference + op.TUPLE + op.PERSISTENT,
        op.integer(offset),
        op.integers(shape),
        op.integers(strides),
        op.FALSE,
        op.EMPTY_DICT,
    )
    payload = op.protocol(2) + op.EMPTY_DICT + op.text("a") + tensor + op.SET_ITEM + op.STOP
    outcome = fuzz.check(fuzz.torch_zip(payload))
    reach = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=False))
    if len(shape) == len(strides) and min([offset, *shape, *strides]) >= 0 and 0 not in shape:
        assert outcome.startswith("read ") == (reach < count) or "too much" in outcome


def test_an_entry_without_a_name():
    """Found by fuzzing: zipfile's is_dir() raises IndexError for an empty name."""
    data = bytearray(fuzz.zip_with({"a": b""}))
    directory = data.find(b"PK\x01\x02")
    data[directory + 28 : directory + 30] = bytes(2)
    # the name's byte becomes an extra field
    data[directory + 30 : directory + 32] = (1).to_bytes(2, "little")
    with pytest.raises(weights.CheckpointError):
        fuzz._read(memoryview(bytes(data)), fuzz.CHOICE)


def test_a_narrower_dtype_that_overflows(tmp_path):
    """Found by fuzzing: a value beyond float16 under a float16 note warned instead of staying float32."""
    path = tmp_path / "m.weights.h5"
    source = {"a": np.ones(1, np.float16)}
    weights.write_keras_h5(path, {"a": np.array([1e30], np.float32)}, provenance={}, source=source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = weights.read_checkpoint(path).state["a"]
    assert found.dtype == np.float32 and found[0] == np.float32(1e30)
