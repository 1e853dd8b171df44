"""Small models of every kind against what the real detectron2 computed for them: each stage and the answer.

The variants, their weights (drawn from a generator seeded by each key) and detectron2's results are those of
tests/support/variants.py; of a stage the results hold its length and its product with a fixed vector.
"""

import json

import numpy as np
import pytest
import tensorflow as tf
from support import variants
from support.variant_files import write_model

import tf_d2

NAMES = [name for name in variants.VARIANTS if name not in variants.NOT_RECORDED]


@pytest.fixture(scope="module")
def recording():
    with np.load(variants.RECORDING) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture
def eagerly():
    """Tracing would take longer than running these models once."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


# Families of which tests/modeling/test_recorded.py always runs a larger model, and those whose parts others have.
RECORDED = ("mask", "c4", "keypoint", "panoptic", "retinanet_bn")
ALIKE = ("regnetx", "retinanet", "rpn", "fast", "semantic")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.wide if name in RECORDED + ALIKE else ()) for name in NAMES]
)
def test_stages_and_answer(name, recording, tmp_path, eagerly):
    write_model(tmp_path, name)
    predictor = tf_d2.Predictor(tmp_path / "config.yaml", tmp_path / "model.pkl")
    given = {"proposals": variants.PROPOSALS} if name == "fast" else {}
    trace = predictor.trace(variants.picture(), rescaled=False, **given)
    result = predictor(variants.picture(), **given)
    mine = {
        key.removeprefix(f"{name}/"): value for key, value in recording.items() if key.startswith(f"{name}/")
    }
    steps = [stage for stage in mine if stage.startswith("steps/") and stage in trace]
    assert len(steps) > 10
    for stage in steps:
        length = mine[stage][0]
        difference = np.abs(variants.fingerprint(trace[stage]) - mine[stage])
        assert difference.max() <= 1e-4 * length, stage
    check_answer(result, mine)


def check_answer(result, expected):
    for kind in result.keys() & {"instances", "proposals"}:
        fields = {k.rsplit("/", 1)[1]: v for k, v in expected.items() if k.startswith(f"output/{kind}/")}
        assert fields.keys() == result[kind].get_fields().keys()
        for field, value in fields.items():
            got = getattr(result[kind], field)
            if field == "pred_keypoint_heatmaps":
                assert np.abs(variants.fingerprint(got) - value).max() <= 1e-4 * value[0]
            elif value.dtype.kind == "f":
                np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-3, err_msg=field)
            else:
                np.testing.assert_array_equal(got, value, err_msg=field)
    if "sem_seg" in result:
        value = expected["output/sem_seg"]
        assert np.abs(variants.fingerprint(result["sem_seg"]) - value).max() <= 1e-4 * value[0]
    if "panoptic_seg" in result:
        segments, info = result["panoptic_seg"]
        np.testing.assert_array_equal(segments, expected["output/panoptic_seg"])
        recorded = json.loads(str(expected["segments_info"]))
        assert [s["category_id"] for s in info] == [s["category_id"] for s in recorded]
