"""Keras weights files: stock Keras reads them, the round trip is bit-exact, nothing half-written stays."""

import os

import h5py
import keras
import numpy as np
import pytest

import weights
from weights import _threads, keras_file
from weights._blocks import same_bits


class Layer(keras.layers.Layer):
    """A layer that saves nothing itself, as all of this library's."""

    def __init__(self, name, shapes):
        super().__init__(name=name)
        for leaf, shape in shapes.items():
            self.add_weight(name=leaf, shape=shape, initializer="zeros")
        self.built = True

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass


class Model(keras.Model):
    """A model that saves all variables under their paths, as this library's do."""

    def __init__(self):
        super().__init__(name="model")
        with keras.name_scope("head"):
            self.conv = Layer("conv", {"kernel": (1, 2, 3, 4), "bias": (4,)})
            self.fc1 = Layer("fc1", {"kernel": (2, 2, 3, 5)})
        self.built = True

    def save_own_variables(self, store):
        for variable in self.variables:
            store[variable.path] = variable.numpy()

    def load_own_variables(self, store):
        for variable in self.variables:
            variable.assign(np.asarray(store[variable.path]))

    def variable_specs(self):
        return {variable.path: tuple(variable.shape) for variable in self.variables}


RNG = np.random.default_rng(0)
STATE = {
    "head.conv.weight": RNG.normal(size=(4, 3, 1, 2)).astype(np.float16),
    "head.conv.bias": np.array([0.0, -0.0, 1e-40, 3.4e38], np.float32),
    "head.fc1.weight": RNG.normal(size=(5, 12)).astype(np.float32),
    "head.conv.num_batches_tracked": np.array(7),
    "pixel_mean": RNG.normal(size=(3, 1, 1)).astype(np.float32),
}
SPECS = Model().variable_specs()


def write(path, **changes):
    options = {
        "provenance": {"source": "model.pth", "source_sha256": "0" * 64},
        "config_yaml": "VERSION: 2\nMODEL: {}\n# caf\xe9\n",
        "extra_state": weights.split_harmless(STATE, STATE.keys()),
        "source": STATE,
        **changes,
    }
    weights.write_keras_h5(path, weights.to_keras_arrays(STATE, SPECS), **options)


def assert_equal_states(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert same_bits(found[key], value), key


def test_round_trip_is_bit_exact(tmp_path):
    path = tmp_path / "m.weights.h5"
    write(path)
    stored = weights.read_keras_h5(path)
    assert_equal_states(stored.state_dict(), STATE)
    assert stored.provenance == {"source": "model.pth", "source_sha256": "0" * 64, "weights_format": "1"}
    assert stored.config.endswith("caf\xe9\n")
    found = weights.read_checkpoint(path)
    assert found.format == "keras-h5" and found.config == stored.config
    assert_equal_states(found.state, STATE)
    assert found.metadata["source"] == "model.pth"


def test_stock_keras_loads_it(tmp_path):
    path = tmp_path / "m.weights.h5"
    write(path)
    model = Model()
    model.load_weights(path)
    arrays = weights.to_keras_arrays(STATE, SPECS)
    for variable in model.variables:
        assert same_bits(variable.numpy(), np.ascontiguousarray(arrays[variable.path]))


def test_what_stock_keras_saves_is_read(tmp_path):
    """Without our notes fc1 is known by its name; a half precision original is then float32."""
    model = Model()
    for variable in model.variables:
        variable.assign(RNG.normal(size=variable.shape))
    model.save_weights(tmp_path / "m.weights.h5")
    stored = weights.read_keras_h5(tmp_path / "m.weights.h5")
    for variable in model.variables:
        assert same_bits(stored.arrays[variable.path], variable.numpy())
    state = stored.state_dict()
    assert {key: value.shape for key, value in state.items()} == {
        key: value.shape for key, value in STATE.items() if "head" in key and value.ndim
    }
    back = weights.to_keras_arrays(state, SPECS)
    assert all(same_bits(back[path], array) for path, array in stored.arrays.items())


def test_an_optimizer_in_the_file_is_ignored(tmp_path):
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file["vars/a/kernel"] = np.ones((2, 3), np.float32)
        file["optimizer/vars/0"] = np.ones(3, np.float32)
        file["layers/a/vars/name"] = np.ones(1, np.float32)
    stored = weights.read_keras_h5(tmp_path / "m.weights.h5")
    assert list(stored.arrays) == ["a/kernel"] and stored.ignored == ["layers", "optimizer"]


def test_many_variables_and_long_texts(tmp_path):
    """More names than one B-tree node holds, and attributes beyond the 64 KiB of an object header."""
    arrays = {f"a/{index:04d}/kernel": np.full((1, 2), index, np.float32) for index in range(3000)}
    text = "KEY: value\n" * 20_000
    path = tmp_path / "m.weights.h5"
    weights.write_keras_h5(path, arrays, provenance={}, config_yaml=text)
    stored = weights.read_keras_h5(path)
    assert stored.config == text and stored.arrays.keys() == arrays.keys()
    with h5py.File(path) as file:  # h5py agrees
        assert file.attrs["detectron2_config"] == text
        assert len(file["vars/a"]) == 3000


@pytest.mark.parametrize("dtype", "f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8".split())
def test_every_dtype_of_hdf5(tmp_path, dtype):
    for shape in ((), (0, 3), (2, 3)):
        path = tmp_path / "m.weights.h5"
        value = np.ones(shape, dtype)
        weights.write_keras_h5(path, {"a": value}, provenance={}, config_yaml=None)
        np.testing.assert_array_equal(weights.read_keras_h5(path).arrays["a"], value, strict=True)


@pytest.mark.parametrize("part", [1 << 25, 1000, 4])
def test_variables_of_every_kind_in_one_file(tmp_path, monkeypatch, part):
    """Scalars and empty arrays have no place of their own in the file before they are written; large ones are
    written in parts."""
    monkeypatch.setattr(_threads, "_PART", part)
    arrays = {
        "scalar": np.array(3.0, np.float32),
        "empty": np.ones((0, 3), np.float32),
        "flags": np.array([[True, False, True]]).T,
        "kernel": np.arange(70 * 130, dtype=np.float32).reshape(70, 130).T,
    }
    path = tmp_path / "m.weights.h5"
    weights.write_keras_h5(path, arrays, provenance={}, extra_state=arrays)
    found = weights.read_keras_h5(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, strict=True)
        np.testing.assert_array_equal(found.extra_state[name], array, strict=True)


def test_the_same_arrays_make_the_same_file(tmp_path):
    write(tmp_path / "one.weights.h5")
    write(tmp_path / "other.weights.h5")
    assert (tmp_path / "one.weights.h5").read_bytes() == (tmp_path / "other.weights.h5").read_bytes()


def test_values_that_changed_since_are_not_narrowed(tmp_path):
    """A float16 original, trained further in float32, keeps its new values."""
    path = tmp_path / "m.weights.h5"
    write(path)
    with h5py.File(path, "r+") as file:
        file["vars/head/conv/kernel"][0, 0, 0, 0] = 1 + 2**-20
    found = weights.read_keras_h5(path).state_dict()["head.conv.weight"]
    assert found.dtype == np.float32 and found[0, 0, 0, 0] == 1 + 2**-20


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "m.weights.h5"
    path.write_bytes(b"precious")
    with pytest.raises(weights.WeightsError, match="complex64 cannot be written"):
        weights.write_keras_h5(path, {"a": np.ones(2, np.complex64)}, provenance={})
    monkeypatch.setattr(keras_file, "same_bits", lambda one, other: False)
    with pytest.raises(weights.WeightsError, match="reads back differently"):
        write(path)
    assert path.read_bytes() == b"precious" and os.listdir(tmp_path) == ["m.weights.h5"]


def test_comparison_notices_damage(tmp_path, monkeypatch):
    """A single bit that the disk turns over is found before the file gets its name."""
    original = keras_file.read_keras_h5

    def damaged(path):
        data = bytearray(path.read_bytes())
        data[data.rfind(STATE["head.fc1.weight"][0, :1].tobytes())] ^= 1
        path.write_bytes(data)
        return original(path)

    monkeypatch.setattr(keras_file, "read_keras_h5", damaged)
    with pytest.raises(weights.WeightsError, match="reads back differently"):
        write(tmp_path / "m.weights.h5")
    assert os.listdir(tmp_path) == []


def test_progress_counts_every_byte_twice(tmp_path):
    done = []
    arrays = {"a": np.ones(10, np.float32), "b": np.ones(3, np.float64)}
    weights.write_keras_h5(tmp_path / "m.weights.h5", arrays, provenance={}, progress=done.append)
    assert sum(done) == 2 * (40 + 24)


def test_provenance_can_come_late(tmp_path):
    path = tmp_path / "m.weights.h5"
    weights.write_keras_h5(path, {"a": np.ones(2, np.float32)}, provenance=lambda: {"source": "x.pkl"})
    assert weights.read_keras_h5(path).provenance["source"] == "x.pkl"
    before = path.read_bytes()

    def fails():
        raise weights.CheckpointError("the source is gone")

    with pytest.raises(weights.CheckpointError, match="gone"):
        weights.write_keras_h5(path, {"a": np.zeros(2, np.float32)}, provenance=fails)
    assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == before


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(weights.WeightsError, match="cannot be written"):
        write(tmp_path / "absent" / "m.weights.h5")
