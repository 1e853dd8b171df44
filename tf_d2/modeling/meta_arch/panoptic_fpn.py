"""Mask R-CNN and a semantic head. Source: detectron2/modeling/meta_arch/panoptic_fpn.py."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.modeling.batches import Proposals, static_batch
from tf_d2.modeling.meta_arch.rcnn import GeneralizedRCNN
from tf_d2.modeling.model import make_layer
from tf_d2.modeling.recording import Stages
from tf_d2.modeling.results import Outputs


class PanopticFPN(GeneralizedRCNN):
    """Mask R-CNN with a semantic segmentation head on the same features."""

    def build_heads(self) -> None:
        super().build_heads()
        self.sem_seg_head = make_layer(
            "sem_seg_head", self.config.sem_seg_head, self.backbone, "sem_seg_head"
        )

    def forward(
        self, x: tf.Tensor, image_sizes: tf.Tensor, proposals: Proposals | None, stages: Stages
    ) -> Outputs:
        features = self.backbone_features(x, stages)
        stages["sem_seg_head/0"] = sem_seg = self.sem_seg_head.forward(features, stages, "sem_seg_head")
        outputs = self.instances(features, image_sizes, proposals, static_batch(x), stages)
        return {**outputs, "sem_seg": sem_seg}
