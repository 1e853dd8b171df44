"""RetinaNet. Source: detectron2/modeling/meta_arch/retinanet.py."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.modeling.batches import Proposals
from tf_d2.modeling.model import D2Model
from tf_d2.modeling.recording import Stages
from tf_d2.modeling.results import Outputs, detection_outputs, record_levels
from tf_d2.modeling.retinanet import RetinaNetDecoder, RetinaNetHead


class RetinaNet(D2Model):
    """One-stage detector."""

    def build_heads(self) -> None:
        config = self.config.model
        strides = [self.backbone.strides[f] for f in config.in_features]
        self.decoder = RetinaNetDecoder(config, strides)
        channels = self.backbone.channels[config.in_features[0]]
        self.head = RetinaNetHead(config, channels, len(self.decoder.cells[0]), "head")

    def forward(
        self,
        x: tf.Tensor,
        image_sizes: tf.Tensor,
        proposals: Proposals | None,
        stages: Stages,
        sizes: tf.Tensor | None = None,
    ) -> Outputs:
        del proposals
        features = self.backbone_features(x, stages)
        logits, deltas = self.head([features[f] for f in self.config.model.in_features])
        record_levels(stages, "head", logits, deltas)
        limits = image_sizes if sizes is None else sizes
        return detection_outputs(self.decoder(logits, deltas, limits, self.factors(sizes)))
