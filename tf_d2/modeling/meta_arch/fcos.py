"""FCOS. Source: detectron2/modeling/meta_arch/fcos.py."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.modeling.batches import Proposals
from tf_d2.modeling.fcos import FCOSDecoder, FCOSHead
from tf_d2.modeling.model import D2Model
from tf_d2.modeling.recording import Stages, is_recorded
from tf_d2.modeling.results import Outputs, detection_outputs, record_levels


class FCOS(D2Model):
    """One-stage detector without anchor shapes."""

    def build_heads(self) -> None:
        config = self.config.model
        self.decoder = FCOSDecoder(config, [self.backbone.strides[f] for f in config.in_features])
        self.head = FCOSHead(config, self.backbone.channels[config.in_features[0]], "head")

    def forward(
        self, x: tf.Tensor, image_sizes: tf.Tensor, proposals: Proposals | None, stages: Stages
    ) -> Outputs:
        del image_sizes, proposals
        features = self.backbone_features(x, stages)
        levels = [features[f] for f in self.config.model.in_features]
        outputs = self.head(levels)
        if is_recorded(stages):
            for name, maps in zip(("cls_subnet", "bbox_subnet"), self.head.towers(levels), strict=True):
                stages.update({f"head.{name}" + (f"#{i}" if i else ""): x for i, x in enumerate(maps)})
        record_levels(stages, "head", *outputs)
        return detection_outputs(self.decoder.detect(*outputs))
