"""``tf-d2 inspect`` and ``tf-d2 convert`` from the outside, on the embedded model."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np
import pytest

import weights
from tf_d2.cli import main
from weights._blocks import same_bits

DEMO = Path(str(files("tf_d2"))) / "data" / "demo"
CONFIG, CHECKPOINT = DEMO / "shapes.yaml", DEMO / "shapes.pkl"


def call(*words):
    """Exit code of the command."""
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in words])
    return leaving.value.code or 0


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("converted") / "shapes.weights.h5"
    assert call("convert", "--config-file", CONFIG, "--weights", CHECKPOINT, "--output", path) == 0
    return path


@pytest.fixture(scope="module")
def state():
    return weights.read_checkpoint(CHECKPOINT).state


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert same_bits(found[key], value), key


def test_inspect_says_which_conventions_a_detector_needs(tmp_path, capsys):
    blobs = {"conv1_w": np.zeros((4, 3, 7, 7), np.float32)}
    for more, wanted in (({}, None), ({"cls_score_w": np.zeros((3, 8), np.float32)}, "detectron")):
        (tmp_path / "model.pkl").write_bytes(pickle.dumps({"blobs": {**blobs, **more}}))
        assert call("inspect", tmp_path / "model.pkl", "--json") == 0
        assert json.loads(capsys.readouterr().out)["conventions"] == wanted


# --- convert ----------------------------------------------------------------------------------------


def test_provenance_and_config_travel(keras_file):
    with h5py.File(keras_file) as file:
        assert file.attrs["source"] == "shapes.pkl"
        assert file.attrs["source_sha256"] == weights.read_checkpoint(CHECKPOINT).sha256
        assert "NUM_CLASSES: 3" in file.attrs["detectron2_config"]
        assert file.attrs["tf_d2_version"]


def test_stock_keras_loads_the_whole_model(keras_file, state):
    from tf_d2.config import load_config
    from tf_d2.modeling import build_model

    model = build_model(load_config(CONFIG))
    model.load_weights(keras_file)
    arrays = weights.to_keras_arrays(state, model.variable_specs())
    for variable in model.variables:
        assert same_bits(variable.numpy(), np.ascontiguousarray(arrays[variable.path])), variable.path


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
def test_there_and_back(keras_file, state, tmp_path, suffix):
    back = tmp_path / f"back{suffix}"
    assert call("convert", "--weights", keras_file, "--output", back) == 0
    assert_same(weights.read_checkpoint(back).state, state)
    assert os.listdir(tmp_path) == [back.name]


def test_what_stock_keras_saves_goes_back(keras_file, state, tmp_path):
    """A model trained further in Keras carries no notes of ours; with the config it converts all the same."""
    from tf_d2.config import load_config
    from tf_d2.modeling import build_model

    model = build_model(load_config(CONFIG))
    model.load_weights(keras_file)
    model.save_weights(tmp_path / "trained.weights.h5")
    back = tmp_path / "back.pth"
    assert (
        call(
            "convert", "--config-file", CONFIG, "--weights", tmp_path / "trained.weights.h5", "--output", back
        )
        == 0
    )
    expected = {key: value for key, value in state.items() if weights.harmless_reason(key) is None}
    assert_same(weights.read_checkpoint(back).state, expected)


def test_converting_a_converted_file_keeps_its_origin(keras_file, tmp_path):
    again = tmp_path / "again.weights.h5"
    assert call("convert", "--weights", keras_file, "--output", again) == 0
    one, other = weights.read_keras_h5(keras_file), weights.read_keras_h5(again)
    assert one.provenance == other.provenance and one.config == other.config
    assert_same(other.state_dict(), one.state_dict())


def test_specs_without_a_model_are_those_of_the_model():
    from tf_d2.commands.convert import _variables
    from tf_d2.config import load_config, resolve_yaml
    from tf_d2.modeling import build_model

    assert _variables(resolve_yaml(CONFIG)).specs == build_model(load_config(CONFIG)).variable_specs()


def write_pickle(path, state):
    path.write_bytes(pickle.dumps({"model": state, "__author__": "test"}))
    return path


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


BOX = "roi_heads.box_predictor.bbox_pred.bias"


def without_a_tensor(state, folder):
    return with_state(folder, without(state, BOX)), BOX


def with_another_tensor(state, folder):
    return with_state(folder, {**state, "extra.weight": np.ones(1)}), "extra.weight"


def with_nan(state, folder):
    return with_state(folder, {**state, BOX: np.full_like(state[BOX], np.nan)}), "--allow-nonfinite"


def with_other_classes(state, folder):
    words = [*with_state(folder, state), "--opts", "MODEL.ROI_HEADS.NUM_CLASSES", "80"]
    return words, "NUM_CLASSES is 80 in the config; the file was trained with 3"


def with_code(state, folder):
    (folder / "evil.pkl").write_bytes(b"\x80\x02cos\nsystem\nX\x0b\x00\x00\x00touch owned\x85R.")
    return ["--config-file", CONFIG, "--weights", folder / "evil.pkl"], "os.system"


def with_code_in_the_config(state, folder):
    (folder / "evil.yaml").write_text("MODEL: !!python/object/apply:os.system ['touch owned']\n")
    return ["--config-file", folder / "evil.yaml", "--weights", CHECKPOINT], "tag"


def with_code_in_the_config_inside(state, folder):
    """The config that travels in a file is as little trusted as any other."""
    path = folder / "evil.weights.h5"
    arrays = {"a": np.ones(1, np.float32)}
    weights.write_keras_h5(
        path, arrays, provenance={}, config_yaml="MODEL: !!python/object/apply:os.system ['touch owned']"
    )
    return ["--weights", path], "tag"


def without_config(state, folder):
    return ["--weights", CHECKPOINT], "give it with --config-file"


def without_file(state, folder):
    return ["--config-file", CONFIG, "--weights", folder / "absent.pkl"], "absent.pkl"


def with_opts_alone(state, folder):
    return ["--weights", CHECKPOINT, "--opts", "A", "1"], "--config-file"


def with_state(folder, state):
    return ["--config-file", CONFIG, "--weights", write_pickle(folder / "in.pkl", state)]


MISTAKES = [
    without_a_tensor,
    with_another_tensor,
    with_nan,
    with_other_classes,
    with_code,
    with_code_in_the_config,
    with_code_in_the_config_inside,
    without_config,
    without_file,
    with_opts_alone,
]


@pytest.mark.parametrize("make", MISTAKES)
def test_errors_of_convert(make, state, tmp_path, capsys, monkeypatch):
    """Exit code 2, one message that names the cause, no traceback, nothing written."""
    monkeypatch.chdir(tmp_path)
    arguments, message = make(state, tmp_path)
    before = sorted(os.listdir(tmp_path))
    assert call("convert", *arguments, "--output", tmp_path / "out.weights.h5") == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("name", ["out.h5", "out.txt", "absent/out.weights.h5", "in.pkl"])
def test_bad_outputs(name, state, tmp_path, capsys):
    source = write_pickle(tmp_path / "in.pkl", state)
    content = source.read_bytes()
    assert call("convert", "--config-file", CONFIG, "--weights", source, "--output", tmp_path / name) == 2
    assert "out" in capsys.readouterr().err
    assert source.read_bytes() == content and os.listdir(tmp_path) == ["in.pkl"]


def test_nan_may_be_allowed(state, tmp_path):
    source = write_pickle(tmp_path / "in.pkl", {**state, BOX: np.full_like(state[BOX], np.nan)})
    with pytest.warns(UserWarning, match="12 NaN"):
        code = call(
            *("convert", "--config-file", CONFIG, "--weights", source),
            *("--output", tmp_path / "out.weights.h5", "--allow-nonfinite"),
        )
    assert code == 0
    assert np.isnan(weights.read_checkpoint(tmp_path / "out.weights.h5").state[BOX]).all()


def test_backbone_names_need_a_config(tmp_path, capsys):
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"conv1_w": np.ones((4, 3, 7, 7), np.float32)}, 2))
    assert call("convert", "--weights", path, "--output", tmp_path / "out.pth") == 2
    assert "must be matched" in capsys.readouterr().err


# --- inspect ----------------------------------------------------------------------------------------


def test_inspect(capsys, state):
    assert call("inspect", CHECKPOINT) == 0
    shown = capsys.readouterr().out
    assert "format: detectron2-pkl" in shown
    assert "Mask R-CNN, ResNet-50 FPN, BatchNorm, MODEL.ROI_HEADS.NUM_CLASSES 3" in shown
    assert "a counter of training steps" in shown
    for key in state:
        assert key in shown


def test_inspect_json(capsys, state):
    assert call("inspect", CHECKPOINT, "--json", "--filter", "box_predictor") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "detectron2-pkl" and found["tensor_count"] == len(state)
    rows = {row["name"]: row for row in found["tensors"]}
    assert rows.keys() == {key for key in state if "box_predictor" in key}
    assert rows[BOX]["shape"] == [12] and rows[BOX]["dtype"] == "float32"
    assert rows[BOX]["minimum"] == float(state[BOX].min()) and rows[BOX]["nan"] == 0


def test_inspect_counts_nan(capsys, tmp_path, state):
    path = write_pickle(tmp_path / "x.pkl", {BOX: np.array([np.nan, np.inf, 1.0])})
    assert call("inspect", path) == 0
    assert "2 NaN or infinite values" in capsys.readouterr().out


def test_inspect_a_converted_file(keras_file, capsys):
    assert call("inspect", keras_file, "--filter", "^$") == 0
    shown = capsys.readouterr().out
    assert "format: keras-h5" in shown and "has config: True" in shown and "source (shapes.pkl)" in shown


def test_diff(capsys, tmp_path, state, keras_file):
    assert call("inspect", "--diff", CHECKPOINT, keras_file) == 0
    assert f"{len(state)} tensors equal bit by bit, 0 differ" in capsys.readouterr().out
    changed = write_pickle(tmp_path / "x.pkl", {**without(state, BOX), "new": np.ones(2)})
    assert call("inspect", "--diff", CHECKPOINT, changed) == 1
    assert "2 differ" in capsys.readouterr().out
    assert call("inspect", "--diff", CHECKPOINT, changed, "--json") == 1
    rows = {row["name"]: row["status"] for row in json.loads(capsys.readouterr().out)["different"]}
    assert rows == {BOX: "only A", "new": "only B"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.pkl"], "no such file"),
        ([CONFIG], "YAML text, so a configuration"),
        ([CHECKPOINT, CHECKPOINT], "one file, and two with --diff"),
        ([CHECKPOINT, "--diff"], "one file, and two with --diff"),
        ([CHECKPOINT, "--filter", "("], "not a regular expression"),
        ([CHECKPOINT, "--ema"], "no EMA weights"),
    ],
)
def test_errors_of_inspect(words, message, capsys):
    assert call("inspect", *words) == 2
    shown = capsys.readouterr()
    assert message in shown.err and "Traceback" not in shown.err and shown.out == ""


def test_a_truncated_file_is_one_line(tmp_path, capsys):
    shutil.copy(CHECKPOINT, tmp_path / "x.pkl")
    with open(tmp_path / "x.pkl", "r+b") as file:
        file.truncate(1_000_000)
    assert call("inspect", tmp_path / "x.pkl") == 2
    shown = capsys.readouterr().err.strip()
    assert "truncated" in shown and "\n" not in shown


def test_nothing_but_the_result_is_printed(tmp_path):
    """TensorFlow has much to say when it starts, in a process of its own."""
    words = ["--config-file", CONFIG, "--weights", CHECKPOINT]
    output = tmp_path / "m.weights.h5"
    command = [sys.executable, "-m", "tf_d2.cli", "convert", *words, "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert (done.stdout, done.stderr) == (f"{output}: 307 tensors, read back and equal bit by bit\n", "")
