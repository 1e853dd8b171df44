"""Whole models against numbers recorded from the real detectron2: stages, detections, batches, float64.

tests/data/modeling holds six narrow random models (one file each: float16 weights, which both sides
widen) and three noise pictures. Of larger arrays every n-th number was kept, n coprime to every axis.
Random models amplify rounding more than trained ones do, so each array also carries its `noise`: how far
detectron2 in float32 is from itself in float64 (for rotated boxes, which it cannot run in float64, a
typical value).
"""

import ast
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
from support.recordings import answer_and_trace, eagerly

import tf_d2
import weights
from tf_d2.config import load_config_text
from tf_d2.modeling import build_model, poolers
from tf_d2.modeling.batches import Detections
from tf_d2.modeling.postprocess import rescale
from tf_d2.ops import roi_align
from tf_d2.ops.resize import resize_uint8, shortest_edge_size
from tf_d2.ops.roi_align import Regions

DATA = Path(__file__).parents[1] / "data" / "modeling"
FAMILIES = ("mask_fpn", "mask_c4", "cascade_keypoint", "panoptic", "retinanet_bn", "rotated")
WITH_FLOAT64 = ("mask_fpn", "cascade_keypoint", "retinanet_bn")

# Limits of a stage that got its input from the stages before it: relative L2, pixels, probability. A stage
# may also be as far from detectron2 as four times its noise, but never beyond the second number.
END_TO_END, BOX_PIXELS, SCORE = (1e-5, 1e-4), (1e-4, 2e-3), (3e-6, 1e-4)
# Degrees are 57 times the network's radians, and turn further when a picture is not scaled evenly.
ROTATED = 5e-3
DOUBLE = 1e-12


@cache
def images():
    with h5py.File(DATA / "images.h5") as file:
        return [file[str(i)][()] for i in range(3)]


class Recorded:
    """One file of tests/data/modeling."""

    def __init__(self, name):
        self.file = h5py.File(DATA / f"{name}.h5")
        self.config = str(self.file.attrs["config"])
        self.state = {
            key: np.asarray(item[()], np.float32 if item.dtype == np.float16 else item.dtype)
            for key, item in self.file["weights"].items()
        }

    def names(self, group):
        found = []
        self.file[group].visititems(lambda n, o: found.append(n) if isinstance(o, h5py.Dataset) else None)
        return found

    def pair(self, name, array):
        """``array`` as far as it was recorded, and the recording."""
        data = self.file[name]
        array = np.asarray(array)
        shape = tuple(data.attrs.get("shape", data.shape))
        assert array.shape == shape, name
        return array.ravel()[:: int(data.attrs.get("step", 1))], data[()].ravel()

    def limit(self, name, limits):
        least, most = limits
        if name.endswith("boxes") and self.file[name].shape[-1] == 5:
            return ROTATED
        return min(max(least, 4 * float(self.file[name].attrs.get("noise", 0))), most)

    def check(self, name, array):
        """One array against its recording, by the measure its name asks for."""
        got, expected = self.pair(name, array)
        assert got.dtype == expected.dtype, name
        if name.endswith("boxes"):
            np.testing.assert_allclose(got, expected, rtol=0, atol=self.limit(name, BOX_PIXELS), err_msg=name)
        elif name.endswith("keypoints"):
            np.testing.assert_allclose(
                got, expected, rtol=1e-4, atol=self.limit(name, BOX_PIXELS), err_msg=name
            )
        elif name.endswith("scores"):
            np.testing.assert_allclose(got, expected, rtol=0, atol=self.limit(name, SCORE), err_msg=name)
        elif got.dtype.kind == "f":
            assert relative_l2(got, expected) < self.limit(name, END_TO_END), name
        else:  # classes, mask pixels, segments
            wrong = np.count_nonzero(got != expected)
            assert wrong <= 2 * self.file[name].attrs.get("noise", 0), f"{name}: {wrong} differ"


@cache
def recorded(name):
    return Recorded(name)


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.wide if n == "cascade_keypoint" else ()) for n in FAMILIES],
)
def family(request, tmp_path_factory):
    """(recording, predictor): the model through the files a user would have."""
    return recorded(request.param), make_predictor(recorded(request.param), tmp_path_factory)


def make_predictor(record, tmp_path_factory, dtype="float32"):
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.yaml").write_text(record.config)
    weights.write_detectron2_pkl(folder / "model.pkl", record.state)
    return tf_d2.Predictor(folder / "config.yaml", folder / "model.pkl", dtype=dtype)


def relative_l2(got, expected):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert np.isfinite(got).all()
    return np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-30)


ROI_ROWS = ("pooler", "res5", "mask_head.predictor", "score_lowres")


@pytest.fixture(scope="module")
def in_a_graph(family):
    """Answer and trace of the first picture."""
    return answer_and_trace(family[1], images()[0])


def test_every_stage(family, in_a_graph):
    check_stages(family[0], in_a_graph[1])


def check_stages(record, trace):
    names = record.names("one/steps")
    assert len(names) > 10
    for name in names:
        value = trace[name]
        if name.endswith(ROI_ROWS):
            value = value[:20]  # the recording keeps the first regions
        record.check(f"one/steps/{name}", value)


def test_the_answer(family, in_a_graph):
    """In a graph that records what is computed on the way, and eagerly without a record."""
    record, predictor = family
    check_answer(record, in_a_graph[0])
    with eagerly():
        check_answer(record, predictor(images()[0]))


def check_answer(record, result):
    instances = result["instances"]
    fields = [n.removeprefix("instances/") for n in record.names("one/output") if n.startswith("instances/")]
    assert sorted(fields) == sorted(instances.get_fields())
    assert len(instances) > 4
    for field in fields:
        record.check(f"one/output/instances/{field}", getattr(instances, field))
    assert ("panoptic_seg" in result) == (record is recorded("panoptic"))
    if "panoptic_seg" in result:
        check_panoptic(record, result)


@pytest.mark.parametrize("name", ["mask_c4", pytest.param("cascade_keypoint", marks=pytest.mark.wide)])
def test_the_answer_with_regions_in_blocks(name, tmp_path_factory, monkeypatch):
    """As C4 and DC5 models have them. Regions of models this narrow are small, and so must blocks and chunks be."""
    loops, turns = [], tf.Variable(0)
    compute, pool_chunks = Regions.compute, Regions._pool_chunks

    def counted(regions, *chunks):
        turns.assign_add(1)
        return pool_chunks(regions, *chunks)

    monkeypatch.setattr(Regions, "compute", lambda *a: (loops.append(1), compute(*a))[1])
    monkeypatch.setattr(Regions, "_pool_chunks", counted)
    monkeypatch.setattr(poolers, "LARGE_REGION", 0)
    monkeypatch.setattr(poolers, "BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(roi_align, "WINDOW_BYTES", 1 << 14)
    predictor = make_predictor(recorded(name), tmp_path_factory)
    result, trace = answer_and_trace(predictor, images()[0])
    check_answer(recorded(name), result)
    assert turns.numpy() > 3 * len(loops) > 0
    check_stages(recorded(name), trace)
    with eagerly():  # and without a record, which takes other results through the blocks
        check_answer(recorded(name), predictor(images()[0]))


def check_panoptic(record, result):
    segments, info = result["panoptic_seg"]
    record.check("one/output/sem_seg", result["sem_seg"])
    record.check("one/output/panoptic_seg", segments)
    expected_info = ast.literal_eval(record.file.attrs["one/output/segments_info"])
    assert len(info) == len(expected_info) > 8
    for got_segment, segment in zip(info, expected_info, strict=True):
        assert got_segment.keys() == segment.keys()
        assert got_segment.pop("score", 0) == pytest.approx(segment.pop("score", 0), abs=1e-4)
        assert got_segment == segment


def batch_input(config):
    """Three images of different sizes on one canvas, the rest of which holds garbage that must not matter."""
    resized = []
    for image in images():
        size = shortest_edge_size(*image.shape[:2], config.input.min_size_test, config.input.max_size_test)
        resized.append(resize_uint8(tf.constant(image), *size).numpy())
    sizes = np.array([x.shape[:2] for x in resized], np.int32)
    height, width = sizes.max(axis=0) + np.array([5, 9])  # even a canvas larger than needed
    canvas = np.full((len(resized), height, width, 3), 255, np.uint8)
    for row, x in zip(canvas, resized, strict=True):
        row[: x.shape[0], : x.shape[1]] = x
    return canvas, sizes


def test_a_batch_of_different_sizes(family):
    """detectron2 pads to the largest image, which changes every answer a little: so must this."""
    record, predictor = family
    canvas, sizes = batch_input(predictor.config)
    call = predictor.model.call
    if record is recorded("mask_fpn"):  # once as a graph of unknown sizes, which takes longer
        spec = [tf.TensorSpec([None, None, None, 3], tf.uint8), tf.TensorSpec([None, 2], tf.int32)]
        call = tf.function(call, input_signature=spec, autograph=False)
    out = {k: v.numpy() for k, v in call(tf.constant(canvas), tf.constant(sizes)).items()}
    assert out["counts"].sum() == len(out["boxes"]) and len(out["counts"]) == 3
    np.testing.assert_array_equal(out["image_index"], np.repeat(np.arange(3), out["counts"]))
    originals = np.array([image.shape[:2] for image in images()], np.int32)
    detections = Detections(*(out[k] for k in ("boxes", "scores", "classes", "image_index", "counts")))
    done, _ = rescale(detections, sizes, originals)
    for i in range(3):
        mine = done.image_index.numpy() == i
        compare_image(record, i, *(x.numpy()[mine] for x in (done.boxes, done.scores, done.classes)))
        compare_extra(
            record, i, {k: v[out["image_index"] == i] for k, v in out.items() if k.startswith("pred_")}
        )
    if "sem_seg" in out:
        record.check("batch/steps/sem_seg_head/0", np.moveaxis(out["sem_seg"], -1, 1))


def compare_image(record, i, boxes, scores, classes):
    """Boxes in the pixels of image i. The noise was not recorded for batches."""
    prefix = f"batch/output/{i}/instances"
    got, expected = record.pair(f"{prefix}/pred_boxes", boxes)
    limit = ROTATED if boxes.shape[1] == 5 else BOX_PIXELS[1]
    np.testing.assert_allclose(got, expected, rtol=0, atol=limit)
    got, expected = record.pair(f"{prefix}/scores", scores)
    np.testing.assert_allclose(got, expected, rtol=0, atol=SCORE[1])
    np.testing.assert_array_equal(*record.pair(f"{prefix}/pred_classes", classes))


def compare_extra(record, i, fields):
    """Mask probabilities and keypoints in network coordinates."""
    prefix = f"batch/extra/roi_heads/0/{i}"
    for name in fields.keys() & {"pred_masks", "pred_keypoints"}:
        value = fields[name][:, None] if name == "pred_masks" else fields[name]
        assert relative_l2(*record.pair(f"{prefix}/{name}", value)) < 1e-4, name


@pytest.mark.parametrize("name", WITH_FLOAT64)
def test_float64(name, tmp_path_factory):
    """Against detectron2 in float64 rounding explains nothing: a wrong epsilon or order of weights shows."""
    record = recorded(name)
    predictor = make_predictor(record, tmp_path_factory, "float64")
    with eagerly():
        trace = dict(predictor.trace(images()[0]))
        trace.update(regions(record, predictor, trace))
    names = record.names("one/steps64")
    assert len(names) > 10
    for stage in names:
        assert trace[stage].dtype == np.float64, stage
        got, expected = record.pair(f"one/steps64/{stage}", trace[stage])
        assert relative_l2(got, expected) < DOUBLE, stage


def regions(record, predictor, trace):
    """The box stages on the recorded proposals: the selection between them is float32 by nature."""
    stages = {n for n in record.names("one/steps64") if n.startswith("roi_heads")}
    if not stages:
        return {}
    suffix = ".0" if "roi_heads.box_head.0" in stages else ""
    boxes = record.file["one/steps/proposal_generator/0/0/proposal_boxes"][()]
    features = [trace[f"backbone/p{level}"] for level in (2, 3, 4, 5)]
    (pooled,) = predictor.run_op("roi_pool", ("box_pooler", 0), [*features, boxes])
    (head,) = predictor.run_op("module", (f"roi_heads.box_head{suffix}",), [pooled])
    scores, deltas = predictor.run_op("module", (f"roi_heads.box_predictor{suffix}",), [head])
    prefix = f"roi_heads.box_predictor{suffix}"
    results = {f"{prefix}/0": scores, f"{prefix}/1": deltas, f"roi_heads.box_head{suffix}": head}
    return {**results, "roi_heads.box_pooler": pooled}


def test_folding_norms_changes_rounding_only_and_unfolding_restores():
    record = recorded("mask_c4")
    model = build_model(load_config_text(record.config))
    model.assign(weights.to_keras_arrays(record.state, model.variable_specs()))
    x = model.prepare(tf.constant(images()[0][None]), None)
    plain = model.backbone(x)["res4"].numpy()
    model.fold_norms()
    folded = model.backbone(x)["res4"].numpy()
    model.unfold_norms()
    np.testing.assert_array_equal(model.backbone(x)["res4"], plain)
    assert 0 < relative_l2(folded, plain) < 3e-6


def test_loading_other_weights_unfolds():
    """Merged weights of the old ones would otherwise stay in use."""
    record = recorded("mask_c4")
    model = build_model(load_config_text(record.config))
    arrays = weights.to_keras_arrays(record.state, model.variable_specs())
    model.assign(arrays)
    model.fold_norms()
    model.assign({path: np.zeros_like(array) for path, array in arrays.items()})
    assert not model.backbone(tf.ones([1, 64, 64, 3]))["res4"].numpy().any()


def test_assign_changes_nothing_when_something_is_wrong():
    record = recorded("mask_c4")
    model = build_model(load_config_text(record.config))
    arrays = weights.to_keras_arrays(record.state, model.variable_specs())
    path = "roi_heads/box_predictor/cls_score/bias"
    with pytest.raises(ValueError, match=f"{path}: shape"):
        model.assign({**arrays, path: np.ones(99, np.float32)})
    with pytest.raises(KeyError, match=path):
        model.assign({k: v for k, v in arrays.items() if k != path})
    assert not any(v.value.numpy().any() for v in model.variables)


def test_a_file_of_another_family_is_refused():
    config = load_config_text(recorded("mask_fpn").config)
    model = build_model(config)
    with pytest.raises(weights.WeightsError, match="missing"):
        weights.to_keras_arrays(recorded("mask_c4").state, model.variable_specs())
