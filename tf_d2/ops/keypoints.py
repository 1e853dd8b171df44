"""Decoding keypoint heat maps into positions and scores.

The S x S map of a box is stretched over it with bicubic interpolation (a = -0.75) to a grid of ceil(width)
x ceil(height) cells, which may also be a shrink; the highest cell, the first in row order, is the keypoint.
Cell (ix, iy) has its centre at ((ix + 0.5) * width / ceil(width) + x1, (iy + 0.5) * height / ceil(height) +
y1).

The stretched map is never held whole: columns are stretched first (S lines of ceil(width) values per
keypoint), then output rows in pieces, of which only each row's maximum is kept; the winning row is computed
once more.

Source: detectron2/structures/keypoints.py `heatmaps_to_keypoints` at 02b5c4e2.
"""

import tensorflow as tf

from tf_d2.ops.elementary import exp, reciprocal
from tf_d2.ops.interpolate import cubic_taps

_CHUNK_ELEMENTS = 1 << 18  # stretched values per piece of rows: 1 MB of float32


def decode_keypoints(heatmaps: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """Keypoints [N,K,3] float32 (x, y, score) of `heatmaps` [N,K,S,S] (logits) in `boxes` [N,4] xyxy.

    x and y are in the pixels of the boxes, not clipped. The score is 1 / sum over the original S x S map of
    exp(logit - highest stretched logit): not a probability (1/S**2 for a flat map). Sides shorter than a
    pixel count as one pixel. Boxes must be finite.

    Source: keypoint_rcnn_inference, detectron2/modeling/roi_heads/keypoint_head.py.
    """
    heatmaps, boxes = tf.cast(heatmaps, tf.float32), tf.cast(boxes, tf.float32)
    count = tf.shape(boxes)[0]
    keypoints = tf.TensorArray(
        tf.float32, size=count, infer_shape=False, element_shape=[heatmaps.shape[1], 3]
    )
    _, keypoints = tf.while_loop(
        lambda i, _: i < count,
        lambda i, keypoints: (i + 1, keypoints.write(i, _decode_one(heatmaps[i], boxes[i]))),
        (0, keypoints),
        parallel_iterations=4,
    )
    # An empty list cannot be stacked where the number of keypoints is not static.
    return tf.cond(count > 0, keypoints.stack, lambda: tf.zeros(tf.stack([0, tf.shape(heatmaps)[1], 3])))


def decode_keypoints_with_logits(heatmaps: tf.Tensor, boxes: tf.Tensor, min_size: int = 0) -> tf.Tensor:
    """Keypoints [N,K,4] float32 (x, y, logit, probability) as Detectron decodes them; arguments as above.

    The same stretching and positions. The logit is the highest of the stretched map, the probability its softmax over
    the *stretched* map. `min_size`: sides of the stretched map, in cells, are at least this. Detectron decodes in
    the boxes of the original picture.

    Source: heatmaps_to_keypoints and scores_to_probs, detectron/utils/keypoints.py.
    """
    heatmaps, boxes = tf.cast(heatmaps, tf.float32), tf.cast(boxes, tf.float32)
    count = tf.shape(boxes)[0]
    rows = tf.TensorArray(tf.float32, size=count, infer_shape=False, element_shape=[heatmaps.shape[1], 4])
    _, rows = tf.while_loop(
        lambda i, _: i < count,
        lambda i, rows: (i + 1, rows.write(i, _decode_one(heatmaps[i], boxes[i], min_size, True))),
        (0, rows),
        parallel_iterations=4,
    )
    return tf.cond(count > 0, rows.stack, lambda: tf.zeros(tf.stack([0, tf.shape(heatmaps)[1], 4])))


def _decode_one(maps: tf.Tensor, box: tf.Tensor, min_size: int = 0, with_logits: bool = False) -> tf.Tensor:
    """[K,S,S] in one box [4] -> [K,3], or [K,4] with logit and probability."""
    size = tf.maximum(box[2:] - box[:2], 1.0)  # (width, height)
    grid = tf.math.ceil(size)
    if min_size > 0:
        grid = tf.maximum(grid, float(min_size))
    out_w, out_h = tf.unstack(tf.cast(grid, tf.int32))
    lines = _stretch_columns(maps, out_w)  # [S,K,w]
    taps, weights = cubic_taps(tf.shape(maps)[1], out_h, maps.dtype)  # [4,h]
    iy = tf.argmax(
        _row_maxima(lines, taps, weights), axis=0, output_type=tf.int32
    )  # [K], first row of the maximum
    # The winning row of each keypoint, with the same operations and so the same values as before: [K,w].
    keypoint = tf.range(tf.shape(maps)[0])
    terms = [
        tf.gather_nd(lines, tf.stack([tf.gather(taps[t], iy), keypoint], axis=1))
        * tf.gather(weights[t], iy)[:, tf.newaxis]
        for t in range(4)
    ]
    row = ((terms[0] + terms[1]) + terms[2]) + terms[3]
    ix = tf.argmax(row, axis=1, output_type=tf.int32)
    highest = tf.reduce_max(row, axis=1)
    cell = tf.cast(tf.stack([ix, iy], axis=1), tf.float32)
    position = (cell + 0.5) * (size / grid) + box[:2]
    if with_logits:
        total = _stretched_sum(lines, taps, weights, highest)
        return tf.concat([position, highest[:, tf.newaxis], reciprocal(total)[:, tf.newaxis]], axis=1)
    powers = exp(maps - highest[:, tf.newaxis, tf.newaxis])
    score = reciprocal(tf.cast(tf.reduce_sum(tf.cast(powers, tf.float64), axis=[1, 2]), tf.float32))
    return tf.concat([position, score[:, tf.newaxis]], axis=1)


def _stretched_sum(lines: tf.Tensor, taps: tf.Tensor, weights: tf.Tensor, highest: tf.Tensor) -> tf.Tensor:
    """Sum over the stretched map of exp(logit - highest): lines [S,K,w], highest [K] -> [K], in pieces of rows."""
    height = tf.shape(taps)[1]
    step = tf.clip_by_value(_CHUNK_ELEMENTS // (tf.shape(lines)[1] * tf.shape(lines)[2]), 1, height)

    def add(start: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        part = slice(start, start + step)
        powers = exp(_blend(lines, taps[:, part], weights[:, part]) - highest[:, tf.newaxis])
        return start + step, total + tf.reduce_sum(tf.cast(powers, tf.float64), axis=[0, 2])

    start = (0, tf.zeros_like(highest, tf.float64))
    _, total = tf.while_loop(lambda i, _: i < height, add, start, parallel_iterations=1)
    return tf.cast(total, tf.float32)


def _stretch_columns(maps: tf.Tensor, out_w: tf.Tensor) -> tf.Tensor:
    """[K,S,S] -> [S,K,w], row-major in y: bicubic along x."""
    taps, weights = cubic_taps(tf.shape(maps)[2], out_w, maps.dtype)  # [4,w]
    by_x = tf.transpose(maps, [2, 1, 0])  # [x,y,K]: whole lines are gathered
    return tf.transpose(_blend(by_x, taps, weights), [1, 2, 0])


def _row_maxima(lines: tf.Tensor, taps: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Maximum over x of every stretched row: lines [S,K,w] -> [h,K], in pieces of rows."""
    height = tf.shape(taps)[1]
    step = tf.clip_by_value(_CHUNK_ELEMENTS // (tf.shape(lines)[1] * tf.shape(lines)[2]), 1, height)
    pieces = (height + step - 1) // step

    def piece_maxima(start: tf.Tensor) -> tf.Tensor:
        part = slice(start, start + step)
        return tf.reduce_max(_blend(lines, taps[:, part], weights[:, part]), axis=2)

    maxima = tf.TensorArray(tf.float32, size=pieces, infer_shape=False, element_shape=[None, None])
    _, maxima = tf.while_loop(
        lambda piece, _: piece < pieces,
        lambda piece, maxima: (piece + 1, maxima.write(piece, piece_maxima(piece * step))),
        (0, maxima),
        parallel_iterations=2,
    )
    return maxima.concat()


def _blend(lines: tf.Tensor, taps: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Sum over the 4 taps of weights [4,n] times lines [S,a,b] gathered at taps [4,n], in order: [n,a,b]."""
    weights = weights[:, :, tf.newaxis, tf.newaxis]
    total = tf.gather(lines, taps[0]) * weights[0]
    for t in range(1, 4):
        total = total + tf.gather(lines, taps[t]) * weights[t]
    return total
