"""State dicts inside wrappers and under prefixes: found where one reading fits, named where several do."""

import collections
import datetime
import enum
import pathlib
import pickle
import warnings

import numpy as np
import pytest
import torch

import weights
from weights import CheckpointError, CheckpointNotice

NAMES = (
    "backbone.bottom_up.stem.conv1.weight",
    "proposal_generator.rpn_head.conv.bias",
    "roi_heads.box_head.fc1.weight",
)
PLAIN = {name: torch.full((2, 2), float(i)) for i, name in enumerate(NAMES)}


def save(path, value, *, torch_file=True):
    if torch_file:
        torch.save(value, path)
    else:
        path.write_bytes(pickle.dumps(value, 2))
    return path


def renamed(prefix: str) -> dict:
    return {prefix + name: value for name, value in PLAIN.items()}


def same(checkpoint: weights.Checkpoint) -> bool:
    return checkpoint.state.keys() == PLAIN.keys() and all(
        np.array_equal(value, PLAIN[name].numpy()) for name, value in checkpoint.state.items()
    )


AVERAGE = {name: value + 1 for name, value in PLAIN.items()}
OPTIMIZER = {
    "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}},
    "param_groups": [{"lr": 0.1}],
}
WRAPPED = {
    "state_dict": ({"state_dict": PLAIN, "epoch": 3}, "entry 'state_dict'"),
    "model_state_dict": ({"model_state_dict": PLAIN, "optimizer_state_dict": OPTIMIZER}, "model_state_dict"),
    "model_state": ({"model_state": PLAIN}, "model_state"),
    "DeepSpeed": ({"module": PLAIN, "optimizer": OPTIMIZER, "param_shapes": [torch.Size([1])]}, "entry 'module'"),
    "net": ({"net": PLAIN}, "entry 'net'"),
    "a name of one's own": ({"detector_weights": PLAIN, "epoch": 1}, "detector_weights"),
    "model in model": ({"model": {"model": PLAIN}}, "entry 'model.model'"),
    "state_dict in model": ({"model": {"state_dict": PLAIN, "epoch": 1}}, "entry 'model.state_dict'"),
    "model.": (renamed("model."), "begin with 'model.'"),
    "detector. in model": ({"model": renamed("detector.")}, "begin with 'detector.'"),
    "Lightning": ({"state_dict": renamed("model."), "global_step": 7, "optimizer_states": [OPTIMIZER]}, "'model.'"),
    "torch.compile": ({"model": renamed("_orig_mod.")}, "torch.compile"),
    "torch.compile of a part": (
        {name.replace("backbone.", "backbone._orig_mod."): value for name, value in PLAIN.items()},
        "torch.compile",
    ),
    "compiled and distributed": (renamed("module._orig_mod."), "torch.compile"),
    "an average beside it": ({"state_dict": PLAIN, "ema_state_dict": AVERAGE}, "entry 'state_dict'"),
    "a discriminator beside it": ({"generator": PLAIN, "critic": {"conv.weight": torch.ones(1)}}, "entry 'generator'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_the_one_reading_is_taken_and_said(name, tmp_path):
    value, message = WRAPPED[name]
    with pytest.warns(CheckpointNotice) as told:
        found = weights.read_checkpoint(save(tmp_path / "a.pth", value))
    assert same(found)
    assert len(told) == 1 and message in str(told[0].message) and found.notes


@pytest.mark.parametrize("wrapper", ["state_dict", "net"])
def test_wrapped_pickles_of_arrays(wrapper, tmp_path):
    arrays = {name: value.numpy() for name, value in PLAIN.items()}
    with pytest.warns(CheckpointNotice, match=wrapper):
        assert same(weights.read_checkpoint(save(tmp_path / "a.pkl", {wrapper: arrays}, torch_file=False)))


def test_what_detectron2_reads_is_read_without_a_note(tmp_path):
    for value in (
        PLAIN,
        {"model": PLAIN, "iteration": 5},
        {"model": PLAIN, "teacher": PLAIN},
        renamed("module."),
    ):
        assert same(weights.read_checkpoint(save(tmp_path / "a.pth", value)))


SEVERAL = {
    "two prefixes": ({**renamed("modelTeacher."), **renamed("modelStudent.")}, "modelTeacher."),
    "two entries": ({"teacher": PLAIN, "student": AVERAGE}, "teacher"),
    "two prefixes in an entry": ({"model": {**renamed("a."), **renamed("b.")}}, "a."),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_models_are_named(name, tmp_path):
    value, prefix = SEVERAL[name]
    path = save(tmp_path / "a.pth", value)
    with pytest.raises(CheckpointError, match=rf"holds 2 models: .*{prefix}.*--prefix"):
        weights.read_checkpoint(path)
    for form in (prefix, prefix.rstrip("."), prefix.rstrip(".") + "."):
        with pytest.warns(CheckpointNotice, match="--prefix"):
            assert same(weights.read_checkpoint(path, prefix=form))
    with pytest.raises(CheckpointError, match="--prefix nobody: no state dict"):
        weights.read_checkpoint(path, prefix="nobody")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointNotice)
        assert len(weights.read_checkpoint(path, several=True).state) == 6


def test_a_prefix_names_an_average(tmp_path):
    path = save(tmp_path / "a.pth", {"model": AVERAGE, "ema_state_dict": PLAIN})
    with pytest.warns(CheckpointNotice):
        assert same(weights.read_checkpoint(path, prefix="ema_state_dict"))


def test_what_is_beside_the_model_keeps_its_name(tmp_path):
    """Left-over tensors do not hinder the reading: converting names them."""
    with pytest.warns(CheckpointNotice):
        found = weights.read_checkpoint(
            save(tmp_path / "a.pth", {**renamed("model."), "critic.w": torch.ones(1)})
        )
    assert found.state.keys() == {*PLAIN, "critic.w"}


def test_names_that_would_become_one(tmp_path):
    both = {**renamed("model."), NAMES[1]: torch.ones(1)}
    with pytest.raises(CheckpointError, match="two tensors would be called"):
        weights.read_checkpoint(save(tmp_path / "a.pth", both))


# --- objects beside the state dict ------------------------------------------------------------------


class Color(enum.Enum):
    RED = 1


class Anything:
    def __init__(self):
        self.values = collections.deque([1, {"a": {1, 2}}, (3, 4)])
        self.owner = self


def optimizer() -> torch.optim.Optimizer:
    """One that has made a step, so that it keeps tensors of its own."""
    parameter = torch.nn.Parameter(torch.ones(2))
    made = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    made.step()
    return made


BESIDE = {
    "a class of one's own": Anything(),
    "an enum": Color.RED,
    "a path": pathlib.PurePosixPath("/a/b"),
    "a date": datetime.date(2026, 1, 2),
    "a deque": collections.deque([1, 2]),
    "a named tuple": collections.namedtuple,
    "a slice, a range, a complex": [slice(1, 2), range(3), 1j, frozenset({1, (2, 3)})],
    "a numpy generator": np.random.default_rng(0),
    "a legacy numpy state": np.random.RandomState(0),
    "numpy of objects": np.array([None, "a"], object),
    "numpy of text": np.array(["a", "bc"]),
    "numpy of dates": np.array(["2026-01-01"], "datetime64[D]"),
    "numpy of records": np.zeros(2, [("a", "f4"), ("b", "i4")]),
    "big-endian numpy": np.arange(3, dtype=">f4"),
    "a numpy type": np.float32,
    "an optimizer": optimizer(),
    "a module": torch.nn.Linear(2, 2),
    "a sparse tensor": torch.eye(2).to_sparse(),
    "a dictionary with odd keys": {(1, 2): "a", torch.Size([1]): 2, None: 3},
    "a function": pathlib.PurePosixPath.joinpath,
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", BESIDE)
def test_objects_beside_the_weights_are_placeholders(name, protocol, tmp_path):
    path = tmp_path / "a.pth"
    torch.save(
        {"model": PLAIN, "extra": BESIDE[name], "iteration": np.int64(99)},
        path,
        pickle_protocol=max(protocol, 2),
    )
    found = weights.read_checkpoint(path)
    assert same(found) and found.ignored == ["extra"] and found.iteration == 99
    if not isinstance(BESIDE[name], (torch.nn.Module, torch.optim.Optimizer, torch.Tensor)):
        arrays = {key: value.numpy() for key, value in PLAIN.items()}
        try:
            data = pickle.dumps({"model": arrays, "extra": BESIDE[name]}, protocol)
        except TypeError:  # protocol 0 cannot hold it
            return
        (tmp_path / "a.pkl").write_bytes(data)
        if protocol:
            assert same(weights.read_checkpoint(tmp_path / "a.pkl"))


@pytest.mark.parametrize(
    "name", [name for name in BESIDE if name not in ("a dictionary with odd keys", "a module")]
)
def test_inside_the_state_dict_they_stay_an_error(name, tmp_path):
    path = save(tmp_path / "a.pth", {"model": {**PLAIN, "extra": BESIDE[name]}})
    with pytest.raises(CheckpointError, match="extra"):
        weights.read_checkpoint(path)


def test_a_whole_model_is_named(tmp_path):
    for value in (torch.nn.Linear(2, 2), {"model": torch.nn.Linear(2, 2)}):
        with pytest.raises(CheckpointError, match=r"torch.nn.modules.linear.Linear.*state_dict\(\)"):
            weights.read_checkpoint(save(tmp_path / "a.pth", value))


def test_tensors_with_attributes_of_their_own(tmp_path):
    tensor = torch.full((2, 2), 5.0)
    tensor.note = "mine"  # type: ignore[attr-defined]
    found = weights.read_checkpoint(save(tmp_path / "a.pth", {"model": {**PLAIN, "x": tensor}}))
    assert (found.state["x"] == 5).all()


@pytest.mark.parametrize(
    "name", ["os.system", "subprocess.Popen", "builtins.eval", "importlib.import_module"]
)
def test_what_only_a_program_needs_is_refused_even_beside_the_weights(name, tmp_path):
    module, function = name.rsplit(".", 1)
    evil = f"c{module}\n{function}\n(S'touch owned'\ntR".encode()
    good = pickle.dumps({"model": {key: value.numpy() for key, value in PLAIN.items()}}, 2)
    (tmp_path / "a.pkl").write_bytes(good[:-1] + b"X\x05\x00\x00\x00extra" + evil + b"s.")
    with pytest.raises(CheckpointError, match=f"'{name}'.*Nothing was executed"):
        weights.read_checkpoint(tmp_path / "a.pkl")
