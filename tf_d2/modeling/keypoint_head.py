"""The keypoint head. Source: detectron2/modeling/roi_heads/keypoint_head.py."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.config.parts.keypoint_head import KeypointHeadConfig
from tf_d2.layers.base import Module
from tf_d2.layers.conv import Conv2d, ConvTranspose2d
from tf_d2.ops.interpolate import bilinear, double_unclamped
from tf_d2.ops.keypoints import decode_keypoints, decode_keypoints_with_logits


class KRCNNConvDeconvUpsampleHead(Module):
    """Convolutions and two 2x upsamplings: ``[N, P, P, C]`` -> heat map logits ``[N, 4P, 4P, keypoints]``."""

    def __init__(self, config: KeypointHeadConfig, in_channels: int, name: str) -> None:
        super().__init__(name)
        self.double_unclamped = config.conventions.doubling_without_edges
        channels = in_channels
        self.convs: list[Conv2d] = []
        with self.scope():
            for k, dim in enumerate(config.conv_dims):
                self.convs.append(Conv2d(channels, dim, 3, f"conv_fcn{k + 1}", padding=1, relu=True))
                channels = dim
            self.score_lowres = ConvTranspose2d(channels, config.num_keypoints, 4, "score_lowres")

    def lowres(self, x: tf.Tensor) -> tf.Tensor:
        """``[N, P, P, C]`` -> ``[N, 2P, 2P, keypoints]``: everything with weights."""
        for conv in self.convs:
            x = conv(x)
        return self.score_lowres(x)

    def upsample(self, lowres: tf.Tensor) -> tf.Tensor:
        """The final bilinear doubling; Detectron's does not repeat the edges."""
        if self.double_unclamped:
            return double_unclamped(lowres)
        size = tf.shape(lowres)[1:3] * 2
        return bilinear(lowres, size[0], size[1])

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.upsample(self.lowres(x))


def keypoint_inference(
    config: KeypointHeadConfig, heatmaps: tf.Tensor, boxes: tf.Tensor
) -> dict[str, tf.Tensor]:
    """``pred_keypoints`` ``[N, K, 3]`` (x, y, score) of heat maps ``[N, K, S, S]`` in ``boxes`` ``[N, 4]``.

    With the conventions of Detectron the score is a probability of the stretched map, with
    maskrcnn-benchmark's it is 1; then ``keypoint_logits`` ``[N, K]`` are there, too.

    Source: detectron2 ``keypoint_rcnn_inference``; detectron/utils/keypoints.py ``heatmaps_to_keypoints``;
    maskrcnn_benchmark/modeling/roi_heads/keypoint_head/inference.py.
    """
    kind = config.conventions.keypoint_scores
    if kind == "low":
        return {"pred_keypoints": decode_keypoints(heatmaps, boxes)}
    found = decode_keypoints_with_logits(heatmaps, boxes, config.inference_min_size)
    score = found[:, :, 3:] if kind == "stretched" else tf.ones_like(found[:, :, 3:])
    return {"pred_keypoints": tf.concat([found[:, :, :2], score], axis=2), "keypoint_logits": found[:, :, 2]}
