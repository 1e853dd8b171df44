"""The PyTorch reference: its operations against loops and hand-checked cases, its models against themselves
(free, forced, float64) and the embedded model against what detectron2 recorded."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support import variants
from torch.nn import functional

import weights
from parity.backends import torch_reference
from parity.backends.torch_reference import StateError, boxes, layers, older_run, ops, run, selection
from parity.core.job import read_image
from parity.core.network_size import network_size
from parity.core.trace import Trace
from parity.core.units import stages

# Found without importing tf_d2, which imports TensorFlow.
_PACKAGE = importlib.util.find_spec("tf_d2")
assert _PACKAGE is not None and _PACKAGE.submodule_search_locations
DEMO = Path(_PACKAGE.submodule_search_locations[0]) / "data" / "demo"


# ---- ROI pooling


def roi_align_loop(feature, box, scale, size, ratio, aligned):
    """One box, sample by sample in float32, as the formula says."""
    f = np.float32
    shift = f(0.5) if aligned else f(0)
    x1, y1, x2, y2 = (f(v) * f(scale) - shift for v in box)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = max(width, f(1)), max(height, f(1))
    bin_w, bin_h = width / f(size), height / f(size)
    grid_h = ratio if ratio > 0 else math.ceil(height / f(size))
    grid_w = ratio if ratio > 0 else math.ceil(width / f(size))
    out = np.zeros((feature.shape[0], size, size), f)
    for i in range(size):
        for j in range(size):
            total = np.zeros(feature.shape[0], f)
            for a in range(grid_h):
                y = y1 + f(i) * bin_h + f(a + 0.5) * bin_h / f(grid_h)
                for b in range(grid_w):
                    x = x1 + f(j) * bin_w + f(b + 0.5) * bin_w / f(grid_w)
                    total = total + bilinear_clamped(feature, y, x)
            out[:, i, j] = total / f(max(grid_h * grid_w, 1))
    return out


def bilinear_clamped(feature, y, x):
    f = np.float32
    _, tall, wide = feature.shape
    if y < -1 or y > tall or x < -1 or x > wide:
        return np.zeros(feature.shape[0], f)
    (y0, y1, dy), (x0, x1, dx) = (
        (n - 1, n - 1, f(0)) if int(v) >= n - 1 else (int(v), int(v) + 1, v - f(int(v)))
        for v, n in ((max(y, f(0)), tall), (max(x, f(0)), wide))
    )
    return (
        (f(1) - dy) * (f(1) - dx) * feature[:, y0, x0]
        + (f(1) - dy) * dx * feature[:, y0, x1]
        + dy * (f(1) - dx) * feature[:, y1, x0]
        + dy * dx * feature[:, y1, x1]
    )


BOXES = np.array(
    [
        [3.2, 4.1, 30.7, 22.9],
        [-9.0, -7.5, 12.0, 8.0],  # partly outside
        [20.0, 10.0, 61.0, 50.0],  # beyond the map
        [5.0, 5.0, 5.0, 5.0],  # no area
        [12.0, 9.0, 8.0, 30.0],  # negative width
        [200.0, 200.0, 260.0, 230.0],  # nothing of the map
        [0.0, 0.0, 40.0, 24.0],
    ],
    np.float32,
)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2])
def test_roi_align_equals_the_loop_bit_for_bit(aligned, ratio):
    feature = np.random.default_rng(0).normal(size=(3, 12, 20)).astype(np.float32)
    got = ops.own_roi_align(
        torch.tensor(feature)[None], torch.tensor(BOXES), 0.5, ops.Sampling(3, ratio, aligned)
    ).numpy()
    want = np.stack([roi_align_loop(feature, box, 0.5, 3, ratio, aligned) for box in BOXES])
    np.testing.assert_array_equal(got, want)
    assert np.abs(want).sum() > 0


@pytest.mark.parametrize(
    ("x", "value"), [(-1, 0), (-0.5, 0), (0.25, 0.25), (9, 9), (9.5, 9), (10, 9), (10.0001, 0), (-1.001, 0)]
)
def test_roi_align_sample_on_a_ramp(x, value):
    ramp = torch.arange(10.0).expand(1, 1, 4, 10)
    # one bin, one sample, in the middle of a box of 1x1 that is not aligned
    box = torch.tensor([[x - 0.5, 1.0, x + 0.5, 2.0]])
    assert ops.own_roi_align(ramp, box, 1.0, ops.Sampling(1, 1, False)).item() == pytest.approx(value)


def test_roi_align_in_chunks_is_the_same(monkeypatch):
    feature, box = torch.randn(1, 2, 12, 20), torch.rand(50, 4) * 10 + torch.tensor([0.0, 0, 12, 9])
    whole = ops.own_roi_align(feature, box, 0.5, ops.Sampling(2, 0, True))
    monkeypatch.setattr(ops, "_CHUNK_VALUES", 16)
    assert torch.equal(ops.own_roi_align(feature, box, 0.5, ops.Sampling(2, 0, True)), whole)


@pytest.mark.parametrize(
    ("box", "want"),
    [
        ([0, 0, 3, 3], [5, 7, 13, 15]),
        ([0.5, 0.5, 2.5, 2.5], [10, 11, 14, 15]),  # half away from zero
        ([3, 3, 1, 1], [15, 15, 15, 15]),
        ([10, 10, 12, 12], [0, 0, 0, 0]),
    ],
)
def test_roi_pool_by_hand(box, want):
    feature = torch.arange(16.0).view(1, 1, 4, 4)
    assert ops.own_roi_pool(feature, torch.tensor([box]).float(), 1.0, 2).flatten().tolist() == want


@pytest.mark.parametrize(
    ("side", "level"),
    [(224, 4), (223.99998, 4), (223.9999, 3), (112, 3), (448, 5), (447.9999, 5), (56, 2), (0, 2), (2000, 5)],
)
def test_levels(side, level):
    box = torch.tensor([[0.0, 0.0, side, side]])
    assert boxes.assign_levels(box, 2, 5).item() + 2 == level


# ---- NMS


def kept(rows, scores, threshold):
    return ops.own_nms(torch.tensor(rows).float(), torch.tensor(scores), threshold).tolist()


def test_nms_by_hand():
    same = [[0, 0, 10, 10]] * 3
    assert kept(same, [0.5, 0.9, 0.9], 0.5) == [1]  # of equals the first
    # IoU exactly 0.6: float32(0.6) > 0.6, so suppressed on the CPU; exactly 0.7 and 0.5 are kept
    assert kept([[0, 0, 10, 10], [0, 0, 10, 6]], [0.9, 0.8], 0.6) == [0]
    assert kept([[0, 0, 10, 10], [0, 0, 10, 7]], [0.9, 0.8], 0.7) == [0, 1]
    assert kept([[0, 0, 10, 10], [0, 0, 10, 5]], [0.9, 0.8], 0.5) == [0, 1]
    assert kept([[5, 5, 5, 5]] * 2, [0.9, 0.8], 0.5) == [0, 1]  # 0/0 suppresses nothing


def test_batched_nms_moves_groups_apart_unless_coordinates_are_negative():
    rows = torch.tensor([[-200.0, -200, 5, 5], [-206, -206, -1, -1], [0, 0, 6, 6]])
    scores, groups = torch.tensor([0.9, 0.8, 0.1]), torch.tensor([0, 1, 0])
    assert ops.own_batched_nms(rows, scores, groups, 0.5).tolist() == [0, 2]


def test_batched_nms_switches_to_one_group_after_the_other_beyond_1000_boxes():
    far = torch.arange(998.0)[:, None] * -10 - 1000
    rows = torch.tensor([[-200.0, -200, 5, 5], [-206, -206, -1, -1], [0, 0, 6, 6]])
    rows = torch.cat([rows, torch.cat([far, far, far + 5, far + 5], dim=1)])
    scores = torch.cat([torch.tensor([0.9, 0.8, 0.7]), torch.linspace(0.5, 0.1, 998)])
    groups = torch.zeros(1001, dtype=torch.int64)
    groups[1] = 1
    at_once = ops.own_batched_nms(rows[:1000], scores[:1000], groups[:1000], 0.5).tolist()
    assert at_once == [0, *range(2, 1000)]  # the second box is moved onto the first
    assert ops.own_batched_nms(rows, scores, groups, 0.5).tolist() == list(range(1001))
    assert ops.own_batched_nms(rows[:0], scores[:0], groups[:0], 0.5).tolist() == []


# ---- deformable convolution


@pytest.mark.parametrize(("dy", "value"), [(-0.5, 1.0), (-1, 0.0), (4.5, 11.0), (5, 0.0)])
def test_deform_conv_by_hand(dy, value):
    image = torch.arange(25.0).view(1, 1, 5, 5)
    offset = torch.zeros(1, 2, 5, 5)
    offset[0, 0, 0, 2] = dy  # channel 0 moves y
    out = ops.own_deform_conv(image, offset, torch.ones(1, 1, 1, 1), ops.Steps(), None)
    assert out[0, 0, 0, 2].item() == value


def deform_loop(image, offset, weight, mask, stride, padding, dilation):
    """Every output by itself, sample by sample."""
    outputs, per_group, kh, kw = weight.shape
    channels, tall, wide = image.shape
    groups, moved = channels // per_group, channels // (offset.shape[0] // (2 * kh * kw))
    result = np.zeros((outputs, *offset.shape[1:]))
    for o, h, w in np.ndindex(*result.shape):
        for c in range(per_group):
            source = o // (outputs // groups) * per_group + c
            for i, j in np.ndindex(kh, kw):
                tap = source // moved * kh * kw + i * kw + j
                y = h * stride - padding + i * dilation + offset[2 * tap, h, w]
                x = w * stride - padding + j * dilation + offset[2 * tap + 1, h, w]
                value = 0.0
                for row in (math.floor(y), math.floor(y) + 1):
                    for column in (math.floor(x), math.floor(x) + 1):
                        if 0 <= row < tall and 0 <= column < wide:
                            share = (1 - abs(y - row)) * (1 - abs(x - column))
                            value += share * image[source, row, column]
                value *= 1.0 if mask is None else mask[tap, h, w]
                result[o, h, w] += weight[o, c, i, j] * value
    return result


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("groups", "moving", "stride", "dilation"), [(1, 1, 1, 1), (2, 1, 2, 1), (1, 2, 1, 2)]
)
def test_deform_conv_equals_the_loop(monkeypatch, masked, groups, moving, stride, dilation):
    rng = np.random.default_rng(1)
    image = rng.normal(size=(4, 6, 7))
    size = [(n + 2 * dilation - 2 * dilation - 1) // stride + 1 for n in image.shape[1:]]
    offset = rng.normal(size=(18 * moving, *size)) * 2
    mask = rng.uniform(size=(9 * moving, *size)) if masked else None
    weight = rng.normal(size=(4, 4 // groups, 3, 3))
    want = deform_loop(image, offset, weight, mask, stride, dilation, dilation)
    monkeypatch.setattr(ops, "_CHUNK_VALUES", 600)  # more than one chunk of rows
    tensors = [None if x is None else torch.tensor(x)[None] for x in (image, offset, mask)]
    got = ops.own_deform_conv(
        tensors[0], tensors[1], torch.tensor(weight), ops.Steps(stride, dilation, dilation), tensors[2]
    )
    np.testing.assert_allclose(got[0].numpy(), want, rtol=1e-12, atol=1e-12)


def test_modulated_block_takes_offsets_first_and_the_mask_last():
    block = layers.DeformConv(4, 4, ops.Steps(1, 1, 1), groups=1, norm="")
    image = torch.randn(1, 4, 5, 6)
    half = block(image, torch.zeros(1, 18, 5, 6), torch.full((1, 9, 5, 6), 0.5))
    plain = functional.conv2d(image, block.weight, padding=1)
    torch.testing.assert_close(half * 2, plain)


@pytest.mark.skipif(ops.torchvision_ops() is None, reason="torchvision is not installed")
def test_own_operations_equal_torchvision():
    feature, box = torch.randn(1, 3, 12, 20), torch.tensor(BOXES)
    for ratio in (0, 2):
        for aligned in (True, False):
            args = (feature, box, 0.5, ops.Sampling(3, ratio, aligned))
            assert torch.equal(ops.own_roi_align(*args), ops.roi_align(*args))
    assert torch.equal(ops.own_roi_pool(feature, box, 0.5, 3), ops.roi_pool(feature, box, 0.5, 3))
    for count in (900, 1500):
        rows = torch.rand(count, 4) * 50
        rows[:, 2:] += rows[:, :2]
        scores, groups = torch.rand(count), torch.randint(0, 5, (count,))
        args = (rows, scores, groups, 0.5)
        assert torch.equal(ops.own_batched_nms(*args), ops.batched_nms(*args))


# ---- boxes and results


def test_decode_by_hand():
    deltas, box = torch.tensor([[0.0, 0, 10, -100]]), torch.tensor([[0.0, 0, 16, 16]])
    np.testing.assert_allclose(boxes.decode(deltas, box, [1, 1, 1, 1]), [[-492, 8, 508, 8]], rtol=1e-6)
    two = torch.tensor([[0.0, 0, 0, 0, 1, 0, 0, 0]])
    got = boxes.decode(two, torch.tensor([[0.0, 0, 10, 10]]), [1, 1, 1, 1])
    assert got.tolist() == [[0, 0, 10, 10, 10, 0, 20, 10]]


def test_anchors_by_hand():
    generator = {
        "NAME": "DefaultAnchorGenerator",
        "SIZES": [[32]],
        "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
        "OFFSET": 0.5,
    }
    got = boxes.level_anchors(generator, 3, (2, 3), 16)
    assert got.shape == (18, 4)
    np.testing.assert_allclose(got[0], [8 - 22.6274, 8 - 11.3137, 8 + 22.6274, 8 + 11.3137], atol=1e-4)
    assert got[1].tolist() == [-8, -8, 24, 24] and got[4].tolist() == [8, -8, 40, 24]  # next column
    assert got[10].tolist() == [-8, 8, 24, 40]  # next row


def test_channels_become_rows_anchor_by_anchor():
    rows = selection.per_anchor(torch.arange(24).view(1, 6, 2, 2), 3)
    assert rows.tolist()[:3] == [[0, 4, 8], [12, 16, 20], [1, 5, 9]] and rows.tolist()[-1] == [15, 19, 23]


@pytest.mark.parametrize(
    ("size", "want"),
    [
        ((427, 640), (800, 1199)),
        ((1080, 1920), (750, 1333)),
        ((258, 141), (1333, 728)),  # 729 in exact arithmetic
        ((27, 86), (418, 1333)),  # 419 in exact arithmetic
        ((1, 5000), (0, 1333)),
        ((1, 1), (800, 800)),
    ],
)
def test_network_size(size, want):
    assert network_size(size, 800, 1333) == want
    assert network_size(size, 0, 1333) == size
    assert network_size((200, 301), 100, 1333) == (100, 151)  # half up
    assert network_size((301, 200), 100, 1333) == (151, 100)


def rpn_case(limit):
    """Nine anchors on two levels whose boxes and logits are written down; deltas of zero."""
    anchors = [
        torch.tensor(
            [
                [0.0, 0, 50, 50],
                [0, 0, 50, 50],
                [100, 100, 150, 150],
                [0, 0, math.inf, 9],
                [10, 10, 10, 20],
                [900, 900, 990, 990],
            ]
        ),
        torch.tensor([[0.0, 0, 50, 50]]),
    ]
    logits = [torch.tensor([5.0, 4, 3, 9, 8, 2]).view(1, 1, 1, 6), torch.tensor([1.0]).view(1, 1, 1, 1)]
    deltas = [torch.zeros(1, 4, 1, 6), torch.zeros(1, 4, 1, 1)]
    model = {
        "RPN": {
            "PRE_NMS_TOPK_TEST": limit,
            "POST_NMS_TOPK_TEST": 10,
            "NMS_THRESH": 0.7,
            "BBOX_REG_WEIGHTS": [1, 1, 1, 1],
        },
        "PROPOSAL_GENERATOR": {"MIN_SIZE": 0},
    }
    return selection.proposals(logits, deltas, anchors, (200, 200), model)


def test_proposals_by_hand():
    logits, found = rpn_case(1000)
    assert logits.tolist() == [5, 3, 1]  # the same box on another level stays
    assert found.tolist() == [[0, 0, 50, 50], [100, 100, 150, 150], [0, 0, 50, 50]]
    assert rpn_case(2)[0].tolist() == [1]  # what is not finite has taken its place among the best


def test_detections_by_hand():
    model = {"ROI_HEADS": {"SCORE_THRESH_TEST": 0.05, "NMS_THRESH_TEST": 0.5}}
    scores = torch.tensor([[0.05, 0.06, 0.89], [0.3, 0.4, 0.3], [0.9, 0.1, 0.0]])
    rows = torch.tensor([[0.0, 0, 9, 9] * 2, [20, 20, 40, 40] * 2, [0, 0, math.nan, 9, 0, 0, 9, 9]])
    found, values, classes = selection.detections(scores, rows, (30, 100), model, 100)
    # float32(0.05) > 0.05 is False; the third row has a NaN in one class and goes as a whole
    assert classes.tolist() == [1, 0, 1] and values.tolist() == pytest.approx([0.4, 0.3, 0.06])
    assert found[0].tolist() == [20, 20, 40, 30]
    assert len(selection.detections(scores, rows, (30, 100), model, 0)[0]) == 0
    assert len(selection.detections(scores, rows, (30, 100), model, -1)[0]) == 3


@pytest.mark.parametrize(("box", "pixels"), [((2, 2, 5, 5), 9), ((2.5, 2.5, 5.5, 5.5), 12)])
def test_paste_by_hand(box, pixels):
    mask, box = torch.ones(1, 28, 28), torch.tensor([box]).float()
    assert ops.paste_masks(mask, box, (8, 8)).sum().item() == pixels  # some lie exactly on the threshold
    assert not ops.paste_masks(mask, torch.tensor([[50.0, 50, 60, 60]]), (8, 8)).any()
    assert not ops.paste_masks(mask, torch.tensor([[2.0, math.nan, 5, 5]]), (8, 8)).any()


def test_keypoints_by_hand():
    flat = torch.zeros(2, 1, 56, 56)
    found = selection.keypoints(flat, torch.tensor([[5.0, 5, 5, 5], [0, 0, 20, 20]]))
    assert found[0, 0, :2].tolist() == [5.5, 5.5]
    np.testing.assert_allclose(found[1, 0], [0.5, 0.5, 1 / 3136], rtol=1e-6)


def test_panoptic_keeps_half_covered_instances_and_drops_more():
    masks = torch.zeros(3, 4, 10, dtype=torch.bool)
    masks[0, :, :4] = True
    masks[1, :, 2:6] = True  # half of it taken: stays on its free half
    masks[2, :, 3:7] = True  # three quarters taken
    semantic = torch.zeros(3, 4, 10)
    semantic[2, :2], semantic[0, 2:] = 1, 1
    combine = {"OVERLAP_THRESH": 0.5, "STUFF_AREA_LIMIT": 8, "INSTANCES_CONFIDENCE_THRESH": 0.5}
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([3, 4, 5])
    result, segments = selection.panoptic(semantic, masks, scores, classes, combine)
    assert (
        result[0].tolist() == [1] * 4 + [2] * 2 + [3] * 4
        and result[3].tolist() == [1] * 4 + [2] * 2 + [0] * 4
    )
    assert [(s["id"], s["isthing"], s["category_id"]) for s in segments] == [
        (1, True, 3),
        (2, True, 4),
        (3, False, 2),
    ]
    assert segments[2]["area"] == 8 and segments[1]["instance_id"] == 1
    more, _ = selection.panoptic(semantic, masks, scores, classes, {**combine, "STUFF_AREA_LIMIT": 9})
    assert 3 not in more


def test_boxes_are_rescaled_with_float32_factors_and_empty_ones_go():
    found = {
        "pred_boxes": torch.tensor([[1.0, 1, 3, 3], [40, 40, 44, 44]]),
        "scores": torch.tensor([0.9, 0.8]),
    }
    result = selection.instances_to_image(found, (30, 30), (10, 20))
    factor = np.float32(20 / 30)
    assert result["scores"].tolist() == pytest.approx([0.9])
    assert result["pred_boxes"][0, 0].item() == factor * np.float32(1)


# ---- models


VARIANTS, PROPOSALS = variants.VARIANTS, variants.PROPOSALS
tiny_config, picture = variants.tiny_config, variants.picture


def tiny_model(name):
    """A variant with its weights."""
    model = torch_reference.build(tiny_config(VARIANTS[name]))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    torch_reference.load_state(model, variants.tiny_state(shapes))
    return model


def predicted(model, name):
    record = {}
    given = PROPOSALS if name == "fast" else None
    result = torch_reference.predict(model, picture(), given, record=record)
    return result, record


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_runs_free_forced_and_in_float64(name):
    model = tiny_model(name)
    result, record = predicted(model, name)
    table = stages(model.config)
    assert {stage.name for stage in table} <= set(record)
    assert all(np.isfinite(array).all() for array in record.values() if array.dtype.kind == "f")
    if "instances" in result:
        assert 0 < len(result["instances"]["scores"]) <= 8
        assert set(np.diff(result["instances"]["scores"]) <= 0) <= {True}
    # fed with its own stages, every stage comes out as it was
    forced, derived = torch_reference.run_forced(model, record)
    assert set(forced) == {stage.name for stage in table} and not derived
    for key, value in forced.items():
        np.testing.assert_array_equal(value.numpy(), record[key], err_msg=key)
    # in float64, fed with the float32 stages: the continuous ones differ by float32's rounding only
    model.double()
    exact, _ = torch_reference.run_forced(model, record)
    for stage in table:
        got, want = exact[stage.name].numpy(), record[stage.name]
        if stage.kind == "continuous":
            assert got.dtype == np.float64
            assert np.linalg.norm(got - want) <= 3e-6 * np.linalg.norm(want), stage.name
        else:
            np.testing.assert_array_equal(got, want, err_msg=stage.name)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in variants.NOT_RECORDED])
def test_variant_computes_what_detectron2_computed(name):
    _, record = predicted(tiny_model(name), name)
    with np.load(variants.RECORDING) as archive:
        want = {key.removeprefix(f"{name}/"): archive[key] for key in archive if key.startswith(f"{name}/")}
    segments = json.loads(str(want.pop("segments_info")))
    assert set(want) == set(record)
    for key, recorded in want.items():
        got = record[key]
        if recorded.shape == (2,) and recorded.dtype == np.float64:
            mark = variants.fingerprint(got)
            np.testing.assert_allclose(mark, recorded, rtol=0, atol=2e-5 * recorded[0], err_msg=key)
        elif recorded.dtype.kind == "f":
            np.testing.assert_allclose(got, recorded, rtol=1e-4, atol=1e-3, err_msg=key)
        else:
            np.testing.assert_array_equal(got, recorded, err_msg=key)
    if segments:
        assert len(segments) == record["output/panoptic_seg"].max() > 1


@pytest.mark.parametrize("name", ["mask", "cascade", "c4"])
def test_missing_stages_are_computed_and_said_so(name):
    model = tiny_model(name)
    _, record = predicted(model, name)
    optional = {stage.name for stage in stages(model.config) if stage.optional}
    feed = {key: value for key, value in record.items() if key not in optional}
    forced, derived = torch_reference.run_forced(model, feed)
    for key, value in forced.items():
        np.testing.assert_allclose(value.numpy(), record[key], rtol=1e-5, atol=1e-6, err_msg=key)
    assert "steps/roi_heads/0/0/pred_boxes" in derived["output/instances/pred_boxes"]
    assert "steps/roi_heads.box_head" not in derived
    # without the network image nothing that needs its size can be said
    forced, _ = torch_reference.run_forced(model, {key: v for key, v in feed.items() if "input" not in key})
    assert "steps/proposal_generator/0/0/proposal_boxes" not in forced


def test_levels_of_retinanet_have_their_own_statistics():
    model = tiny_model("retinanet_bn")
    _, record = predicted(model, "retinanet_bn")
    norm = model.head.cls_subnet[1]
    norm[2].running_mean += 1.0  # of the third level
    _, changed = predicted(model, "retinanet_bn")
    names = [f"steps/head/0/{level}" for level in range(5)]
    assert [name for name in names if not np.array_equal(record[name], changed[name])] == ["steps/head/0/2"]


def test_padding_and_normalisation():
    model = tiny_model("mask")
    _, record = predicted(model, "mask")
    x, small = record["steps/input"], record["input/resized"]
    assert small.shape == (64, 91, 3) and x.shape == (1, 3, 64, 96)
    assert not x[..., 91:].any()
    want = (small[5, 7].astype(np.float32) - np.float32([103.53, 116.28, 123.675])) / np.float32([57, 57, 58])
    np.testing.assert_array_equal(x[0, :, 5, 7], want)
    rgb = torch_reference.build({**model.config, "INPUT": {**model.config["INPUT"], "FORMAT": "RGB"}})
    values, _ = torch_reference.run_free(rgb, picture())
    np.testing.assert_array_equal(values["input/resized"].numpy(), small[:, :, ::-1])


def test_a_picture_of_one_channel():
    model = tiny_model("mask").config
    node = {**model["MODEL"], "PIXEL_MEAN": [110.0], "PIXEL_STD": [2.0]}
    grey = torch_reference.build({**model, "MODEL": node, "INPUT": {**model["INPUT"], "FORMAT": "L"}})
    values, _ = torch_reference.run_free(grey, picture()[:, :, :1])
    colours, _ = torch_reference.run_free(tiny_model("mask"), picture())
    small = values["input/resized"].numpy()
    np.testing.assert_array_equal(small, colours["input/resized"].numpy()[:, :, :1])
    np.testing.assert_array_equal(
        values["steps/input"][0, 0, :, :91], (small[:, :, 0].astype(np.float32) - 110) / 2
    )
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 1\)"):
        torch_reference.predict(grey, picture())


def test_square_padding_pads_and_cuts():
    model = tiny_model("square")
    assert predicted(model, "square")[1]["steps/input"].shape == (1, 3, 96, 96)
    model.config["MODEL"]["FPN"]["SQUARE_PAD"] = 64
    assert predicted(model, "square")[1]["steps/input"].shape == (1, 3, 64, 64)


# ---- errors


def state_of(model):
    return {key: value.numpy() for key, value in model.state_dict().items()}


def test_state_is_loaded_strictly():
    model = tiny_model("mask")
    state = state_of(model)
    other = torch_reference.build(model.config)
    harmless = {
        "pixel_mean": np.zeros(3),
        "backbone.bottom_up.stem.conv1.norm.num_batches_tracked": np.array(7),
    }
    torch_reference.load_state(other, {**state, **harmless})
    assert all(np.array_equal(value, state[key]) for key, value in state_of(other).items())
    key = "roi_heads.box_head.fc1.weight"
    broken = {**state, "extra.weight": np.zeros(2), key: state[key].T}
    del broken["backbone.fpn_lateral2.bias"]
    with pytest.raises(StateError) as caught:
        torch_reference.load_state(other, broken)
    for text in (
        "3 entries",
        "missing backbone.fpn_lateral2.bias",
        "unexpected extra.weight",
        f"shape of {key}",
    ):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("RESNETS.DEPTH", 51, "RESNETS.DEPTH 51"),
        ("RESNETS.NORM", "XN", "norm 'XN'"),
        ("FPN.FUSE_TYPE", "max", "FUSE_TYPE 'max'"),
        ("ROI_BOX_HEAD.NAME", "Other", "ROI_BOX_HEAD.NAME 'Other'"),
        ("ROI_MASK_HEAD.NAME", "PointRendMaskHead", "ROI_MASK_HEAD.NAME"),
        ("RPN.HEAD_NAME", "Other", "RPN.HEAD_NAME"),
        ("ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256, 300]], "anchors per cell"),
        ("ROI_HEADS.NAME", "CascadeROIHeads", "CLS_AGNOSTIC_BBOX_REG"),
    ],
)
def test_settings_that_are_not_supported_are_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        torch_reference.build(tiny_config({key: value}))


def test_inputs_are_checked():
    model = tiny_model("mask")
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\)"):
        torch_reference.predict(model, picture().astype(np.float32))
    with pytest.raises(ValueError, match="computes its own proposals"):
        torch_reference.predict(model, picture(), PROPOSALS)
    with pytest.raises(ValueError, match="needs proposals"):
        torch_reference.predict(tiny_model("fast"), picture())
    with pytest.raises(ValueError, match="resized to 96x0"):
        torch_reference.predict(model, np.zeros((1, 500, 3), np.uint8))


# ---- embedded model


@pytest.fixture(scope="module")
def demo():
    """(model, what it computed, detectron2's recording) of the embedded checkpoint."""
    config = yaml.safe_load((DEMO / "shapes.yaml").read_text())
    model = torch_reference.build(config)
    torch_reference.load_state(model, dict(weights.read_checkpoint(DEMO / "shapes.pkl").state))
    record = {}
    torch_reference.predict(model, read_image(DEMO / "shapes.png"), record=record)
    with Trace(DEMO / "shapes_detectron2.h5") as trace:
        return model, record, {name: trace.images[0][name] for name in trace.images[0]}


def test_embedded_model_computes_what_detectron2_recorded(demo):
    model, record, recorded = demo
    compared = 0
    for stage in stages(model.config):
        if stage.name not in recorded:
            assert stage.optional, stage.name
            continue
        want = recorded[stage.name]
        got = record[stage.name][: len(want)] if stage.roi_features else record[stage.name]
        assert got.shape == want.shape and got.dtype == want.dtype, stage.name
        compared += 1
        if stage.kind == "continuous":
            assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want), stage.name
        elif want.dtype.kind == "f":
            np.testing.assert_allclose(got, want, atol=1e-3, err_msg=stage.name)
        elif stage.name.endswith("pred_masks"):
            assert (got != want).sum() <= 3
        else:
            np.testing.assert_array_equal(got, want, err_msg=stage.name)
    assert compared == 33


def test_embedded_model_fed_with_the_recording(demo):
    model, _, recorded = demo
    forced, _ = torch_reference.run_forced(model, recorded)
    for stage in stages(model.config):
        got, want = forced[stage.name].numpy(), recorded.get(stage.name)
        if stage.kind == "continuous" and want is not None:
            rows = min(len(got), len(want))
            assert np.linalg.norm(got[:rows] - want[:rows]) <= 2e-6 * np.linalg.norm(want[:rows]), stage.name
    for name in ("scores", "pred_classes"):
        rows = len(forced[f"output/instances/{name}"])
        np.testing.assert_allclose(
            forced[f"output/instances/{name}"], recorded[f"output/instances/{name}"][:rows], atol=1e-6
        )


# The compact reference has the stock models; those of the projects are compared with detectron2 itself.
TRANSFORMER_OPS = set(
    "simfp patches positions tokens windows relative_positions attention pool pooled_attention join finish token_map "
    "rows_of_map shift_mask shifted_windows window_attention shifted_join merge rows_to_map tower fcos_out".split()
)
PROJECT_OPS = TRANSFORMER_OPS | set(
    "mask_look mask_points mask_refine sem_seg_coarse sem_seg_refine decode enlarge panoptic_deeplab mask_fuse "
    "mask_windows tensor_mask_out".split()
)


def test_detectron2_has_every_op_and_the_reference_those_of_stock_models():
    from parity.backends import detectron2_units
    from parity.core.units import OPS

    own = {"panoptic"}  # also returns the segments, so that it is called by name
    older = {"network_boxes", "keypoint_logits"}  # of older conventions, which detectron2 does not have
    assert set(detectron2_units.OPS) | own == set(OPS) - older
    assert set(run.OPS) | own == set(OPS) - PROJECT_OPS - older
    assert set(older_run.OPS) - older <= set(run.OPS) and older <= set(older_run.OPS)
