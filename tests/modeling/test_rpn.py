"""The region proposal network, part by part, against plain loops."""

import numpy as np
import pytest
import tensorflow as tf
from support import loops

from tf_d2.config.parts.anchors import AnchorConfig
from tf_d2.config.parts.rpn import RPNConfig
from tf_d2.modeling.rpn import RPN, StandardRPNHead, level_cell_anchors

STRIDES = (8, 16)


def anchors(**changes):
    values = {
        "sizes": ((16.0,), (32.0,)),
        "aspect_ratios": ((0.5, 1.0, 2.0),),
        "angles": ((),),
        "offset": 0.0,
    }
    return AnchorConfig("DefaultAnchorGenerator", **(values | changes))


def make(**changes):
    values = {"pre_nms_topk": 30, "post_nms_topk": 12, "nms_thresh": 0.6, "min_size": 3.0}
    config = RPNConfig("RPN", ("p3", "p4"), anchors(), (-1,), (1.0, 1.0, 1.0, 1.0), **(values | changes))
    return RPN(config, 4, STRIDES, "proposal_generator")


def cell(size, ratio):
    width = np.sqrt(size * size / ratio)
    return np.array([-width / 2, -width * ratio / 2, width / 2, width * ratio / 2])


def test_anchors_of_a_cell():
    got = level_cell_anchors(anchors(), STRIDES)
    for level, size in zip(got, (16, 32), strict=True):
        np.testing.assert_allclose(level, [cell(size, r) for r in (0.5, 1, 2)], rtol=1e-6)
    shared = level_cell_anchors(anchors(sizes=((16.0, 24.0),), aspect_ratios=((1.0,), (2.0,))), STRIDES)
    np.testing.assert_allclose(shared[0], [cell(16, 1), cell(24, 1)], rtol=1e-6)
    np.testing.assert_allclose(shared[1], [cell(16, 2), cell(24, 2)], rtol=1e-6)


@pytest.mark.parametrize("conv_dims, names", [((-1,), ["conv"]), ((6, -1), ["conv/conv0", "conv/conv1"])])
def test_the_head_is_shared_by_the_levels(conv_dims, names):
    rng = np.random.default_rng(0)
    head = StandardRPNHead(4, 3, 4, conv_dims, "rpn_head")
    loops.fill(head, rng)
    values = {v.path.removeprefix("rpn_head/"): np.asarray(v.value) for v in head.variables}
    assert set(values) == {
        f"{layer}/{part}"
        for layer in (*names, "objectness_logits", "anchor_deltas")
        for part in ("kernel", "bias")
    }
    maps = [rng.normal(size=(2, h, w, 4)).astype(np.float32) for h, w in ((5, 6), (3, 3))]
    logits, deltas = head([tf.constant(m) for m in maps])
    for k, x in enumerate(maps):
        hidden = x
        for name in names:
            hidden = loops.relu(
                loops.conv(hidden, values[f"{name}/kernel"], values[f"{name}/bias"], padding=1)
            )
        for got, name in ((logits[k], "objectness_logits"), (deltas[k], "anchor_deltas")):
            expected = loops.conv(hidden, values[f"{name}/kernel"], values[f"{name}/bias"])
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def outputs(seed):
    """Two images, two levels: logits and deltas, and the images' sizes without padding."""
    rng = np.random.default_rng(seed)
    shapes = ((8, 10), (4, 5))
    logits = [rng.normal(size=(2, *s, 3)).astype(np.float32) for s in shapes]
    deltas = [rng.normal(0, 0.5, (2, *s, 12)).astype(np.float32) for s in shapes]
    return logits, deltas, np.array([[60, 75], [50, 80]], np.int32)


def proposals(rpn, logits, deltas, size, image):
    """Of one image: (boxes, logits)."""
    boxes, scores, levels = [], [], []
    for level, stride in enumerate(STRIDES):
        every = []
        for y, x, a in np.ndindex(*logits[level].shape[1:]):
            anchor = cell((16, 32)[level], (0.5, 1, 2)[a]) + np.array([x, y, x, y]) * stride
            delta = deltas[level][image, y, x, 4 * a : 4 * a + 4]
            every.append(
                (loops.clip(loops.decode(delta, anchor, (1, 1, 1, 1)), size), logits[level][image, y, x, a])
            )
        every.sort(key=lambda e: -np.inf if np.isnan(e[1]) else -e[1])
        for box, score in every[: rpn.rpn.pre_nms_topk]:
            if np.isfinite(score) and min(box[2] - box[0], box[3] - box[1]) > rpn.rpn.min_size:
                boxes.append(box)
                scores.append(score)
                levels.append(level)
    kept = loops.suppressed(boxes, scores, levels, rpn.rpn.nms_thresh)[: rpn.rpn.post_nms_topk]
    return [boxes[i] for i in kept], [scores[i] for i in kept]


@pytest.mark.parametrize("changes", [{}, {"pre_nms_topk": 8}, {"post_nms_topk": 400, "min_size": 20.0}])
def test_proposals(run, changes):
    rpn = make(**changes)
    logits, deltas, sizes = outputs(1)
    got = run(lambda a, b, c, d, s: rpn.predict_proposals([a, b], [c, d], s), *logits, *deltas, sizes)
    expected = [proposals(rpn, logits, deltas, sizes[i], i) for i in range(2)]
    assert got.counts.tolist() == [len(boxes) for boxes, _ in expected] and min(got.counts) > 5
    np.testing.assert_allclose(got.boxes, [b for boxes, _ in expected for b in boxes], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(got.logits, [s for _, scores in expected for s in scores])
    assert got.image_index.tolist() == [0] * len(expected[0][0]) + [1] * len(expected[1][0])


def test_what_is_no_number_takes_a_place_and_is_dropped():
    """torch ranks NaN highest: such an anchor pushes the weakest of the best out, and is no proposal itself."""
    rpn = make(pre_nms_topk=6, nms_thresh=0.99)
    logits, deltas, sizes = outputs(2)
    logits[0][0, 2, 3, 1] = np.nan
    deltas[1][1, 0, 0, 0] = np.inf
    logits[1][1, 0, 0, 0] = 9.0  # among the best
    tensors = [tf.constant(x) for x in logits], [tf.constant(x) for x in deltas]
    got = rpn.predict_proposals(*tensors, tf.constant(sizes))
    assert np.isfinite(got.boxes).all() and np.isfinite(got.logits).all() and 9.0 not in got.logits.numpy()
    boxes, scores = proposals(rpn, logits, deltas, sizes[0], 0)
    np.testing.assert_array_equal(got.logits[: got.counts[0]], scores)
    np.testing.assert_allclose(got.boxes[: got.counts[0]], boxes, rtol=1e-5, atol=1e-4)


def test_the_whole_is_head_and_selection():
    rpn = make()
    loops.fill(rpn, np.random.default_rng(3), 0.5)
    maps = [
        tf.constant(np.random.default_rng(k).normal(size=(2, 8 - 4 * k, 10 - 5 * k, 4)), tf.float32)
        for k in range(2)
    ]
    sizes = tf.constant([[60, 75], [50, 80]])
    got, again = rpn(maps, sizes), rpn.predict_proposals(*rpn.rpn_head(maps), sizes)
    np.testing.assert_array_equal(got.boxes, again.boxes)
    assert all(v.path.startswith("proposal_generator/rpn_head/") for v in rpn.variables)
