"""ROI heads: from proposals to detections with masks and keypoints.

Source: detectron2/modeling/roi_heads/roi_heads.py, cascade_rcnn.py, rotated_fast_rcnn.py.

Every class has ``detect`` (boxes, scores, classes) and ``per_instance`` (masks and keypoints of given boxes). Both
write what they compute into ``stages``, under detectron2's module names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_d2.config.parts.poolers import PoolerConfig
from tf_d2.config.parts.roi_heads import Res5ROIHeadsConfig, StandardROIHeadsConfig
from tf_d2.layers.base import Module, sequence
from tf_d2.modeling.backbone import Backbone
from tf_d2.modeling.batches import Detections, Proposals
from tf_d2.modeling.box_head import (
    FastRCNNOutputLayers,
    RotatedFastRCNNOutputLayers,
    average_probs,
    fast_rcnn_inference,
    predict_boxes,
    predict_probs,
)
from tf_d2.modeling.keypoint_head import keypoint_inference
from tf_d2.modeling.mask_head import mask_inference
from tf_d2.modeling.model import make_layer
from tf_d2.modeling.poolers import ROIPooler
from tf_d2.modeling.recording import Stages, is_recorded
from tf_d2.modeling.resnet import make_stage
from tf_d2.ops import boxes as box_ops

Features = Mapping[str, tf.Tensor]
PREFIX = "roi_heads"


class _OnPooled(NamedTuple):
    """What is computed on pooled regions, and the modules of the heads that its arrays are named after."""

    compute: Callable[[tf.Tensor], Sequence[tf.Tensor]]
    between: Sequence[
        str
    ]  # the pooled regions and what `compute` returns first; kept only where it is recorded
    results: Sequence[str]  # the rest


class _BoxBranch(NamedTuple):
    """A box head and its predictor."""

    head: Callable[[tf.Tensor], tf.Tensor]
    predictor: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    names: tuple[str, str, str]  # of pooler, head and predictor in the stages


class StandardROIHeads(Module):
    """Box head on pooled features; mask and keypoint heads on the detections. Also RROIHeads (rotated boxes)."""

    def __init__(self, config: StandardROIHeadsConfig, backbone: Backbone) -> None:
        super().__init__(PREFIX)
        self.heads = config
        self.rotated = config.rotated
        self.feature_names = self.heads.in_features
        self.strides = tuple(backbone.strides[f] for f in self.feature_names)
        self.channels = backbone.channels[self.feature_names[0]]
        self.box_pooler = self.make_pooler(self.heads.box_pooler)
        with self.scope():
            self.make_box_heads()
            self.make_instance_heads(backbone)

    def make_pooler(self, config: PoolerConfig) -> ROIPooler:
        return ROIPooler(config, self.strides)

    def make_box_heads(self) -> None:
        self.box_head = self.make_box_head("box_head")
        self.box_predictor = self.make_predictor(self.box_head, "box_predictor")

    def make_box_head(self, name: str) -> Any:
        size = self.heads.box_pooler.resolution
        return make_layer("box_head", self.heads.box_head, self.channels, size, name)

    def make_predictor(self, head: Any, name: str) -> FastRCNNOutputLayers:
        kind = RotatedFastRCNNOutputLayers if self.rotated else FastRCNNOutputLayers
        agnostic = self.heads.box_predictor.cls_agnostic_bbox_reg
        return kind(head.out_features, self.heads.num_classes, agnostic, name, spatial=head.out_spatial)

    def make_instance_heads(self, backbone: Backbone) -> None:
        mask, keypoint = self.heads.mask_head, self.heads.keypoint_head
        self.mask_head = self.keypoint_head = None
        if mask is not None:
            arguments: tuple[Any, ...] = (self.channels, self.heads.num_classes)
            if self.heads.mask_pooler is not None:
                self.mask_pooler = self.make_pooler(self.heads.mask_pooler)
            elif getattr(mask, "samples_features", False):
                arguments = (backbone,)
            self.mask_head = make_layer("mask_head", mask, *arguments, "mask_head")
        if keypoint is not None:
            assert self.heads.keypoint_pooler is not None
            self.keypoint_pooler = self.make_pooler(self.heads.keypoint_pooler)
            self.keypoint_head = make_layer("keypoint_head", keypoint, self.channels, "keypoint_head")

    def on_regions(
        self,
        pooler: ROIPooler,
        features: Features,
        regions: Proposals | Detections,
        computation: _OnPooled,
        stages: Stages,
    ) -> list[tf.Tensor]:
        """Pool regions and compute on them: the results, in the order of the regions; everything goes to ``stages``."""
        compute, between, results = computation
        maps = [features[f] for f in self.feature_names]
        names = [*between, *results] if is_recorded(stages) else results

        def run(pooled: tf.Tensor) -> Sequence[tf.Tensor]:
            return [pooled, *compute(pooled)][-len(names) :]

        outputs = pooler.compute(maps, regions.boxes, regions.image_index, run, len(names))
        stages.update({f"{PREFIX}.{name}": x for name, x in zip(names, outputs, strict=True)})
        return outputs[-len(results) :]

    def classify_with(
        self,
        branch: _BoxBranch,
        features: Features,
        proposals: Proposals,
        stages: Stages,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Class logits ``[R, K + 1]`` and box deltas ``[R, 4 K or 4]`` (rotated: 5) of pooled proposals."""

        def compute(pooled: tf.Tensor) -> Sequence[tf.Tensor]:
            x = branch.head(pooled)
            return x, *branch.predictor(x)

        *between, last = branch.names
        computation = _OnPooled(compute, between, [f"{last}/{k}" for k in range(2)])
        logits, deltas = self.on_regions(self.box_pooler, features, proposals, computation, stages)
        return logits, deltas

    def classify(
        self, features: Features, proposals: Proposals, stages: Stages
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Class logits and box deltas of proposals."""
        names = ("box_pooler", "box_head", "box_predictor")
        return self.classify_with(
            _BoxBranch(self.box_head, self.box_predictor, names), features, proposals, stages
        )

    def detect(
        self,
        features: Features,
        proposals: Proposals,
        image_sizes: tf.Tensor,
        batch_size: int | tf.Tensor,
        stages: Stages,
    ) -> Detections:
        """Detections of a batch; ``image_sizes`` int32 ``[B, 2]`` (height, width) of the unpadded network inputs."""
        scores, deltas = self.classify(features, proposals, stages)
        return self.select([scores], deltas, proposals, image_sizes, batch_size)

    def select(
        self,
        stage_scores: list[tf.Tensor],
        deltas: tf.Tensor,
        proposals: Proposals,
        image_sizes: tf.Tensor,
        batch_size: int | tf.Tensor,
    ) -> Detections:
        """Detections from the class logits of every box stage, and the deltas and pooled boxes of the last."""
        predictor = self.heads.box_predictor
        probs = average_probs([predict_probs(scores, predictor.use_sigmoid_ce) for scores in stage_scores])
        weights = predictor.bbox_reg_weights[len(stage_scores) - 1]
        plus_one = predictor.conventions.decode_plus_one
        decoded = predict_boxes(deltas, proposals.boxes, weights, self.rotated, plus_one)
        return fast_rcnn_inference(decoded, probs, proposals, image_sizes, batch_size, predictor)

    def per_instance(
        self,
        features: Features,
        detections: Detections,
        stages: Stages,
        keypoint_boxes: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Masks and keypoints of detections, in network coordinates.

        Returns a dict with, where the model has them, ``pred_masks`` (probabilities ``[N, M, M]``),
        ``pred_keypoints`` (``[N, K, 3]`` x, y, score) and ``pred_keypoint_heatmaps`` (logits
        ``[N, K, S, S]``). Keypoints are decoded in ``keypoint_boxes``, if these are given (Detectron: in
        pixels of the picture).
        """
        outputs: dict[str, tf.Tensor] = {}
        if self.mask_head is not None:
            outputs["pred_masks"] = self._masks(features, detections, stages)
        if self.keypoint_head is not None:
            lowres_of = self.keypoint_head.lowres
            scored = _OnPooled(lambda x: [lowres_of(x)], ["keypoint_pooler"], ["keypoint_head.score_lowres"])
            [lowres] = self.on_regions(self.keypoint_pooler, features, detections, scored, stages)
            heatmaps = tf.transpose(self.keypoint_head.upsample(lowres), [0, 3, 1, 2])
            outputs["pred_keypoint_heatmaps"] = heatmaps
            boxes = detections.boxes if keypoint_boxes is None else keypoint_boxes
            outputs |= keypoint_inference(self.heads.keypoint_head, tf.cast(heatmaps, tf.float32), boxes)
        return outputs

    def _masks(self, features: Features, detections: Detections, stages: Stages) -> tf.Tensor:
        assert self.mask_head is not None
        head = self.mask_head
        if getattr(self.heads.mask_head, "samples_features", False):
            logits = head.masks(features, detections, stages, f"{PREFIX}.mask_head")
            return mask_inference(logits[:, :, :, None], detections.classes)
        predicted = _OnPooled(lambda x: [head(x)], ["mask_pooler"], ["mask_head.predictor"])
        [logits] = self.on_regions(self.mask_pooler, features, detections, predicted, stages)
        return mask_inference(logits, detections.classes)


class CascadeROIHeads(StandardROIHeads):
    """Box stages in a row, each pooling the boxes the one before it predicted."""

    def make_box_heads(self) -> None:
        keys = [str(k) for k in range(len(self.heads.box_predictor.bbox_reg_weights))]
        self.box_head = sequence("box_head", dict.fromkeys(keys, self.make_box_head))
        heads = self.box_head
        make_predictor = {key: (lambda name, key=key: self.make_predictor(heads[key], name)) for key in keys}
        self.box_predictor = sequence("box_predictor", make_predictor)

    def detect(
        self,
        features: Features,
        proposals: Proposals,
        image_sizes: tf.Tensor,
        batch_size: int | tf.Tensor,
        stages: Stages,
    ) -> Detections:
        stage_scores: list[tf.Tensor] = []
        deltas: Any = None
        for k in range(len(self.box_head)):
            suffix = ""
            if k:
                proposals = self.refine(k, deltas, proposals, image_sizes)
                stages[f"{PREFIX}/cascade_boxes/{k}"] = proposals.boxes
                suffix = f"#{k}"
            head, predictor = self.box_head[str(k)], self.box_predictor[str(k)]
            names = (f"box_pooler{suffix}", f"box_head.{k}", f"box_predictor.{k}")
            branch = _BoxBranch(head, predictor, names)
            scores, deltas = self.classify_with(branch, features, proposals, stages)
            stage_scores.append(scores)
        return self.select(stage_scores, deltas, proposals, image_sizes, batch_size)

    def refine(
        self, stage: int, deltas: tf.Tensor, proposals: Proposals, image_sizes: tf.Tensor
    ) -> Proposals:
        """What stage ``stage`` pools: the boxes of the stage before, decoded and clipped, none dropped."""
        weights = self.heads.box_predictor.bbox_reg_weights[stage - 1]
        boxes = box_ops.apply_deltas(deltas, proposals.boxes, weights)
        sizes = tf.gather(image_sizes, proposals.image_index)
        return proposals._replace(boxes=box_ops.clip(boxes, sizes[:, 0], sizes[:, 1]))


class Res5ROIHeads(StandardROIHeads):
    """The C4 heads: boxes and masks share the last ResNet stage, run on every pooled region."""

    def make_box_heads(self) -> None:
        assert isinstance(self.heads, Res5ROIHeadsConfig) and self.heads.res5 is not None
        self.res5 = make_stage(self.heads.res5, 3, "res5")
        self.channels = self.heads.res5.res2_out_channels * 8
        self.box_predictor = FastRCNNOutputLayers(
            self.channels,
            self.heads.num_classes,
            self.heads.box_predictor.cls_agnostic_bbox_reg,
            "box_predictor",
        )

    def run_res5(self, pooled: tf.Tensor) -> tf.Tensor:
        for block in self.res5:
            pooled = block(pooled)
        return pooled

    def predict(self, res5: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Class logits and deltas from ``[R, h, w, C]``: the mean over the region is classified."""
        return self.box_predictor(tf.reduce_mean(res5, axis=[1, 2]))

    def classify(
        self, features: Features, proposals: Proposals, stages: Stages
    ) -> tuple[tf.Tensor, tf.Tensor]:
        names = ("pooler", "res5", "box_predictor")
        branch = _BoxBranch(self.run_res5, self.predict, names)
        return self.classify_with(branch, features, proposals, stages)

    def _masks(self, features: Features, detections: Detections, stages: Stages) -> tf.Tensor:
        assert self.mask_head is not None
        head = self.mask_head

        def segment(pooled: tf.Tensor) -> Sequence[tf.Tensor]:
            res5 = self.run_res5(pooled)
            return res5, head(res5)

        segmented = _OnPooled(segment, ["pooler#1", "res5#1"], ["mask_head.predictor"])
        [logits] = self.on_regions(self.box_pooler, features, detections, segmented, stages)
        return mask_inference(logits, detections.classes)
