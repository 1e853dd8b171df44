"""TensorMask's head and decoding. Source: projects/TensorMask/tensormask/arch.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tf_d2.config.parts.tensor_mask import TensorMaskConfig
from tf_d2.layers.base import Module, on_levels, sequence
from tf_d2.layers.conv import Conv2d
from tf_d2.modeling.batches import Detections, for_each_image, static_batch
from tf_d2.modeling.retinanet import surely_below
from tf_d2.modeling.rpn import level_cell_anchors
from tf_d2.ops import anchors as anchor_ops
from tf_d2.ops import boxes as box_ops
from tf_d2.ops.align2nat import align2nat, align2nat_map, natural_windows
from tf_d2.ops.elementary import above, rank_key, sigmoid
from tf_d2.ops.interpolate import bilinear
from tf_d2.ops.nms import batched_nms


class _Cells(NamedTuple):
    """Where the anchors of detections lie: int32 ``[N]`` each."""

    level: tf.Tensor
    y: tf.Tensor
    x: tf.Tensor
    anchor: tf.Tensor  # of the cell


class TensorMaskHead(Module):
    """Three towers of 3x3 convolutions, shared over the pyramid levels, and masks of every window.

    ``call``: list of ``[N, H, W, C]``, finest first -> logits ``[N, H, W, A * K]`` and deltas ``[N, H, W, A * 4]`` of
    every level, and of every level and anchor mask logits ``[N, H', W', S * S]``.
    """

    def __init__(self, config: TensorMaskConfig, in_channels: int, name: str) -> None:
        super().__init__(name)
        self.config = config
        anchors = len(config.anchors.sizes[0]) * len(config.anchors.aspect_ratios[0])
        with self.scope():
            self.cls_subnet = self._tower(in_channels, config.cls_channels, "cls_subnet")
            self.bbox_subnet = self._tower(in_channels, config.bbox_channels, "bbox_subnet")
            cls_channels = config.cls_channels if config.num_convs else in_channels
            box_channels = config.bbox_channels if config.num_convs else in_channels
            self.cls_score = Conv2d(
                cls_channels, anchors * config.num_classes, 3, "cls_score", padding=1, large_maps=True
            )
            self.bbox_pred = Conv2d(box_channels, anchors * 4, 3, "bbox_pred", padding=1)
            self.mask_preds: dict[str, Module] = {}
            if config.mask_on:
                self._build_masks(in_channels)

    def _build_masks(self, in_channels: int) -> None:
        config = self.config
        self.mask_subnet = self._tower(in_channels, config.mask_channels, "mask_subnet")
        channels = config.mask_channels if config.num_convs else in_channels
        for size in dict.fromkeys(config.mask_sizes):
            self.mask_preds[str(size)] = Conv2d(channels, size * size, 1, f"mask_pred_{size:02d}")
        if config.bipyramid_on:
            makers = {
                "0": lambda key: Conv2d(channels, channels, 3, key, padding=1, relu=True, large_maps=True)
            }
            self.mask_fuse = sequence("mask_fuse", makers)

    def _tower(self, in_channels: int, channels: int, name: str) -> dict[str, Module]:
        """Children numbered as in torch's Sequential, where every ReLU has a number, too."""
        makers = {
            str(2 * i): lambda key, before=in_channels if i == 0 else channels: Conv2d(
                before, channels, 3, key, padding=1, relu=True, large_maps=True
            )
            for i in range(self.config.num_convs)
        }
        return sequence(name, makers)

    def call(
        self, features: list[tf.Tensor]
    ) -> tuple[list[tf.Tensor], list[tf.Tensor], list[list[tf.Tensor]]]:
        logits, deltas = self.boxes(features)
        return logits, deltas, self.mask_maps(self.mask_features(features))

    def boxes(self, features: list[tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Logits and deltas of every level."""
        outputs = on_levels(self._boxes_of_level, features)
        return [logits for logits, _ in outputs], [deltas for _, deltas in outputs]

    def _boxes_of_level(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return self.cls_score(_run(self.cls_subnet, x)), self.bbox_pred(_run(self.bbox_subnet, x))

    def mask_features(self, features: list[tf.Tensor]) -> list[tf.Tensor]:
        """What the masks of every level are predicted from; with a bipyramid at the finest level's size."""
        if not self.config.mask_on:
            return []
        own = on_levels(lambda x: _run(self.mask_subnet, x), features)
        if not self.config.bipyramid_on:
            return own
        return [self.fuse(level, x, own[0]) for level, x in enumerate(own)]

    def fuse(self, level: int, x: tf.Tensor, finest: tf.Tensor) -> tf.Tensor:
        """Mask features of a level, brought to the finest level's size and joined with these."""
        height, width = tf.unstack(tf.shape(finest)[1:3])
        unit, size = self.config.unit(level), tf.shape(x)[1:3]
        large = bilinear(x, size[0] * unit, size[1] * unit) if level else x
        return _run(self.mask_fuse, large[:, :height, :width] + finest)

    def towers(self, features: list[tf.Tensor]) -> dict[str, list[tf.Tensor]]:
        """What every tower makes of every level, for those who look inside."""
        subnets = {"cls_subnet": self.cls_subnet, "bbox_subnet": self.bbox_subnet}
        if self.config.mask_on:
            subnets["mask_subnet"] = self.mask_subnet
        return {name: [_run(tower, x) for x in features] for name, tower in subnets.items()}

    def mask_maps(self, mask_features: list[tf.Tensor]) -> list[list[tf.Tensor]]:
        """All windows of every level and anchor ``[N, H', W', S * S]``: gigabytes, for a record of what is computed."""
        return [
            [self.window_map(x, level, anchor) for anchor in range(len(self.config.mask_sizes))]
            for level, x in enumerate(mask_features)
        ]

    def window_map(self, x: tf.Tensor, level: int, anchor: int) -> tf.Tensor:
        """The windows around every cell of a level, of one anchor: ``[N, H', W', S * S]``."""
        logits = self.mask_preds[str(self.config.mask_sizes[anchor])](x)
        return align2nat_map(logits, self.config.unit(level)) if self.config.aligned_on else logits

    def mask_windows(
        self, mask_features: list[tf.Tensor], image_index: tf.Tensor, cells: _Cells
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Masks of some windows, with no map of all windows ever made.

        Returns probabilities ``[N, S, S]``, where ``S`` is `TensorMaskConfig.largest_mask` and each mask lies in the
        top left corner, zeros beside it; and their sides, int32 ``[N]``.
        """
        config = self.config
        largest = config.largest_mask
        masks = tf.zeros([tf.shape(cells.level)[0], largest, largest], mask_features[0].dtype)
        sides = tf.zeros_like(cells.level)
        for level, x in enumerate(mask_features):
            for anchor, size in enumerate(config.mask_sizes):
                rows = tf.where((cells.level == level) & (cells.anchor == anchor))
                side = size * config.unit(level)
                places = tf.stack([tf.gather_nd(v, rows) for v in (image_index, cells.y, cells.x)], axis=1)
                masks = self._with_windows(masks, rows, places, (x, level, size))
                sides = tf.tensor_scatter_nd_update(sides, rows, tf.fill(tf.shape(rows)[:1], side))
        return masks, sides

    def _with_windows(
        self, masks: tf.Tensor, rows: tf.Tensor, cells: tf.Tensor, of: tuple[tf.Tensor, int, int]
    ) -> tf.Tensor:
        """``masks`` with the windows of one level and anchor at ``rows``; nothing is computed if there are none."""
        x, level, size = of
        unit, largest = self.config.unit(level), self.config.largest_mask
        side = size * unit

        def with_them() -> tf.Tensor:
            logits = self.mask_preds[str(size)](x)

            def window(cell: tf.Tensor) -> tf.Tensor:
                at = cell[None]
                found = align2nat(logits, unit, at) if self.config.aligned_on else natural_windows(logits, at)
                return tf.pad(sigmoid(found[0]), [[0, largest - side]] * 2)

            spec = tf.TensorSpec([largest, largest], masks.dtype)
            windows = tf.map_fn(window, cells, fn_output_signature=spec, parallel_iterations=2)
            return tf.tensor_scatter_nd_update(masks, rows, windows)

        return tf.cond(tf.shape(rows)[0] > 0, with_them, lambda: masks)


def _run(tower: dict[str, Module], x: tf.Tensor) -> tf.Tensor:
    for layer in tower.values():
        x = layer(x)
    return x


class TensorMaskDecoder:
    """Turns logits and deltas into detections and the cells of their anchors. Has no variables."""

    def __init__(self, config: TensorMaskConfig, strides: Sequence[int]) -> None:
        self.config, self.strides = config, list(strides)
        self.cells = level_cell_anchors(config.anchors, self.strides)

    def __call__(
        self, logits: Sequence[tf.Tensor], deltas: Sequence[tf.Tensor]
    ) -> tuple[Detections, tf.Tensor, _Cells]:
        """Detections, their anchors ``[N, 4]`` in pixels of the network input, and where these lie.

        The best candidates of all levels together, decoded, per-class NMS, best of the image. Boxes are not clipped.
        """
        config, sizes = self.config, [tf.shape(x)[1:3] for x in logits]
        # anchor_generator.grid_anchors of TensorMask knows no offset.
        anchors = tf.concat(
            [
                anchor_ops.grid_anchors(cells, size[0], size[1], stride, 0.0)
                for cells, size, stride in zip(self.cells, sizes, self.strides, strict=True)
            ],
            axis=0,
        )

        def one_image(i: tf.Tensor) -> tuple[tf.Tensor, ...]:
            chosen, scores = self._candidates(tf.concat([tf.reshape(x[i], [-1]) for x in logits], axis=0))
            row, classes = chosen // config.num_classes, tf.math.floormod(chosen, config.num_classes)
            flat = tf.concat([tf.reshape(x[i], [-1, 4]) for x in deltas], axis=0)
            its_anchors = tf.gather(anchors, row)
            boxes = box_ops.apply_deltas(tf.gather(flat, row), its_anchors, config.bbox_reg_weights)
            # A negative limit slices from the end, as in detectron2's `keep[:n]`.
            limit = config.detections_per_image
            kept = batched_nms(boxes, scores, classes, config.nms_thresh_test, limit if limit >= 0 else None)
            kept = kept[:limit]
            return tuple(tf.gather(t, kept) for t in (boxes, scores, classes, its_anchors, row))

        box, number = tf.TensorSpec([None, 4], tf.float32), tf.TensorSpec([None], tf.int64)
        specs = [box, tf.TensorSpec([None], tf.float32), number, box, number]
        rows, image_index, counts = for_each_image(static_batch(logits[0]), one_image, specs)
        boxes, scores, classes, its_anchors, row = rows
        found = Detections(boxes, scores, classes, image_index, counts)
        return found, its_anchors, self._place(row, sizes)

    def _candidates(self, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The best that pass the threshold: index int64 ``[k]`` and score, best first, of equals the first first."""
        threshold = self.config.score_thresh_test
        likely = tf.where(logits >= surely_below(threshold))[:, 0]
        scores = sigmoid(tf.cast(tf.gather(logits, likely), tf.float32))
        passed = tf.where(above(scores, threshold))[:, 0]
        scores, chosen = tf.gather(scores, passed), tf.gather(likely, passed)
        k = tf.minimum(self.config.topk_candidates_test, tf.shape(scores)[0])
        _, order = tf.math.top_k(rank_key(scores), k)
        return tf.gather(chosen, order), tf.gather(scores, order)

    def _place(self, row: tf.Tensor, sizes: Sequence[tf.Tensor]) -> _Cells:
        """Cells from the number of an anchor in the order level, y, x, anchor."""
        each = len(self.cells[0])
        row = tf.cast(row, tf.int32)
        ends = tf.cumsum(tf.stack([size[0] * size[1] * each for size in sizes]))
        level = tf.searchsorted(ends, row, side="right")
        starts = tf.concat([[0], ends[:-1]], axis=0)
        within = row - tf.gather(starts, level)
        width = tf.gather(tf.stack([size[1] for size in sizes]), level)
        cell = within // each
        return _Cells(level, cell // width, tf.math.floormod(cell, width), tf.math.floormod(within, each))
