"""Backbone and regions. Source: detectron2/modeling/meta_arch/rcnn.py."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from tf_d2.modeling.batches import Proposals, static_batch
from tf_d2.modeling.model import D2Model, make_layer
from tf_d2.modeling.recording import Stages
from tf_d2.modeling.results import Outputs, detection_outputs, record_detections, record_levels


class _WithRPN(D2Model):
    """Backbone and, unless proposals are given, a region proposal network."""

    def build_rpn(self) -> None:
        rpn = self.config.rpn
        self.proposal_generator = None
        if rpn is not None:
            strides = [self.backbone.strides[f] for f in rpn.in_features]
            channels = self.backbone.channels[rpn.in_features[0]]
            arguments = channels, strides, "proposal_generator"
            self.proposal_generator = make_layer("proposal_generator", rpn, *arguments)

    def propose(
        self,
        features: Mapping[str, tf.Tensor],
        image_sizes: tf.Tensor,
        given: Proposals | None,
        stages: Stages,
    ) -> Proposals:
        if self.proposal_generator is None:
            if given is None:
                raise ValueError(
                    "this model has no proposal generator (MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals): "
                    "pass proposals="
                )
            return given
        assert self.config.rpn is not None
        logits, deltas = self.proposal_generator.rpn_head([features[f] for f in self.config.rpn.in_features])
        record_levels(stages, "proposal_generator.rpn_head", logits, deltas)
        proposals = self.proposal_generator.predict_proposals(logits, deltas, image_sizes)
        stages["proposal_generator/0/0/objectness_logits"] = proposals.logits
        stages["proposal_generator/0/0/proposal_boxes"] = proposals.boxes
        return proposals


class GeneralizedRCNN(_WithRPN):
    """Backbone, proposals, ROI heads: Faster, Mask, Keypoint, Cascade and Fast R-CNN."""

    def build_heads(self) -> None:
        self.build_rpn()
        self.roi_heads = make_layer("roi_heads", self.config.roi_heads, self.backbone)

    def forward(
        self, x: tf.Tensor, image_sizes: tf.Tensor, proposals: Proposals | None, stages: Stages
    ) -> Outputs:
        features = self.backbone_features(x, stages)
        return self.instances(features, image_sizes, proposals, static_batch(x), stages)

    def instances(
        self,
        features: Mapping[str, tf.Tensor],
        image_sizes: tf.Tensor,
        proposals: Proposals | None,
        batch_size: int | tf.Tensor,
        stages: Stages,
    ) -> Outputs:
        found = self.propose(features, image_sizes, proposals, stages)
        detections = self.roi_heads.detect(features, found, image_sizes, batch_size, stages)
        extra = self.roi_heads.per_instance(features, detections, stages)
        record_detections(stages, "roi_heads/0/0", detections, extra)
        return {**detection_outputs(detections), **extra}


class ProposalNetwork(_WithRPN):
    """RPN alone: class-agnostic proposals."""

    def build_heads(self) -> None:
        self.build_rpn()

    def forward(
        self, x: tf.Tensor, image_sizes: tf.Tensor, proposals: Proposals | None, stages: Stages
    ) -> Outputs:
        found = self.propose(self.backbone_features(x, stages), image_sizes, proposals, stages)
        return {
            "boxes": found.boxes,
            "objectness_logits": found.logits,
            "image_index": found.image_index,
            "counts": found.counts,
        }
