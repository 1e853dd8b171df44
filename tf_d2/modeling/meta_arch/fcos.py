"""FCOS. Source: detectron2/modeling/meta_arch/fcos.py."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.modeling.batches import Proposals
from tf_d2.modeling.fcos import FCOSDecoder, FCOSHead
from tf_d2.modeling.model import D2Model
from tf_d2.modeling.recording import Stages
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
        outputs = self.head([features[f] for f in self.config.model.in_features])
        record_levels(stages, "head", *outputs)
        return detection_outputs(self.decoder.detect(*outputs))
