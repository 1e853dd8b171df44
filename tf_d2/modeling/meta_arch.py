"""Whole models, one class per detectron2 meta-architecture.

Source: detectron2/modeling/meta_arch/ (rcnn.py, retinanet.py, semantic_seg.py, panoptic_fpn.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_d2.config.schema import ModelConfig, RegNetConfig
from tf_d2.layers.base import walk
from tf_d2.layers.conv import Conv2d
from tf_d2.layers.norm import BatchNorm
from tf_d2.modeling.batches import Detections, Proposals, static_batch
from tf_d2.modeling.bottom_up import BottomUp
from tf_d2.modeling.fpn import FPN
from tf_d2.modeling.recording import Stages, Unrecorded
from tf_d2.modeling.regnet import RegNet
from tf_d2.modeling.resnet import ResNet
from tf_d2.modeling.retinanet import RetinaNetDecoder, RetinaNetHead
from tf_d2.modeling.roi_heads import ROI_HEADS
from tf_d2.modeling.rpn import RPN
from tf_d2.modeling.semantic_seg import SemSegFPNHead
from tf_d2.ops.padding import normalize, padded_size

Outputs = dict[str, tf.Tensor]


class D2Model(keras.Model):
    """What all models share: the backbone, the way images get in, and the way weights get in and out.

    ``model(images, image_sizes)`` takes images at network resolution (already resized; see
    ``tf_d2.ops.resize``) and returns a flat dict of results in network coordinates. Subclasses implement
    :meth:`forward`, which also fills ``stages`` with named intermediate tensors (NHWC).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(name="model", autocast=False)
        self.config = config
        self.backbone = make_backbone(config)
        self.build_heads()
        self.built = True

    def build_heads(self) -> None:
        raise NotImplementedError

    def forward(
        self, x: tf.Tensor, image_sizes: tf.Tensor, proposals: Proposals | None, stages: Stages
    ) -> Outputs:
        raise NotImplementedError

    # === From images to results ===

    def call(
        self,
        images: tf.Tensor,
        image_sizes: tf.Tensor | None = None,
        proposals: Proposals | None = None,
    ) -> Outputs:
        """Detect on a batch.

        Args:
            images: ``[B, H, W, 3]`` uint8 or float pixel values in ``INPUT.FORMAT`` order, each image in the top left
                corner of its canvas.
            image_sizes: int32 ``[B, 2]``, (height, width) of each image on its canvas; None = the whole canvas.
            proposals: only for models without a proposal generator (Fast R-CNN), in network coordinates.

        Returns:
            flat rows over all images: ``boxes`` ``[N, 4]`` float32 xyxy pixels of the network input, ``scores``
            ``[N]``, ``classes`` int64 ``[N]``, ``image_index`` int32 ``[N]``, ``counts`` int32 ``[B]``; ``pred_masks``
            probabilities ``[N, M, M]``, ``pred_keypoints`` ``[N, K, 3]``, ``sem_seg`` logits ``[B, H', W', C]`` of the
            padded input, where the model has them. Proposal networks return ``objectness_logits`` for scores.
        """
        if image_sizes is not None:
            # What a canvas has beyond the largest image is not padding that detectron2 would add.
            largest = tf.reduce_max(image_sizes, axis=0)
            x = self.prepare(images[:, : largest[0], : largest[1]], image_sizes)
            return self.forward(x, image_sizes, proposals, Unrecorded())
        shape = tf.shape(images)
        whole = tf.repeat(shape[None, 1:3], shape[0], axis=0)
        return self.forward(self.prepare(images, None), whole, proposals, Unrecorded())

    def prepare(self, images: tf.Tensor, image_sizes: tf.Tensor | None) -> tf.Tensor:
        """Normalise and pad: ``[B, H, W, 3]`` -> ``[B, H', W', 3]`` in the model's dtype.

        Padding happens after normalisation, with zeros (the mean colour), at the bottom and right only, up to a
        multiple of the backbone's divisibility. ``image_sizes``: int32 ``[B, 2]``, what of each canvas is image.
        """
        compute = tf.as_dtype(self.compute_dtype)
        accurate = tf.float64 if compute == tf.float64 else tf.float32
        # detectron2 normalises in float32 in its float64 models, too: mean and image are float32 there.
        x = tf.cast(normalize(images, self.config.input.pixel_mean, self.config.input.pixel_std), accurate)
        shape = tf.shape(x)
        if image_sizes is not None:
            inside_y = tf.range(shape[1])[None, :] < image_sizes[:, 0, None]  # [B, H]
            inside_x = tf.range(shape[2])[None, :] < image_sizes[:, 1, None]  # [B, W]
            x = tf.where((inside_y[:, :, None] & inside_x[:, None, :])[..., None], x, tf.zeros([], x.dtype))
        height, width = padded_size(shape[1], shape[2], self.size_divisibility, self.square_pad)
        x = x[:, :height, :width]
        shape = tf.shape(x)
        missing = tf.stack([0, height - shape[1], width - shape[2], 0])
        x = tf.pad(x, tf.stack([tf.zeros([4], tf.int32), missing], axis=1))
        x.set_shape([images.shape[0], None, None, len(self.config.input.pixel_mean)])
        return tf.cast(x, compute)

    @property
    def size_divisibility(self) -> int:
        """Both sides of the padded input are a multiple of this; 0 = no padding."""
        return self.backbone.size_divisibility if isinstance(self.backbone, FPN) else 0

    @property
    def square_pad(self) -> int:
        return self.backbone.square_pad if isinstance(self.backbone, FPN) else 0

    def backbone_features(self, x: tf.Tensor, stages: Stages) -> dict[str, tf.Tensor]:
        """The backbone's outputs by name; every stage is recorded."""
        if not isinstance(self.backbone, FPN):
            outputs = self.backbone.forward(x)
            _record_bottom_up(outputs, "backbone", self.backbone.out_features, stages)
            return {name: outputs[name] for name in self.backbone.out_features}
        bottom_up = self.backbone.bottom_up
        outputs = bottom_up.forward(x)
        _record_bottom_up(outputs, "backbone.bottom_up", bottom_up.out_features, stages)
        features = self.backbone.top_down(outputs)
        stages.update({f"backbone/{name}": feature for name, feature in features.items()})
        return features

    # === Weights ===

    def variable_specs(self) -> dict[str, tuple[int, ...]]:
        """Path and shape of every variable, in construction order."""
        return {v.path: tuple(v.shape) for v in self._all_variables()}

    def frozen_statistics(self) -> frozenset[str]:
        """Paths of the means and variances of the frozen norms (FrozenBN), which old files do not hold."""
        norms = [layer for layer in walk(self) if isinstance(layer, BatchNorm) and layer.frozen]
        return frozenset(v.path for norm in norms for v in (norm.moving_mean, norm.moving_variance))

    def _all_variables(self) -> list[keras.Variable]:
        return list(self.variables)

    def assign(
        self, arrays: Mapping[str, np.ndarray], progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Set every variable; ``progress`` is called with the bytes of each.

        Raises KeyError or ValueError, before anything is changed, if paths or shapes differ or the loaded weights were
        released (:meth:`fold_norms`).
        """
        self._must_be_loaded()
        variables = {v.path: v for v in self._all_variables()}
        if set(variables) != set(arrays):
            raise KeyError(f"variables and arrays differ: {sorted(set(variables) ^ set(arrays))}")
        for path, variable in variables.items():
            if tuple(variable.shape) != arrays[path].shape:
                raise ValueError(f"{path}: shape {arrays[path].shape}, expected {tuple(variable.shape)}")
        for path, variable in variables.items():
            variable.assign(arrays[path])
            progress(arrays[path].nbytes)
        for conv in self._convolutions():
            conv.loaded()

    def fold_norms(self, release: bool = False) -> None:
        """Merge frozen batch norms into their convolutions, for inference.

        ``release``: drop the weights as they were loaded, so that a model needs no memory for two of each. Saving it,
        loading others, unfolding: all raise ValueError from then on.
        """
        for conv in self._convolutions():
            conv.fold(release)

    def unfold_norms(self) -> None:
        """Compute norms apart from convolutions again."""
        for conv in self._convolutions():
            conv.unfold()

    def _convolutions(self) -> list[Conv2d]:
        return [layer for layer in walk(self) if isinstance(layer, Conv2d)]

    def _must_be_loaded(self) -> None:
        for conv in self._convolutions():
            conv.must_be_loaded()

    # Keras would empty the file, or change the variables, before it asks this class anything.
    def save(self, *args: Any, **kwargs: Any) -> Any:
        self._must_be_loaded()
        return super().save(*args, **kwargs)

    def save_weights(self, *args: Any, **kwargs: Any) -> Any:
        self._must_be_loaded()
        return super().save_weights(*args, **kwargs)

    def get_weights(self) -> list[np.ndarray]:
        self._must_be_loaded()
        return super().get_weights()

    def set_weights(self, weights: list[np.ndarray]) -> None:
        self._must_be_loaded()
        super().set_weights(weights)
        for conv in self._convolutions():
            conv.loaded()

    # One flat group of variables under their paths, which `weights` can write and read with h5py alone.
    def save_own_variables(self, store: Any) -> None:
        for variable in self._all_variables():
            store[variable.path] = variable.value.numpy()

    def load_own_variables(self, store: Any) -> None:
        self.assign({v.path: np.asarray(store[v.path]) for v in self._all_variables()})


def _record_bottom_up(
    outputs: Mapping[str, tf.Tensor], prefix: str, out_features: tuple[str, ...], stages: Stages
) -> None:
    stages[f"{prefix}.stem"] = outputs["stem"]
    stages.update({f"{prefix}/{name}": outputs[name] for name in out_features})


def make_backbone(config: ModelConfig) -> BottomUp | FPN:
    """ResNet or RegNet, or an FPN over one, under detectron2's names."""
    if config.fpn is None:
        return _make_bottom_up(config, "backbone")
    with keras.name_scope("backbone"):
        bottom_up = _make_bottom_up(config, "bottom_up")
    return FPN(config.fpn, bottom_up, "backbone")


def _make_bottom_up(config: ModelConfig, name: str) -> BottomUp:
    channels = len(config.input.pixel_mean)
    bottom_up = config.bottom_up
    if isinstance(bottom_up, RegNetConfig):
        return RegNet(bottom_up, channels, name)
    return ResNet(bottom_up, channels, name)


class _WithRPN(D2Model):
    """Backbone and, unless proposals are given, a region proposal network."""

    def build_rpn(self) -> None:
        rpn = self.config.rpn
        self.proposal_generator = None
        if rpn is not None:
            strides = [self.backbone.strides[f] for f in rpn.in_features]
            channels = self.backbone.channels[rpn.in_features[0]]
            self.proposal_generator = RPN(rpn, self.config.anchors, channels, strides, "proposal_generator")

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
        _record_levels(stages, "proposal_generator.rpn_head", logits, deltas)
        proposals = self.proposal_generator.predict_proposals(logits, deltas, image_sizes)
        stages["proposal_generator/0/0/objectness_logits"] = proposals.logits
        stages["proposal_generator/0/0/proposal_boxes"] = proposals.boxes
        return proposals


def _record_levels(stages: Stages, name: str, *outputs: list[tf.Tensor]) -> None:
    for kind, per_level in enumerate(outputs):
        stages.update({f"{name}/{kind}/{level}": x for level, x in enumerate(per_level)})


class GeneralizedRCNN(_WithRPN):
    """Backbone, proposals, ROI heads: Faster, Mask, Keypoint, Cascade and Fast R-CNN."""

    def build_heads(self) -> None:
        assert self.config.roi_heads is not None
        self.build_rpn()
        self.roi_heads = ROI_HEADS[self.config.roi_heads.name](self.config, self.backbone)

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


class PanopticFPN(GeneralizedRCNN):
    """Mask R-CNN with a semantic segmentation head on the same features."""

    def build_heads(self) -> None:
        super().build_heads()
        self.sem_seg_head = _make_sem_seg_head(self.config, self.backbone)

    def forward(
        self, x: tf.Tensor, image_sizes: tf.Tensor, proposals: Proposals | None, stages: Stages
    ) -> Outputs:
        features = self.backbone_features(x, stages)
        stages["sem_seg_head/0"] = sem_seg = self.sem_seg_head(features)
        outputs = self.instances(features, image_sizes, proposals, static_batch(x), stages)
        return {**outputs, "sem_seg": sem_seg}


class SemanticSegmentor(D2Model):
    """Backbone and semantic segmentation head; returns logits."""

    def build_heads(self) -> None:
        self.sem_seg_head = _make_sem_seg_head(self.config, self.backbone)

    def forward(
        self, x: tf.Tensor, image_sizes: tf.Tensor, proposals: Proposals | None, stages: Stages
    ) -> Outputs:
        del image_sizes, proposals
        stages["sem_seg_head/0"] = sem_seg = self.sem_seg_head(self.backbone_features(x, stages))
        return {"sem_seg": sem_seg}


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


class RetinaNet(D2Model):
    """One-stage detector."""

    def build_heads(self) -> None:
        config = self.config.retinanet
        assert config is not None
        strides = [self.backbone.strides[f] for f in config.in_features]
        self.decoder = RetinaNetDecoder(config, self.config.anchors, strides)
        channels = self.backbone.channels[config.in_features[0]]
        self.head = RetinaNetHead(config, channels, len(self.decoder.cells[0]), "head")

    def forward(
        self, x: tf.Tensor, image_sizes: tf.Tensor, proposals: Proposals | None, stages: Stages
    ) -> Outputs:
        del image_sizes, proposals
        assert self.config.retinanet is not None
        features = self.backbone_features(x, stages)
        logits, deltas = self.head([features[f] for f in self.config.retinanet.in_features])
        _record_levels(stages, "head", logits, deltas)
        return detection_outputs(self.decoder(logits, deltas))


def _make_sem_seg_head(config: ModelConfig, backbone: BottomUp | FPN) -> SemSegFPNHead:
    assert config.sem_seg_head is not None
    return SemSegFPNHead(config.sem_seg_head, backbone.strides, backbone.channels, "sem_seg_head")


def detection_outputs(detections: Detections) -> Outputs:
    """The flat dict a model returns for its detections."""
    return dict(detections._asdict())


def record_detections(stages: Stages, name: str, detections: Detections, extra: Outputs) -> None:
    """Store detections as detectron2's ``Instances`` in network coordinates."""
    stages[f"{name}/pred_boxes"], stages[f"{name}/scores"] = detections.boxes, detections.scores
    stages[f"{name}/pred_classes"] = detections.classes
    for field, value in extra.items():
        stages[f"{name}/{field}"] = value[:, None] if field == "pred_masks" else value


META_ARCHITECTURES: dict[str, type[D2Model]] = {
    "GeneralizedRCNN": GeneralizedRCNN,
    "PanopticFPN": PanopticFPN,
    "ProposalNetwork": ProposalNetwork,
    "RetinaNet": RetinaNet,
    "SemanticSegmentor": SemanticSegmentor,
}


DTYPES = ("float32", "float64", "bfloat16")


def build_model(config: ModelConfig, dtype: str = "float32") -> D2Model:
    """A model with all-zero variables (inside :func:`tf_d2.layers.base.unfilled`: with any values).

    Args:
        dtype: "float32", "float64" or "bfloat16" for variables and computation. Boxes, scores and everything discrete
            are float32 in any case, as in detectron2.

    Raises:
        ValueError: another dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        return META_ARCHITECTURES[config.meta_architecture](config)
    finally:
        keras.config.set_dtype_policy(policy)
