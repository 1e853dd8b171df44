"""examples/vovnet.py, a part added from outside, against an independent PyTorch implementation."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml

import tf_d2
import weights
from parity.core import extensions
from parity.core.units import units
from parity.core.units.backbones import BACKBONES
from tf_d2.config import ConfigError, load_config_text, resolve_yaml_text
from tf_d2.config.defaults import IGNORED, INFERENCE, KEYS, OPTIONAL, SECTIONS
from tf_d2.config.table import PARTS
from tf_d2.loading import load_weights
from tf_d2.modeling import build_model
from tf_d2.stages import run_op, stage_array

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "vovnet.py"
STAGES = ["stage2", "stage3", "stage4", "stage5"]


@pytest.fixture(scope="module", autouse=True)
def vovnet():
    """The example, imported as a user would; what it made known is taken back afterwards."""
    tables = [INFERENCE, IGNORED, KEYS, SECTIONS, *PARTS.values()]
    saved, optional = [table.copy() for table in tables], list(OPTIONAL)
    spec = importlib.util.spec_from_file_location("vovnet", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["vovnet"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["vovnet"]
    for table, copy in zip(tables, saved, strict=True):
        table.clear()
        table.update(copy)
    OPTIONAL[:] = optional


def config_text(body, **changes):
    """A proposal network, for its backbone."""
    model = {
        "META_ARCHITECTURE": "ProposalNetwork",
        "BACKBONE": {"NAME": "build_vovnet_fpn_backbone", "FREEZE_AT": 0},
        "VOVNET": {"CONV_BODY": body, "OUT_FEATURES": STAGES, "OUT_CHANNELS": 256, **changes},
        "FPN": {"IN_FEATURES": STAGES, "OUT_CHANNELS": 32},
        "ANCHOR_GENERATOR": {"SIZES": [[32], [64], [128], [256], [512]]},
        "RPN": {"IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"]},
    }
    return yaml.safe_dump({"MODEL": model})


def torch_key(path):
    """The key in a checkpoint of the project: a slash stands before "conv" and "norm"."""
    return re.sub(r"\.(conv|norm)\.", r"/\1.", weights.path_to_key(path))


@pytest.mark.parametrize(("body", "convolutions", "blocks"), [("V-19-eSE", 3, [1, 1, 1, 1])])
def test_features_are_those_of_torch(body, convolutions, blocks, tmp_path):
    model = build_model(load_config_text(config_text(body)), "float64")
    shapes = {}
    for path, shape in model.variable_specs().items():
        # [k, k, in, out] -> [out, in, k, k]
        shapes[torch_key(path)] = [shape[3], shape[2], *shape[:2]] if len(shape) == 4 else list(shape)
    assert "backbone.bottom_up.stage2.OSA2_1.layers.0.OSA2_1_0/conv.weight" in shapes
    assert "backbone.bottom_up.stem.stem_1/norm.running_var" in shapes
    assert "backbone.bottom_up.stage5.OSA5_1.ese.fc.bias" in shapes
    job, out = tmp_path / "job.json", tmp_path / "out.npz"
    size = [64, 96]
    job.write_text(
        json.dumps({"shapes": shapes, "size": size, "blocks": blocks, "convolutions": convolutions})
    )
    subprocess.run([sys.executable, HERE / "vovnet_torch.py", job, out], check=True, timeout=300)
    with np.load(out) as archive:
        found = dict(archive)
    state = {k.removeprefix("state/"): v for k, v in found.items() if k.startswith("state/")}
    weights.write_detectron2_pkl(tmp_path / "model.pkl", state)
    load_weights(model, tmp_path / "model.pkl")
    stages = {}
    model.backbone_features(tf.constant(np.moveaxis(found["image"], 1, -1)), stages)
    wanted = {k.removeprefix("features/"): v for k, v in found.items() if k.startswith("features/")}
    assert set(wanted) == set(stages) and len(wanted) == 10
    for name, value in wanted.items():
        got = np.moveaxis(stages[name].numpy(), -1, 1)
        assert np.linalg.norm(got - value) < 1e-12 * np.linalg.norm(value), name


def test_v39_has_the_published_blocks(vovnet):
    model = build_model(load_config_text(config_text("V-39-eSE")))
    paths = list(model.variable_specs())
    assert len({re.findall(r"OSA\d_\d", p)[0] for p in paths if "OSA" in p}) == 6
    assert sum(p.endswith("/conv/kernel") for p in paths if "bottom_up" in p) == 3 + 6 * 6
    assert vovnet.VoVNetConfig("V-39-eSE", ("stage2", "stage5"), "BN").strides == {"stage2": 4, "stage5": 32}


def test_pooling_counts_the_last_incomplete_window(vovnet):
    for size, expected in ((6, [2, 4, 5]), (7, [2, 4, 6])):
        x = tf.reshape(tf.range(size, dtype=tf.float32), [1, size, 1, 1]) + tf.zeros([1, size, size, 1])
        assert vovnet.Pooling("p")(x)[0, :, 0, 0].numpy().tolist() == expected


def test_a_predictor_and_its_yaml(tmp_path):
    text = config_text("V-19-eSE", NORM="BN")
    resolved = resolve_yaml_text(text)
    assert "VOVNET" in resolved and load_config_text(resolved) == load_config_text(text)
    model = build_model(load_config_text(text))
    state = {
        weights.path_to_key(p): np.zeros((s[3], s[2], *s[:2]) if len(s) == 4 else s, np.float32)
        for p, s in model.variable_specs().items()
    }
    weights.write_detectron2_pkl(tmp_path / "model.pkl", state)
    (tmp_path / "config.yaml").write_text(text)
    predictor = tf_d2.Predictor(
        tmp_path / "config.yaml", tmp_path / "model.pkl", opts=["INPUT.MIN_SIZE_TEST", 64]
    )
    trace = predictor.trace(np.zeros((64, 64, 3), np.uint8))
    assert trace["backbone.bottom_up/stage5"].shape == (1, 1024, 2, 2)


def test_errors_of_its_keys():
    for changes, message in (({"NORM": "IN"}, "MODEL.VOVNET.NORM"), ({"CONV_BODY": "V-1"}, "'V-39-eSE'")):
        with pytest.raises(ConfigError, match=message):
            load_config_text(config_text("V-19-eSE", **changes))
    assert "MODEL.VOVNET." in OPTIONAL and KEYS["MODEL.VOVNET.NORM"] == "FrozenBN"


def test_every_unit_of_its_parity_file_computes_what_the_trace_holds(tmp_path, monkeypatch):
    """The units run one by one on the trace's own arrays."""
    monkeypatch.setattr(extensions, "_loaded", {})
    monkeypatch.setenv("PARITY_EXTEND", str(EXAMPLE.with_name("vovnet_parity.py")))
    text = config_text("V-19-eSE")
    model = build_model(load_config_text(text))
    generator = np.random.default_rng(0)
    arrays = {
        p: np.abs(generator.normal(0, 0.05, s)).astype(np.float32) for p, s in model.variable_specs().items()
    }
    model.assign(arrays)
    stages = {}
    x = tf.constant(generator.normal(0, 1, (1, 64, 64, 3)).astype(np.float32))
    model.backbone_features(x, stages)
    trace = {f"steps/{name}": stage_array(name, value.numpy()) for name, value in stages.items()}
    trace["steps/input"] = stage_array("input", x.numpy())
    config = yaml.safe_load(resolve_yaml_text(text))
    before = dict(BACKBONES)
    try:
        table = units(config)
    finally:
        BACKBONES.clear()
        BACKBONES.update(before)
    computed = set()
    for unit in table:
        if not {*unit.inputs, *unit.outputs} <= trace.keys():
            continue
        results = run_op(model, unit.op, unit.args, [trace[name] for name in unit.inputs])
        for name, got in zip(unit.outputs, results, strict=True):
            np.testing.assert_allclose(got, trace[name], rtol=1e-5, atol=1e-6, err_msg=name)
            computed.add(name)
    assert computed == trace.keys() - {"steps/input"}
