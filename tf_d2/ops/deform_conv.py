"""Deformable convolution v1 and v2: every kernel tap reads the map at its own, learned, fractional position.

Tap t = i * kw + j of output (oy, ox) reads input row oy * stride - padding + i * dilation + dy, column ox *
stride - padding + j * dilation + dx, where input pixel (r, c) sits at (r, c). Outside -1 < y < H, -1 < x <
W (strictly) the value is 0; inside it is bilinear with every missing neighbour taken as 0. (ROIAlign clamps
instead.)

Output positions go in pieces: four gathers of whole channel vectors per tap, then one matrix product with
the kernel.

Source: detectron2/layers/deform_conv.py at 02b5c4e2; torchvision/csrc/ops/cpu/deform_conv2d_kernel.cpp.
"""

from typing import NamedTuple

import tensorflow as tf

from weights.errors import UsageError

_CHUNK_ELEMENTS = 1 << 19  # sampled values (positions x taps x channels) per piece: 2 MB of float32


def deform_conv2d(
    x: tf.Tensor,
    offset: tf.Tensor,
    kernel: tf.Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    deformable_groups: int = 1,
    mask: tf.Tensor | None = None,
) -> tf.Tensor:
    """Convolve `x` with `kernel` at positions moved by `offset`, without bias.

    Args:
        x: `[B,H,W,C]`, any floating dtype; positions of 16-bit maps are computed in float32.
        offset: `[B,Ho,Wo,2*G*kh*kw]`; channel (g * kh * kw + t) * 2 is dy of tap t in deformable group g, the
            next one dx, in input pixels. Group g moves the channels g * C/G to (g + 1) * C/G - 1.
        kernel: `[kh,kw,C/groups,O]`; the number of convolution groups follows from its shape.
        stride, padding, dilation: the same for rows and columns.
        deformable_groups: G.
        mask: `[B,Ho,Wo,G*kh*kw]`, factor of every sampled value (v2, after its sigmoid), in the order of the
            taps; None for v1.

    Returns:
        `[B,Ho,Wo,O]`, where Ho = floor((H + 2 padding - dilation (kh - 1) - 1) / stride) + 1 must be the
        offset's.

    Raises:
        UsageError: channel counts that do not fit together.

    Source: `DeformConv`, `ModulatedDeformConv`, detectron2/layers/deform_conv.py.
    """
    x, offset, kernel = tf.convert_to_tensor(x), tf.convert_to_tensor(offset), tf.convert_to_tensor(kernel)
    offset = tf.cast(offset, tf.float64 if x.dtype == tf.float64 else tf.float32)
    kernel_h, kernel_w, _, outputs = _static_shape(kernel)
    channels = _channels(x)
    _check_channels(x, offset, kernel, deformable_groups, mask)
    grid = _Grid(stride, padding, dilation)
    y, x_position = _positions(offset, kernel_h, kernel_w, grid, deformable_groups)  # [P,T,G]
    corners, weights = _corners(y, x_position, x, deformable_groups)
    if mask is not None:
        mask = tf.transpose(tf.reshape(mask, [-1, deformable_groups, kernel_h * kernel_w]), [0, 2, 1])
    weights = [tf.cast(weight, x.dtype) for weight in weights]
    table = tf.reshape(x, [-1, channels // deformable_groups])  # row (b, y, x, g)
    matrix = _kernel_matrices(kernel, channels)
    count = tf.shape(y)[0]
    step = max(1, _CHUNK_ELEMENTS // (kernel_h * kernel_w * channels))

    def convolve(start: tf.Tensor) -> tf.Tensor:
        part = slice(start, start + step)
        sampled = _sample(table, [c[part] for c in corners], [w[part] for w in weights])  # [p,T,G,C/G]
        if mask is not None:
            sampled = tf.expand_dims(mask[part], -1) * sampled
        return _contract(sampled, matrix)

    pieces = (count + step - 1) // step
    parts = tf.TensorArray(x.dtype, size=pieces, infer_shape=False, element_shape=[None, outputs])
    _, parts = tf.while_loop(
        lambda piece, _: piece < pieces,
        lambda piece, parts: (piece + 1, parts.write(piece, convolve(piece * step))),
        (0, parts),
        parallel_iterations=2,
    )
    return tf.reshape(parts.concat(), tf.concat([tf.shape(offset)[:3], [outputs]], axis=0))


def _check_channels(
    x: tf.Tensor, offset: tf.Tensor, kernel: tf.Tensor, deformable_groups: int, mask: tf.Tensor | None
) -> None:
    kernel_h, kernel_w, inputs, outputs = _static_shape(kernel)
    channels, taps = _channels(x), kernel_h * kernel_w
    if channels % inputs or outputs % (channels // inputs) or channels % deformable_groups:
        raise UsageError(
            f"deformable convolution: {channels} input channels do not divide into kernel "
            f"{list(kernel.shape)} and {deformable_groups} deformable groups"
        )
    expected = {"offset": (offset, 2 * taps * deformable_groups)}
    if mask is not None:
        expected["mask"] = (mask, taps * deformable_groups)
    for name, (tensor, wanted) in expected.items():
        if tensor.shape[3] != wanted:
            raise UsageError(
                f"deformable convolution: {name} needs {wanted} channels for {taps} taps and "
                f"{deformable_groups} deformable groups, got {tensor.shape[3]}"
            )


def _static_shape(tensor: tf.Tensor) -> list[int]:
    return [size for size in tensor.shape.as_list() if size is not None]


def _channels(x: tf.Tensor) -> int:
    channels = x.shape.as_list()[-1]
    if channels is None:
        raise UsageError(f"deformable convolution: the number of channels must be static, got {x.shape}")
    return channels


class _Grid(NamedTuple):
    """Where the taps lie before they are moved, in input pixels; the same for rows and columns."""

    stride: int
    padding: int
    dilation: int

    def places(self, outputs: tf.Tensor, tap: tf.Tensor) -> tf.Tensor:
        """Rows (or columns) [outputs,T] of taps that are ``tap`` int32 [T] steps from the first."""
        return tf.range(outputs)[:, tf.newaxis] * self.stride - self.padding + tap * self.dilation


def _positions(
    offset: tf.Tensor, kernel_h: int, kernel_w: int, grid: _Grid, groups: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sampled rows and columns, [P,T,G] each, P = B * Ho * Wo."""
    batch, out_h, out_w, _ = tf.unstack(tf.shape(offset))
    taps = kernel_h * kernel_w
    moves = tf.reshape(offset, tf.stack([batch, out_h, out_w, groups, taps, 2]))
    dy, dx = tf.unstack(tf.transpose(moves, [0, 1, 2, 4, 3, 5]), axis=-1)  # [B,Ho,Wo,T,G]
    tap = tf.range(taps)
    rows = grid.places(out_h, tap // kernel_w)  # [Ho,T]
    columns = grid.places(out_w, tap % kernel_w)
    y = tf.cast(rows, offset.dtype)[:, tf.newaxis, :, tf.newaxis] + dy
    x = tf.cast(columns, offset.dtype)[tf.newaxis, :, :, tf.newaxis] + dx
    return tf.reshape(y, [-1, taps, groups]), tf.reshape(x, [-1, taps, groups])


def _corners(
    y: tf.Tensor, x: tf.Tensor, features: tf.Tensor, groups: int
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Table rows and weights of the four neighbours, [P,T,G] each; weight 0 where a neighbour is missing."""
    batch, height, width, _ = tf.unstack(tf.shape(features))
    inside = (y > -1) & (y < tf.cast(height, y.dtype)) & (x > -1) & (x < tf.cast(width, x.dtype))
    y, x = tf.where(inside, y, 0), tf.where(inside, x, 0)
    top, left = tf.floor(y), tf.floor(x)
    below, right = y - top, x - left
    top, left = tf.cast(top, tf.int32), tf.cast(left, tf.int32)
    per_image = tf.shape(y)[0] // tf.maximum(batch, 1)
    first = (
        tf.range(tf.shape(y)[0]) // tf.maximum(per_image, 1) * (height * width)
    )  # [P], first cell of the image
    group = tf.range(groups)
    rows, weights = [], []
    for dy, weight_y in ((0, 1 - below), (1, below)):
        for dx, weight_x in ((0, 1 - right), (1, right)):
            row, column = top + dy, left + dx
            present = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            cell = first[:, tf.newaxis, tf.newaxis] + tf.where(present, row * width + column, 0)
            rows.append(cell * groups + group)
            weights.append(tf.where(present, weight_y * weight_x, tf.zeros([], y.dtype)))
    return rows, weights


def _sample(table: tf.Tensor, rows: list[tf.Tensor], weights: list[tf.Tensor]) -> tf.Tensor:
    """Bilinear values [p,T,G,C/G], the four terms summed in torchvision's order."""
    terms = [
        tf.expand_dims(weight, -1) * tf.gather(table, row) for row, weight in zip(rows, weights, strict=True)
    ]
    return ((terms[0] + terms[1]) + terms[2]) + terms[3]


def _kernel_matrices(kernel: tf.Tensor, channels: int) -> tf.Tensor:
    """HWIO kernel as one matrix [T*I,O/groups] per convolution group: [groups,T*I,O/groups]."""
    height, width, inputs, outputs = _static_shape(kernel)
    groups = channels // inputs
    matrices = tf.reshape(kernel, [height * width * inputs, groups, outputs // groups])
    return tf.transpose(matrices, [1, 0, 2])


def _contract(sampled: tf.Tensor, matrices: tf.Tensor) -> tf.Tensor:
    """[p,T,G,C/G] values times the kernel: [p,O]."""
    groups, rows, outputs = _static_shape(matrices)
    taps, deformable_groups, part = _static_shape(sampled)[-3:]
    channels = deformable_groups * part
    if groups == 1:
        return tf.matmul(tf.reshape(sampled, [-1, rows]), matrices[0])
    split = tf.transpose(tf.reshape(sampled, [-1, taps, groups, channels // groups]), [2, 0, 1, 3])
    product = tf.matmul(tf.reshape(split, [groups, -1, rows]), matrices)  # [groups,p,O/groups]
    return tf.reshape(tf.transpose(product, [1, 0, 2]), [-1, groups * outputs])
