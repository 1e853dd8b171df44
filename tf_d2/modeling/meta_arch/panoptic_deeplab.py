"""Panoptic-DeepLab. Source: projects/Panoptic-DeepLab/panoptic_deeplab/panoptic_seg.py."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.modeling.batches import Proposals
from tf_d2.modeling.model import D2Model, make_layer
from tf_d2.modeling.postprocess import resize_sem_seg
from tf_d2.modeling.recording import Stages
from tf_d2.modeling.results import Outputs
from tf_d2.ops.panoptic_deeplab import find_segments, segment_instances


class PanopticDeepLab(D2Model):
    """Backbone, semantic head, instance head: ``sem_seg``, ``center`` and ``offset`` of the padded input."""

    def build_heads(self) -> None:
        config = self.config.model
        self.sem_seg_head = make_layer("sem_seg_head", config.sem_seg_head, self.backbone, "sem_seg_head")
        self.ins_embed_head = make_layer(
            "ins_embed_head", config.ins_embed_head, self.backbone, "ins_embed_head"
        )

    @property
    def size_divisibility(self) -> int:
        return self.config.model.size_divisibility or self.backbone.size_divisibility

    def forward(
        self, x: tf.Tensor, image_sizes: tf.Tensor, proposals: Proposals | None, stages: Stages
    ) -> Outputs:
        del image_sizes, proposals
        features = self.backbone_features(x, stages)
        stages["sem_seg_head/0"] = sem_seg = self.sem_seg_head.forward(features, stages, "sem_seg_head")
        center, offset = self.ins_embed_head.maps(features, stages, "ins_embed_head")
        stages["ins_embed_head/0"], stages["ins_embed_head/1"] = center, offset
        return {"sem_seg": sem_seg, "center": center, "offset": offset}

    def to_image(self, raw: Outputs, network_size: tf.Tensor, size: tf.Tensor) -> Outputs:
        """``sem_seg`` float ``[h, w, C]``, ``panoptic_seg`` int64 ``[h, w]`` and, if instances are wanted,
        ``panoptic_ids`` int64 ``[N]`` (numbers in the map), ``pred_boxes``, ``scores``, ``pred_classes``."""
        config = self.config.model
        # Offsets are in pixels of the network input still: detectron2 does not rescale them either.
        maps = {name: resize_sem_seg(raw[name], network_size, size)[0] for name in raw}
        logits, heat = maps["sem_seg"], maps["center"][:, :, 0]
        segments, ids = find_segments(
            config, tf.argmax(logits, axis=-1, output_type=tf.int32), heat, maps["offset"]
        )
        fields = {"sem_seg": logits, "panoptic_seg": segments}
        if config.predict_instances:
            fields |= segment_instances(config.label_divisor, segments, ids, logits, heat)
        return fields
