"""Backbone and regions. Source: detectron2/modeling/meta_arch/rcnn.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tf_d2.modeling.batches import Detections, Proposals, for_each_image, static_batch
from tf_d2.modeling.model import D2Model, make_layer
from tf_d2.modeling.recording import Stages
from tf_d2.modeling.results import Outputs, detection_outputs, record_detections, record_levels
from tf_d2.ops.nms import batched_nms
from tf_d2.ops.padding import padded_size
from weights.errors import UsageError


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
        factors: tf.Tensor | None = None,
    ) -> Proposals:
        if self.proposal_generator is None:
            if given is None:
                raise UsageError(
                    "this model has no proposal generator (MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals): "
                    "pass proposals="
                )
            return given
        assert self.config.rpn is not None
        logits, deltas = self.proposal_generator.rpn_head([features[f] for f in self.config.rpn.in_features])
        record_levels(stages, "proposal_generator.rpn_head", logits, deltas)
        if self.config.conventions.clip_to_padded:
            sides = padded_size(image_sizes[:, 0], image_sizes[:, 1], self.size_divisibility, 0)
            arguments = logits, deltas, tf.stack(sides, axis=1), factors
        else:
            arguments = logits, deltas, image_sizes
        proposals = self.proposal_generator.predict_proposals(*arguments)
        stages["proposal_generator/0/0/objectness_logits"] = proposals.logits
        stages["proposal_generator/0/0/proposal_boxes"] = proposals.boxes
        return proposals


class GeneralizedRCNN(_WithRPN):
    """Backbone, proposals, ROI heads: Faster, Mask, Keypoint, Cascade and Fast R-CNN."""

    def build_heads(self) -> None:
        self.build_rpn()
        self.roi_heads = make_layer("roi_heads", self.config.roi_heads, self.backbone)

    def forward(
        self,
        x: tf.Tensor,
        image_sizes: tf.Tensor,
        proposals: Proposals | None,
        stages: Stages,
        sizes: tf.Tensor | None = None,
    ) -> Outputs:
        features = self.backbone_features(x, stages)
        factors = self.factors(sizes)
        if factors is not None:
            assert sizes is not None
            found = self.propose(features, image_sizes, proposals, stages, factors)
            return self.instances_in_picture(features, found, sizes, factors, stages)
        return self.instances(features, image_sizes, proposals, static_batch(x), stages)

    def instances_in_picture(
        self,
        features: Mapping[str, tf.Tensor],
        found: Proposals,
        sizes: tf.Tensor,
        factors: tf.Tensor,
        stages: Stages,
    ) -> Outputs:
        """As Detectron does it: what is pooled is scaled back, then decoded, clipped and suppressed in the picture.

        Masks and keypoints are pooled in the final boxes times the factor. Source: detectron/core/test.py.
        """
        scores, deltas = self.roi_heads.classify(features, found, stages)
        per_row = tf.gather(factors, found.image_index)[:, None]
        scaled = found._replace(boxes=found.boxes / per_row)
        detections = self.roi_heads.select(
            [scores], deltas, scaled, sizes, static_batch(next(iter(features.values())))
        )
        per_row = tf.gather(factors, detections.image_index)[:, None]
        pooled = detections._replace(boxes=detections.boxes * per_row)
        stages["roi_heads/network_boxes"] = pooled.boxes
        extra = self.roi_heads.per_instance(features, pooled, stages, detections.boxes)
        record_detections(stages, "roi_heads/0/0", detections, extra)
        return {**detection_outputs(detections), **extra}

    def instances(
        self,
        features: Mapping[str, tf.Tensor],
        image_sizes: tf.Tensor,
        proposals: Proposals | None,
        batch_size: int | tf.Tensor,
        stages: Stages,
    ) -> Outputs:
        branches, images = getattr(self.config.roi_heads, "merged_branches", 1), batch_size
        if branches > 1:  # every branch is a batch of images of its own, one after the other
            image_sizes, batch_size = tf.tile(image_sizes, [branches, 1]), batch_size * branches
        found = self.propose(features, image_sizes, proposals, stages)
        detections = self.roi_heads.detect(features, found, image_sizes, batch_size, stages)
        extra = self.roi_heads.per_instance(features, detections, stages)
        if branches > 1:
            detections, kept = _merge_branches(self.config.roi_heads, detections, images)
            extra = {name: tf.gather(value, kept) for name, value in extra.items()}
        record_detections(stages, "roi_heads/0/0", detections, extra)
        return {**detection_outputs(detections), **extra}


def _merge_branches(
    heads: Any, detections: Detections, images: int | tf.Tensor
) -> tuple[Detections, tf.Tensor]:
    """The best detections of all branches of each image, after NMS within classes, and which rows they were.

    ``detections.image_index`` counts branch * images + image. Source: ``merge_branch_instances``,
    projects/TridentNet/tridentnet/trident_rcnn.py.
    """
    predictor = heads.box_predictor
    image_of = tf.math.floormod(detections.image_index, images)

    def one_image(i: tf.Tensor) -> list[tf.Tensor]:
        rows = tf.cast(tf.where(image_of == i)[:, 0], tf.int32)
        boxes, scores, classes = (tf.gather(t, rows) for t in detections[:3])
        kept = batched_nms(boxes, scores, classes, predictor.nms_thresh_test)
        return [tf.gather(rows, kept[: predictor.detections_per_image])]

    [kept], image_index, counts = for_each_image(images, one_image, [tf.TensorSpec([None], tf.int32)])
    boxes, scores, classes = (tf.gather(t, kept) for t in detections[:3])
    return Detections(boxes, scores, classes, image_index, counts), kept


class ProposalNetwork(_WithRPN):
    """RPN alone: class-agnostic proposals."""

    def build_heads(self) -> None:
        self.build_rpn()

    def forward(
        self,
        x: tf.Tensor,
        image_sizes: tf.Tensor,
        proposals: Proposals | None,
        stages: Stages,
        sizes: tf.Tensor | None = None,
    ) -> Outputs:
        factors = self.factors(sizes)
        features = self.backbone_features(x, stages)
        found = self.propose(features, image_sizes, proposals, stages, factors)
        boxes = found.boxes
        if factors is not None:  # Detectron: in pixels of the picture
            boxes = boxes / tf.gather(factors, found.image_index)[:, None]
        return {
            "boxes": boxes,
            "objectness_logits": found.logits,
            "image_index": found.image_index,
            "counts": found.counts,
        }
