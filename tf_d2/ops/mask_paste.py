"""Pasting fixed-size mask probabilities into the image as TensorFlow ops, for exports that return full masks.

The formula and the order of operations are those of `tf_d2.ops.mask_paste_numpy` (explained there), so both
give the same booleans. Host code should prefer the NumPy form: it writes into one array, TensorFlow has to
stack N images.

Source: detectron2/layers/mask_ops.py at 02b5c4e2, CPU path; torch grid_sample (bilinear, zeros,
align_corners=False).
"""

import tensorflow as tf

_CHUNK_ELEMENTS = 1 << 18  # float32 values per piece of rows: 1 MB

_BLOCK_ELEMENTS = 1 << 26  # float32 values of several masks at once: 256 MB

_Int = int | tf.Tensor


def paste_masks(
    masks: tf.Tensor, boxes: tf.Tensor, height: _Int, width: _Int, threshold: float = 0.5
) -> tf.Tensor:
    """Booleans [N,height,width]: probability `masks` [N,M,M] pasted into `boxes` [N,4] xyxy pixels >=
    threshold.

    float32 whatever the input type. Same windows, same treatment of degenerate boxes and same values as
    `paste_masks_numpy`. One mask at a time, its float values in pieces of rows of about 1 MB.

    Raises ValueError for a negative threshold or masks that are statically not square.
    Source: paste_masks_in_image, detectron2/layers/mask_ops.py.
    """
    masks, boxes = tf.cast(masks, tf.float32), tf.cast(boxes, tf.float32)
    if masks.shape[1] != masks.shape[2]:
        raise ValueError(f"masks must be [N,M,M], got {masks.shape}: one square mask per detection")
    count = tf.shape(masks)[0]
    images = tf.TensorArray(tf.bool, size=count, infer_shape=False, element_shape=[None, None])
    _, images = tf.while_loop(
        lambda i, _: i < count,
        lambda i, images: (i + 1, images.write(i, paste_mask(masks[i], boxes[i], height, width, threshold))),
        (0, images),
    )
    # An empty list cannot be stacked where the size of the image is not static.
    return tf.cond(count > 0, images.stack, lambda: tf.zeros(tf.stack([0, height, width]), tf.bool))


def paste_mask(
    mask: tf.Tensor, box: tf.Tensor, height: _Int, width: _Int, threshold: float = 0.5
) -> tf.Tensor:
    """One mask [M,M] float32 pasted into its box [4]: bool [height,width]; see `paste_masks`."""
    if not threshold >= 0:
        raise ValueError(f"mask threshold must be at least 0, got {threshold}")
    height, width = tf.cast(height, tf.int32), tf.cast(width, tf.int32)
    size = tf.shape(mask)[0]
    usable = tf.reduce_all(tf.math.is_finite(box)) & (box[2] > box[0]) & (box[3] > box[1])
    box = tf.where(usable, box, tf.constant([-9.0, -9.0, -8.0, -8.0]))  # an empty window
    left, columns, column_weights = _cells(box[0], box[2], width, size)
    top, rows, row_weights = _cells(box[1], box[3], height, size)
    by_cell = tf.transpose(mask)  # [column,row]: gathering whole lines is faster than single values
    lines = tf.gather(by_cell, columns[0]) * column_weights[0][:, tf.newaxis]
    lines = tf.transpose(lines + tf.gather(by_cell, columns[1]) * column_weights[1][:, tf.newaxis])  # [M,w]
    window = _threshold_rows(lines, rows, row_weights, threshold)
    bottom, right = height - top - tf.shape(window)[0], width - left - tf.shape(window)[1]
    return tf.pad(window, tf.stack([[top, bottom], [left, right]]))


def paste_masks_at_once(
    masks: tf.Tensor, boxes: tf.Tensor, height: _Int, width: _Int, threshold: float = 0.5
) -> tf.Tensor:
    """The same as `paste_masks`, for a GPU: a few operations on many masks, over the whole image instead of windows.

    Probabilities [N,M,M] and boxes [N,4] xyxy pixels -> bool [N,height,width], with about 1 GB besides. Booleans are
    the same, since each step is the same IEEE operation.

    Raises ValueError as `paste_masks` does.
    Source: paste_masks_in_image, detectron2/layers/mask_ops.py.
    """
    if not threshold >= 0:
        raise ValueError(f"mask threshold must be at least 0, got {threshold}")
    if masks.shape[1] != masks.shape[2]:
        raise ValueError(f"masks must be [N,M,M], got {masks.shape}: one square mask per detection")
    masks, boxes = tf.cast(masks, tf.float32), tf.cast(boxes, tf.float32)
    height, width = tf.cast(height, tf.int32), tf.cast(width, tf.int32)
    size = tf.shape(masks)[1]
    usable = tf.reduce_all(tf.math.is_finite(boxes), 1) & tf.reduce_all(boxes[:, 2:] > boxes[:, :2], 1)
    boxes = tf.where(usable[:, None], boxes, tf.constant([-9.0, -9.0, -8.0, -8.0]))  # an empty window
    at_once = tf.maximum(_BLOCK_ELEMENTS // tf.maximum(height * width, 1), 1)

    def paste_block(first: tf.Tensor) -> tf.Tensor:
        some = slice(first, first + at_once)
        in_columns, columns, column_weights = _image_cells(boxes[some, 0], boxes[some, 2], width, size)
        in_rows, rows, row_weights = _image_cells(boxes[some, 1], boxes[some, 3], height, size)
        by_cell = tf.transpose(masks[some], [0, 2, 1])
        left, right = (
            tf.gather(by_cell, columns[k], batch_dims=1) * column_weights[k][:, :, None] for k in (0, 1)
        )
        lines = tf.transpose(left + right, [0, 2, 1])  # [n,M,w]
        upper, lower = (tf.gather(lines, rows[k], batch_dims=1) * row_weights[k][:, :, None] for k in (0, 1))
        pasted = upper + lower >= threshold
        # Outside of its window a mask is not set: weights are 0 there, and 0 is enough only for a threshold of 0.
        return pasted if threshold > 0 else pasted & in_rows[:, :, None] & in_columns[:, None, :]

    # At least one, since no array can be joined from none.
    blocks = tf.maximum((tf.shape(masks)[0] + at_once - 1) // at_once, 1)
    pasted = tf.TensorArray(tf.bool, size=blocks, infer_shape=False, element_shape=[None, None, None])
    _, pasted = tf.while_loop(
        lambda block, _: block < blocks,
        lambda block, pasted: (block + 1, pasted.write(block, paste_block(block * at_once))),
        (0, pasted),
        parallel_iterations=1,
    )
    return tf.reshape(pasted.concat(), tf.stack([tf.shape(masks)[0], height, width]))


def _image_cells(
    low: tf.Tensor, high: tf.Tensor, limit: tf.Tensor, size: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Of all pixels of one axis, from the coordinates [n] of n boxes: whether they lie in the window, bool [n,limit];
    cells [2,n,limit] and their float32 weights [2,n,limit], 0 outside."""
    end = tf.cast(limit, tf.float32)
    first = tf.clip_by_value(tf.floor(low) - 1, 0, end)[:, None]
    stop = tf.clip_by_value(tf.math.ceil(high) + 1, 0, end)[:, None]
    index = tf.cast(tf.range(limit), tf.float32)
    within = (index >= first) & (index < stop)
    cells, weights = _interpolation(index + 0.5, low[:, None], high[:, None], size)
    return within, cells, tf.where(within, weights, 0.0)


def _threshold_rows(lines: tf.Tensor, rows: tf.Tensor, weights: tf.Tensor, threshold: float) -> tf.Tensor:
    """Blend lines [M,w] into rows [2,h] with weights [2,h], compare: bool [h,w], in pieces of rows."""
    height, width = tf.shape(rows)[1], tf.shape(lines)[1]
    step = tf.maximum(_CHUNK_ELEMENTS // tf.maximum(width, 1), 1)

    def blend(start: tf.Tensor) -> tf.Tensor:
        part = slice(start, start + step)
        upper = tf.gather(lines, rows[0, part]) * weights[0, part, tf.newaxis]
        return upper + tf.gather(lines, rows[1, part]) * weights[1, part, tf.newaxis] >= threshold

    pieces = tf.maximum((height + step - 1) // step, 1)  # an empty array could not be joined
    parts = tf.TensorArray(tf.bool, size=pieces, infer_shape=False, element_shape=[None, None])
    _, parts = tf.while_loop(
        lambda piece, _: piece < pieces,
        lambda piece, parts: (piece + 1, parts.write(piece, blend(piece * step))),
        (0, parts),
        parallel_iterations=2,
    )
    return tf.reshape(parts.concat(), tf.stack([height, width]))


def _cells(
    low: tf.Tensor, high: tf.Tensor, limit: tf.Tensor, size: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """First pixel of the window of one axis, cells [2,n] of its pixels and their float32 weights [2,n]."""
    end = tf.cast(limit, tf.float32)
    first = tf.cast(tf.clip_by_value(tf.floor(low) - 1, 0, end), tf.int32)
    stop = tf.maximum(tf.cast(tf.clip_by_value(tf.math.ceil(high) + 1, 0, end), tf.int32), first)
    return first, *_interpolation(tf.cast(tf.range(first, stop), tf.float32) + 0.5, low, high, size)


def _interpolation(
    pixels: tf.Tensor, low: tf.Tensor, high: tf.Tensor, size: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cells [2,...], between which centres of pixels [...] lie, and their float32 weights [2,...]."""
    normalised = (pixels - low) / (high - low) * 2 - 1
    # "+ 1" goes through float64, exactly: next to "- 1" the graph optimiser would cancel both roundings.
    shifted = tf.cast(tf.cast(normalised, tf.float64) + 1, tf.float32)
    # torch rounds this product and difference once (fused multiply-add); float64 holds the product exactly.
    position = tf.cast(tf.cast(shifted, tf.float64) * (tf.cast(size, tf.float64) / 2) - 0.5, tf.float32)
    cell = tf.floor(position)
    fraction = position - cell
    # int64, as TensorFlow computes int32 on the host, also where it has a GPU.
    size = tf.cast(size, tf.int64)
    index = tf.cast(tf.clip_by_value(cell, -2, tf.cast(size, tf.float32)), tf.int64)
    index = tf.stack([index, index + 1])
    inside = (index >= 0) & (index < size)
    weights = tf.where(inside, tf.stack([1 - fraction, fraction]), 0.0)
    return tf.clip_by_value(index, 0, size - 1), weights
