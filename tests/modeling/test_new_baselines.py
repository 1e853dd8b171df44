"""ViTDet, MViTv2, Swin, LSJ, RegNet, FCOS and RetinaNet.py, whole, against what detectron2 recorded at reduced width.

``tests/data/new_baselines/*.h5`` hold the YAML that `LazyConfig.save` wrote, weights, the picture, steps and results;
``state_dicts.json.gz`` names and shapes of every tensor of the published models.
"""

import gzip
import json
from functools import cache
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import weights
from tf_d2.config import load_config, load_config_text
from tf_d2.modeling import build_model
from tf_d2.modeling.fcos import FCOSHead
from tf_d2.modeling.postprocess import to_image
from tf_d2.stages import stage_array

DATA = Path(__file__).parents[1] / "data" / "new_baselines"
NAMES = sorted(path.stem for path in DATA.glob("*.h5"))
ALIKE = ("vitdet_b_lvis", "mvitv2_b_cascade")  # larger models of parts that others have
STATE_DICTS = json.loads(gzip.decompress((DATA / "state_dicts.json.gz").read_bytes()))


@cache
def recording(name):
    arrays = {}
    with h5py.File(DATA / f"{name}.h5") as file:
        file.visititems(
            lambda key, item: arrays.update({key: item[()]} if isinstance(item, h5py.Dataset) else {})
        )
        return str(file.attrs["config"]), arrays


def model_of(name, dtype="float32"):
    config, arrays = recording(name)
    model = build_model(load_config_text(config), dtype)
    state = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
    model.assign(weights.to_keras_arrays(state, model.variable_specs(), dtype=dtype))
    return model


def network_input(model, image):
    return model.prepare(tf.constant(image[None]), None), tf.constant([image.shape[:2]])


def distance(got, expected):
    return np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64))


@cache
def in_float32(name):
    """What a model finds in the recording's picture, the size of its input, and every stage."""
    model = model_of(name)
    x, size = network_input(model, recording(name)[1]["input/resized"])
    stages = {}
    found = model.forward(x, size, None, stages)
    return found, size, {k: stage_array(k, v.numpy()) for k, v in stages.items()}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.wide if name in ALIKE else ()) for name in NAMES]
)
def test_detections_one_to_one(name):
    arrays = recording(name)[1]
    found, size, _ = in_float32(name)
    original = tf.constant([arrays["input/image"].shape[:2]])
    done = {k: v.numpy() for k, v in to_image(found, size[0], original[0]).items()}
    expected = {k.rpartition("/")[2]: v for k, v in arrays.items() if k.startswith("output/instances/")}
    np.testing.assert_array_equal(done["pred_classes"], expected["pred_classes"])
    np.testing.assert_allclose(done["pred_boxes"], expected["pred_boxes"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(done["scores"], expected["scores"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if "steps64/input" in recording(name)[1]])
def test_continuous_steps_in_float64(name):
    """Up to the heads: behind them the regions are those of float32."""
    arrays = recording(name)[1]
    model = model_of(name, "float64")
    x = tf.constant(np.moveaxis(arrays["steps64/input"], 1, -1).astype(np.float64))
    stages = {}
    model.forward(x, tf.constant([arrays["input/resized"].shape[:2]]), None, stages)
    compared = 0
    for key, expected in arrays.items():
        stage, _, rows = key.removeprefix("steps64/").partition("@")
        if not key.startswith("steps64/") or stage == "input" or "roi_heads" in stage:
            continue
        assert stage in stages, stage
        got = stage_array(stage, stages[stage].numpy())
        got = got[:, : int(rows)] if rows else got
        assert distance(got, expected) < 1e-12, stage
        compared += 1
    assert compared >= 8


def float64_steps(name):
    """(stage, what detectron2 recorded of it in float64) up to the heads; rows that were left out are not here."""
    for key, exact in recording(name)[1].items():
        stage = key.removeprefix("steps64/").partition("@")[0]
        if key.startswith("steps64/") and stage != "input" and "roi_heads" not in stage:
            yield stage, exact


@pytest.mark.parametrize("name", [name for name in NAMES if "steps64/input" in recording(name)[1]])
def test_float32_steps_are_as_near_the_truth_as_detectron2s(name):
    """From the picture on. Rounding adds up: Swin's recording is up to 4.9e-6 from its own float64, ours 2.3e-6."""
    record, stages = recording(name)[1], in_float32(name)[2]
    compared = 0
    for stage, exact in float64_steps(name):
        (theirs,) = (v for k, v in record.items() if k.partition("@")[0] == f"steps/{stage}")
        noise = distance(theirs[:, : exact.shape[1]], exact)
        assert distance(stages[stage][:, : exact.shape[1]], exact) < max(3 * noise, 3e-7), stage
        compared += 1
    assert compared >= 8


def test_a_dense_head_of_its_own_widths():
    """Names and shapes of detectron2's towers for ``conv_dims`` other than the pyramid's width."""
    config = load_config("COCO-Detection/fcos_R_50_FPN_1x", ["model.head.conv_dims", [64, 96]]).model
    shapes = {weights.path_to_key(v.path): tuple(v.shape) for v in FCOSHead(config, 256, "head").variables}
    for tower in ("cls_subnet", "bbox_subnet"):
        assert shapes[f"head.{tower}.0.weight"] == (3, 3, 256, 64)
        assert shapes[f"head.{tower}.3.weight"] == (3, 3, 64, 96)
        assert shapes[f"head.{tower}.4.weight"] == (96,)
    assert shapes["head.cls_score.weight"] == (3, 3, 96, 80)
    assert shapes["head.ctrness.weight"] == (3, 3, 96, 1)


def test_fcos_head_in_float32_on_recorded_features():
    """Four levels as detectron2 computed them: every output within 2e-6 of the head in float64 on the same features."""
    record = recording("fcos")[1]
    head, exact_head = model_of("fcos").head, model_of("fcos", "float64").head
    for level in (1, 2, 3, 4):
        x = np.moveaxis(record[f"steps/backbone/p{level + 3}"], 1, -1)
        exact = exact_head([tf.constant(x.astype(np.float64))])
        for i, got in enumerate(head([tf.constant(x)])):
            theirs = np.moveaxis(record[f"steps/head/{i}/{level}"], 1, -1)
            assert distance(theirs, exact[i][0].numpy()) < 2e-6
            assert distance(got[0].numpy(), exact[i][0].numpy()) < 2e-6, (level, i)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name", ["vitdet_b", pytest.param("mvitv2_t", marks=SLOW), pytest.param("swin_b_cascade", marks=SLOW)]
)
def test_a_graph_of_unknown_sizes_finds_the_same(name):
    """Mixed sizes in a batch, square padding inside: each picture's own detections."""
    arrays = recording(name)[1]
    model = model_of(name)
    image = arrays["input/resized"]
    small = image[: image.shape[0] - 9, : image.shape[1] - 14]
    canvas = np.full((2, image.shape[0] + 3, image.shape[1] + 5, 3), 77, np.uint8)
    canvas[0, : image.shape[0], : image.shape[1]] = image
    canvas[1, : small.shape[0], : small.shape[1]] = small
    sizes = np.array([image.shape[:2], small.shape[:2]], np.int32)
    spec = [tf.TensorSpec([None, None, None, 3], tf.uint8), tf.TensorSpec([None, 2], tf.int32)]
    graph = tf.function(model.call, input_signature=spec, autograph=False)
    both = {k: v.numpy() for k, v in graph(tf.constant(canvas), tf.constant(sizes)).items()}
    first = both["image_index"] == 0
    x, size = network_input(model, image)
    alone = model.forward(x, size, None, {})
    assert first.sum() == len(alone["boxes"]) and 0 < both["counts"][1]
    np.testing.assert_array_equal(both["classes"][first], alone["classes"])
    np.testing.assert_allclose(both["boxes"][first], alone["boxes"], rtol=0, atol=2e-3)
    np.testing.assert_allclose(both["scores"][first], alone["scores"], rtol=0, atol=5e-5)


@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_agrees_to_its_precision():
    """Backbone in bfloat16: 8 bits, so about 1 % of the norm after four blocks."""
    arrays = recording("vitdet_b")[1]
    model = model_of("vitdet_b", "bfloat16")
    x = tf.cast(np.moveaxis(arrays["steps64/input"], 1, -1), tf.bfloat16)
    stages = {}
    model.backbone.forward(x, stages, "backbone")
    got = tf.cast(stages["backbone/p4"], tf.float32).numpy()
    assert stages["backbone/p4"].dtype == tf.bfloat16
    assert 1e-4 < distance(np.moveaxis(got, -1, 1), arrays["steps/backbone/p4"]) < 0.05


def variable_specs(name):
    """Paths and shapes; variables stay uninitialised, so that the largest model takes no memory."""
    with keras.StatelessScope(initialize_variables=False):
        specs = build_model(load_config(name)).variable_specs()
    keras.utils.clear_session()  # forgets the variables that wait for their initial value
    return specs


def torch_shape(path, shape):
    if not path.endswith("kernel"):
        return shape
    if len(shape) == 4 and "box_head" in path and "/fc1/" in path:  # linear after a flatten of C, H, W
        return shape[3], shape[0] * shape[1] * shape[2]
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def test_every_published_model_is_listed():
    families = [name.split("/")[1] for name in STATE_DICTS if name.startswith("projects/")]
    assert (families.count("ViTDet"), families.count("MViTv2")) == (22, 7)
    assert len(STATE_DICTS) == 30  # and FCOS


# One of each size of network; the others differ in their heads.
QUICK = ("COCO/mask_rcnn_vitdet_b", "mask_rcnn_mvitv2_t", "LVIS/cascade_mask_rcnn_swin_b", "fcos")


@pytest.mark.parametrize(
    "name", [n if any(q in n for q in QUICK) else pytest.param(n, marks=SLOW) for n in STATE_DICTS]
)
def test_variables_are_the_state_dict(name):
    expected = {k: tuple(v) for k, v in STATE_DICTS[name].items() if not weights.harmless_reason(k)}
    specs = variable_specs(name)
    got = {weights.path_to_key(path): torch_shape(path, shape) for path, shape in specs.items()}
    assert got == expected
