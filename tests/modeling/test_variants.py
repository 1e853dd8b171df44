"""Small models of every kind against what the real detectron2 computed for them: each stage and the answer.

The variants, their weights (drawn from a generator seeded by each key) and detectron2's results are those of
tests/parity/variants.py; of a stage the results hold its length and its product with a fixed vector.
"""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml

import tf_d2
import weights
from tf_d2.config import load_config_text
from tf_d2.modeling import build_model

TESTS = Path(__file__).parents[1]


def load_variants():
    spec = importlib.util.spec_from_file_location("variants", TESTS / "parity" / "variants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VARIANTS = load_variants()
NAMES = [name for name in VARIANTS.VARIANTS if name not in VARIANTS.NOT_RECORDED]


@pytest.fixture(scope="module")
def recording():
    with np.load(VARIANTS.RECORDING) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture
def eagerly():
    """Tracing would take longer than running these models once."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def torch_shapes(config):
    """Linear layers after a flatten show as convolutions here: the same numbers in the same order."""
    with keras.StatelessScope(initialize_variables=False):
        specs = build_model(load_config_text(config)).variable_specs()
    keras.utils.clear_session()
    return {
        weights.path_to_key(p): (s[-1], s[-2], *s[:-2]) if p.endswith("kernel") else s
        for p, s in specs.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_stages_and_answer(name, recording, tmp_path, eagerly):
    config = yaml.safe_dump(VARIANTS.tiny_config(VARIANTS.VARIANTS[name]) | {"VERSION": 2})
    (tmp_path / "config.yaml").write_text(config)
    weights.write_detectron2_pkl(tmp_path / "model.pkl", VARIANTS.tiny_state(torch_shapes(config)))
    predictor = tf_d2.Predictor(tmp_path / "config.yaml", tmp_path / "model.pkl")
    given = {"proposals": VARIANTS.PROPOSALS} if name == "fast" else {}
    trace = predictor.trace(VARIANTS.picture(), rescaled=False, **given)
    result = predictor(VARIANTS.picture(), **given)
    mine = {
        key.removeprefix(f"{name}/"): value for key, value in recording.items() if key.startswith(f"{name}/")
    }
    steps = [stage for stage in mine if stage.startswith("steps/") and stage in trace]
    assert len(steps) > 10
    for stage in steps:
        length = mine[stage][0]
        difference = np.abs(VARIANTS.fingerprint(trace[stage]) - mine[stage])
        assert difference.max() <= 1e-4 * length, stage
    check_answer(result, mine)


def check_answer(result, expected):
    for kind in result.keys() & {"instances", "proposals"}:
        fields = {k.rsplit("/", 1)[1]: v for k, v in expected.items() if k.startswith(f"output/{kind}/")}
        assert fields.keys() == result[kind].get_fields().keys()
        for field, value in fields.items():
            got = getattr(result[kind], field)
            if field == "pred_keypoint_heatmaps":
                assert np.abs(VARIANTS.fingerprint(got) - value).max() <= 1e-4 * value[0]
            elif value.dtype.kind == "f":
                np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-3, err_msg=field)
            else:
                np.testing.assert_array_equal(got, value, err_msg=field)
    if "sem_seg" in result:
        value = expected["output/sem_seg"]
        assert np.abs(VARIANTS.fingerprint(result["sem_seg"]) - value).max() <= 1e-4 * value[0]
    if "panoptic_seg" in result:
        segments, info = result["panoptic_seg"]
        np.testing.assert_array_equal(segments, expected["output/panoptic_seg"])
        recorded = json.loads(str(expected["segments_info"]))
        assert [s["category_id"] for s in info] == [s["category_id"] for s in recorded]
