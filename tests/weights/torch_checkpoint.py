"""Every format, written by the program that users have, read by ours, compared bit by bit."""

import copyreg
import hashlib
import io
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_safetensors

import weights
from weights._blocks import same_bits

RNG = np.random.default_rng(0)
STATE = {
    "backbone.conv.weight": RNG.normal(size=(4, 3, 2, 2)).astype(np.float32),
    "backbone.conv.bias": RNG.normal(size=4).astype(np.float16),
    "backbone.norm.running_mean": RNG.normal(size=4),
    "backbone.norm.num_batches_tracked": np.array(12, np.int64),
    "flags": np.array([True, False]),
    "empty.weight": np.zeros((0, 3), np.float32),
}


def tensors(state=STATE):
    return {key: torch.from_numpy(value.copy()) for key, value in state.items()}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert same_bits(found[key], value), key


def save(path, value, legacy=False):
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_zoo_pickle(tmp_path, protocol):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": STATE, "__author__": "someone", "iteration": 5}, protocol))
    found = weights.read_checkpoint(path)
    assert_same(found.state, STATE)
    assert (found.format, found.author, found.iteration) == ("detectron2-pkl", "someone", 5)
    assert not found.matching_heuristics and found.ignored == []
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("protocol", range(6))
def test_large_arrays_of_every_protocol(tmp_path, protocol):
    """Protocols 0 to 2 write the data as text, protocol 0 all of an array on one line, with escapes."""
    state = {
        "a.weight": np.random.default_rng(0).normal(size=(300, 500)).astype(np.float32),
        "a.zeros": np.zeros((300, 500), np.float32),
        "a.bytes": np.arange(1 << 18).astype(np.uint8),
    }
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "x" * 70_000}, protocol))
    assert_same(weights.read_checkpoint(path).state, state)


def test_zoo_pickle_that_needs_matching(tmp_path):
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": STATE, "__author__": "torchvision", "matching_heuristics": True}))
    assert weights.read_checkpoint(path).matching_heuristics


def test_pickle_of_fortran_order_and_views(tmp_path):
    state = {"a.f": np.asfortranarray(STATE["backbone.conv.weight"]), "a.t": STATE["backbone.conv.weight"].T}
    path = tmp_path / "x.pkl"
    for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps({"model": state, "__author__": "x"}, protocol))
        assert_same(weights.read_checkpoint(path).state, state)


def test_pickle_of_torch_tensors(tmp_path):
    """Zoo files may hold tensors; plain pickle nests one torch file per storage."""
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"model": tensors(), "__author__": "x"}))
    assert_same(weights.read_checkpoint(path).state, STATE)


def python2_string(value, protocol):
    if protocol == 0:
        return b"S" + repr(value)[1:].encode("ascii") + b"\n"  # as bytes, without the b
    return b"T" + len(value).to_bytes(4, "little") + value


@pytest.mark.parametrize("protocol", [0, 2])
def test_pickle_of_python_2(tmp_path, protocol):
    """Python 2 wrote bytes and text alike as strings; detectron2 decodes them as latin-1."""

    class Pickler(pickle._Pickler):
        dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

        def save_bytes(self, value):
            self.write(python2_string(value, protocol))
            self.memoize(value)

        def save_text(self, value):
            self.write(python2_string(value.encode("latin-1"), protocol))
            self.memoize(value)

        dispatch[bytes] = save_bytes
        dispatch[str] = save_text

    buffer = io.BytesIO()
    large = {
        "res2_0_branch2a_w": RNG.normal(size=(30_000,)).astype(np.float32),
        "pred_b": np.ones(2, np.float32),
    }
    Pickler(buffer, protocol).dump({"blobs": large, "cfg": "caf\xe9"})
    assert pickle.loads(buffer.getvalue(), encoding="latin1")["cfg"] == "caf\xe9"
    path = tmp_path / "x.pkl"
    path.write_bytes(buffer.getvalue())
    found = weights.read_checkpoint(path)
    assert found.format == "caffe2-pkl" and found.ignored == ["cfg"]
    assert same_bits(found.state["res2.0.conv1.weight"], large["res2_0_branch2a_w"])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [True, False])
def test_pth(tmp_path, legacy, wrap):
    path = save(tmp_path / "m.pth", {"model": tensors(), "iteration": 9} if wrap else tensors(), legacy)
    found = weights.read_checkpoint(path)
    assert_same(found.state, STATE)
    assert found.format == ("torch-legacy" if legacy else "torch-zip")
    assert found.iteration == (9 if wrap else None)


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 2)
        self.norm = torch.nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)).sum()


@pytest.mark.parametrize("legacy", [False, True])
def test_training_checkpoints(tmp_path, legacy):
    """What DefaultTrainer and plain_train_net leave: a model with metadata, optimizer, scheduler, hooks."""
    model = Tiny()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(2, 3, 5, 5)).backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    trainer = {
        "iteration": 7,
        "hooks": {"best": {"metric": 0.5}},
        "_trainer": {"optimizer": optimizer.state_dict()},
    }
    value = {"model": model.state_dict(), "trainer": trainer, "scheduler": scheduler.state_dict()}
    found = weights.read_checkpoint(save(tmp_path / "model_final.pth", value, legacy))
    assert_same(found.state, {key: value.numpy() for key, value in model.state_dict().items()})
    assert found.iteration == 7
    assert found.ignored == ["scheduler", "trainer"]


def test_parameters_and_module_prefix(tmp_path):
    state = {
        f"module.{key}": torch.nn.Parameter(value)
        for key, value in tensors().items()
        if value.is_floating_point()
    }
    found = weights.read_checkpoint(save(tmp_path / "m.pth", {"model": state}))
    assert_same(found.state, {key: value for key, value in STATE.items() if value.dtype.kind == "f"})
    mixed = {**state, "other": torch.ones(1)}
    with pytest.warns(weights.CheckpointNotice, match=r"its names begin with 'module\.'"):
        assert "backbone.conv.weight" in weights.read_checkpoint(save(tmp_path / "n.pth", mixed)).state


@pytest.mark.parametrize("legacy", [False, True])
def test_views_strides_and_shared_storages(tmp_path, legacy):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {
        "all": base,
        "row": base[2],
        "column": base[:, 3],
        "transposed": base.T,
        "sliced": base[1:3, ::2],
        "expanded": torch.ones(3, 1).expand(3, 5),
        "twice": base,
        "scalar": base[1, 1],
    }
    found = weights.read_checkpoint(save(tmp_path / "m.pth", state, legacy)).state
    assert list(found) == list(state)
    for key, value in state.items():
        np.testing.assert_array_equal(found[key], value.numpy(), strict=True)


@pytest.mark.parametrize(
    "name", "float64 float32 float16 int64 int32 int16 int8 uint8 bool complex64".split()
)
@pytest.mark.parametrize("legacy", [False, True])
def test_every_torch_dtype(tmp_path, name, legacy):
    value = torch.arange(5).to(getattr(torch, name))
    found = weights.read_checkpoint(save(tmp_path / "m.pth", {"x": value}, legacy)).state
    np.testing.assert_array_equal(found["x"], value.numpy(), strict=True)


@pytest.mark.parametrize("name", ["uint16", "uint32", "uint64"])
def test_newer_torch_dtypes(tmp_path, name):
    value = torch.arange(5).to(getattr(torch, name))
    np.testing.assert_array_equal(
        weights.read_checkpoint(save(tmp_path / "m.pth", {"x": value})).state["x"], value.numpy(), strict=True
    )


def test_bfloat16_is_widened_exactly(tmp_path):
    value = torch.tensor([1.5, -3.25, 1e-30, float("inf"), 3.0e38, -0.0]).to(torch.bfloat16)
    for path in (save(tmp_path / "a.pth", {"x": value}), save(tmp_path / "b.pth", {"x": value}, legacy=True)):
        found = weights.read_checkpoint(path).state["x"]
        assert same_bits(found, value.float().numpy())


@pytest.mark.parametrize("ema", [False, True])
def test_ema(tmp_path, ema):
    average = {"module.backbone.conv.weight": torch.full((4, 3, 2, 2), 7.0)}
    path = save(tmp_path / "m.pth", {"model": tensors(), "ema_state": average})
    found = weights.read_checkpoint(path, ema=ema)
    assert (found.state["backbone.conv.weight"] == 7).all() == ema
    assert found.state.keys() == STATE.keys()
    assert found.ignored == (["ema_state"] if ema else ["ema_state (EMA weights; --ema takes them)"])


def test_ema_that_is_absent_or_of_another_model(tmp_path):
    with pytest.raises(weights.CheckpointError, match="no EMA weights"):
        weights.read_checkpoint(save(tmp_path / "m.pth", {"model": tensors()}), ema=True)
    path = save(tmp_path / "n.pth", {"model": tensors(), "model_ema": {"state_dict": {"zz": torch.ones(1)}}})
    with pytest.raises(weights.CheckpointError, match="zz differ"):
        weights.read_checkpoint(path, ema=True)


def test_safetensors(tmp_path):
    save_safetensors(STATE, tmp_path / "m.safetensors", metadata={"format": "np"})
    found = weights.read_checkpoint(tmp_path / "m.safetensors")
    assert found.format == "safetensors" and found.metadata == {"format": "np"}
    assert {key: value.tobytes() for key, value in found.state.items()} == {
        key: value.tobytes() for key, value in STATE.items()
    }


def test_safetensors_bfloat16(tmp_path):
    from safetensors.torch import save_file

    value = torch.tensor([1.5, -2.0]).to(torch.bfloat16)
    save_file({"x": value}, tmp_path / "m.safetensors")
    assert same_bits(weights.read_checkpoint(tmp_path / "m.safetensors").state["x"], value.float().numpy())


def test_pycls(tmp_path):
    state = {"stem.conv.weight": torch.ones(2), "stem.bn.num_batches_tracked": torch.tensor(3)}
    path = save(tmp_path / "x.pyth", {"epoch": 3, "model_state": state, "cfg": "A: 1", "optimizer_state": {}})
    found = weights.read_checkpoint(path)
    assert (found.format, found.author, found.matching_heuristics) == ("pycls", "pycls", True)
    assert list(found.state) == ["stem.conv.weight"]
    assert found.ignored == ["cfg", "epoch", "optimizer_state"]


class Node(dict):
    """Stands for detectron2's CfgNode, which training scripts leave in their checkpoints."""


def test_caffe2_weights_in_a_zoo_file(tmp_path):
    """detectron2 renames blobs whenever the author is Caffe2 and matching is on."""
    path = tmp_path / "x.pkl"
    value = {"model": {"conv1_w": np.ones(2)}, "__author__": "Caffe2", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(value))
    assert list(weights.read_checkpoint(path).state) == ["stem.conv1.weight"]


def test_an_optimizer_is_not_read(tmp_path):
    """Damage in what inference does not need does not matter, nor does its size."""
    path = save(
        tmp_path / "m.pth", {"model": {"a": torch.ones(50)}, "optimizer": {"state": torch.full((50,), 7.0)}}
    )
    data = path.read_bytes()
    path.write_bytes(data.replace(np.full(50, 7, np.float32).tobytes(), np.full(50, 8, np.float32).tobytes()))
    assert path.read_bytes() != data
    assert weights.read_checkpoint(path).state["a"].sum() == 50
    path.write_bytes(data.replace(np.ones(50, np.float32).tobytes(), np.full(50, 8, np.float32).tobytes()))
    with pytest.raises(weights.CheckpointError, match="checksum"):
        weights.read_checkpoint(path)


def test_known_configuration_objects_become_placeholders(tmp_path):
    Node.__module__, Node.__qualname__ = "yacs.config", "CfgNode"

    class Pickler(pickle._Pickler):
        def save_global(self, value, name=None):
            if value is Node:
                self.write(b"cyacs.config\nCfgNode\n")
            else:
                super().save_global(value, name)

        dispatch = {**pickle._Pickler.dispatch, type: save_global}  # noqa: RUF012

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"model": STATE, "__author__": "x", "cfg": Node(a=1)})
    (tmp_path / "m.pkl").write_bytes(buffer.getvalue())
    found = weights.read_checkpoint(tmp_path / "m.pkl")
    assert found.ignored == ["cfg"]
    assert_same(found.state, STATE)


def test_arrays_are_views_of_the_file_and_read_only(tmp_path):
    found = weights.read_checkpoint(save(tmp_path / "m.pth", tensors())).state["backbone.conv.weight"]
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1
    assert not found.flags.owndata


def test_pickle_never_uses_python_pickling(tmp_path, monkeypatch):
    """Reading works with pickle.loads and the copyreg registry out of order."""
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps({"model": STATE, "__author__": "x"}))
    monkeypatch.setattr(pickle, "Unpickler", None)
    monkeypatch.setattr(pickle, "load", None)
    monkeypatch.setattr(copyreg, "_inverted_registry", None)
    assert_same(weights.read_checkpoint(path).state, STATE)
