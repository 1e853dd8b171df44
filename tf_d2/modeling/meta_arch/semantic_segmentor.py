"""A semantic head alone. Source: detectron2/modeling/meta_arch/semantic_seg.py."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.modeling.batches import Proposals
from tf_d2.modeling.model import D2Model, make_layer
from tf_d2.modeling.recording import Stages
from tf_d2.modeling.results import Outputs


class SemanticSegmentor(D2Model):
    """Backbone and semantic segmentation head; returns logits."""

    def build_heads(self) -> None:
        self.sem_seg_head = make_layer(
            "sem_seg_head", self.config.sem_seg_head, self.backbone, "sem_seg_head"
        )

    def forward(
        self, x: tf.Tensor, image_sizes: tf.Tensor, proposals: Proposals | None, stages: Stages
    ) -> Outputs:
        del image_sizes, proposals
        stages["sem_seg_head/0"] = sem_seg = self.sem_seg_head.forward(
            self.backbone_features(x, stages), stages, "sem_seg_head"
        )
        return {"sem_seg": sem_seg}
