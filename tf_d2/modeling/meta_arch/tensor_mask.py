"""TensorMask. Source: projects/TensorMask/tensormask/arch.py."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.modeling.batches import Detections, Proposals
from tf_d2.modeling.model import D2Model
from tf_d2.modeling.postprocess import rescale, scales
from tf_d2.modeling.recording import Stages, is_recorded
from tf_d2.modeling.results import Outputs, detection_outputs, record_levels
from tf_d2.modeling.tensor_mask import TensorMaskDecoder, TensorMaskHead


class TensorMask(D2Model):
    """One-stage detector with a mask of every window.

    :meth:`forward` returns for each detection also ``pred_masks`` ``[N, S, S]`` (probabilities in the top left corner),
    ``mask_sides`` int32 ``[N]`` (how much of it is mask) and ``mask_boxes`` ``[N, 4]``: its anchor, which the mask
    covers, not its box.
    """

    def build_heads(self) -> None:
        config = self.config.model
        self.decoder = TensorMaskDecoder(config, [self.backbone.strides[f] for f in config.in_features])
        self.head = TensorMaskHead(config, self.backbone.channels[config.in_features[0]], "head")

    def forward(
        self, x: tf.Tensor, image_sizes: tf.Tensor, proposals: Proposals | None, stages: Stages
    ) -> Outputs:
        del image_sizes, proposals
        features = self.backbone_features(x, stages)
        maps = [features[f] for f in self.config.model.in_features]
        logits, deltas = self.head.boxes(maps)
        record_levels(stages, "head", logits, deltas)
        if is_recorded(stages):
            self._record_towers(maps, stages)
        found, anchors, cells = self.decoder(logits, deltas)
        outputs = detection_outputs(found)
        if not self.config.model.mask_on:
            return outputs
        mask_features = self.head.mask_features(maps)
        if is_recorded(stages):
            if self.config.model.bipyramid_on:
                stages.update({_call("mask_fuse", level): x for level, x in enumerate(mask_features)})
            for level, windows in enumerate(self.head.mask_maps(mask_features)):
                stages.update({f"head/2/{level}/{anchor}": w for anchor, w in enumerate(windows)})
        masks, sides = self.head.mask_windows(mask_features, found.image_index, cells)
        return {**outputs, "pred_masks": masks, "mask_sides": sides, "mask_boxes": anchors}

    def _record_towers(self, maps: list[tf.Tensor], stages: Stages) -> None:
        for name, levels in self.head.towers(maps).items():
            stages.update({_call(name, level): x for level, x in enumerate(levels)})

    def to_image(self, raw: Outputs, network_size: tf.Tensor, size: tf.Tensor) -> Outputs:
        """``pred_boxes``, ``scores``, ``pred_classes``, and with masks ``pred_masks`` as they are, ``mask_sides`` and
        ``mask_boxes`` in pixels of the image, which are not clipped."""
        found = Detections(*(raw[name] for name in Detections._fields))
        done, kept = rescale(found, network_size[None], size[None])
        fields = {"pred_boxes": done.boxes, "scores": done.scores, "pred_classes": done.classes}
        if "pred_masks" in raw:
            fields["pred_masks"] = tf.cast(tf.gather(raw["pred_masks"], kept), tf.float32)
            fields["mask_sides"] = tf.gather(raw["mask_sides"], kept)
            fields["mask_boxes"] = stretched(tf.gather(raw["mask_boxes"], kept), network_size, size)
        return fields


def _call(name: str, level: int) -> str:
    """Stage of a module of the head in its call for a level."""
    return f"head.{name}" + (f"#{level}" if level else "")


def stretched(boxes: tf.Tensor, network_size: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Boxes ``[N, 4]`` in pixels of the network input -> of the image, not clipped."""
    scale = scales(network_size[None], size[None])[0]
    return boxes * tf.stack([scale[1], scale[0], scale[1], scale[0]])
