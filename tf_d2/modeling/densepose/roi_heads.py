"""ROI heads with DensePose. Source: projects/DensePose/densepose/modeling/roi_heads/roi_head.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from tf_d2.config.parts.densepose import DensePoseROIHeadsConfig
from tf_d2.config.parts.sem_seg import SemSegHeadConfig
from tf_d2.modeling.backbone import Backbone
from tf_d2.modeling.batches import Detections
from tf_d2.modeling.densepose.head import DENSEPOSE_HEADS
from tf_d2.modeling.densepose.predictor import DensePosePredictor
from tf_d2.modeling.poolers import ROIPooler
from tf_d2.modeling.postprocess import DENSEPOSE
from tf_d2.modeling.recording import Stages, is_recorded
from tf_d2.modeling.roi_heads import PREFIX, StandardROIHeads
from tf_d2.modeling.semantic_seg import SemSegFPNHead


class _Decoder(SemSegFPNHead):
    """Joins the levels: a semantic head whose "classes" are features, and without the upsampling at its end."""

    def __init__(self, config: SemSegHeadConfig, backbone: Backbone, name: str) -> None:
        super().__init__(config, backbone, name)
        self.in_features = config.in_features

    def call(self, features: Sequence[tf.Tensor]) -> tf.Tensor:
        """Levels in the order of the configuration -> one map at the finest one's stride."""
        return self.predict(dict(zip(self.in_features, features, strict=True)))


class DensePoseROIHeads(StandardROIHeads):
    """Standard heads; on the final boxes, a decoder that joins the levels (or none), pooler, head and predictor."""

    def make_instance_heads(self, backbone: Backbone) -> None:
        super().make_instance_heads(backbone)
        assert isinstance(self.heads, DensePoseROIHeadsConfig)
        config = self.heads.densepose
        self.densepose_head = None
        if config is None:
            return
        self.decoder = _Decoder(config.decoder, backbone, "decoder") if config.decoder else None
        self.densepose_pooler = ROIPooler(config.pooler, self.strides[:1] if config.decoder else self.strides)
        self.densepose_head = DENSEPOSE_HEADS[config.name](config, self.channels, "densepose_head")
        self.densepose_predictor = DensePosePredictor(
            config.predictor, self.densepose_head.out_channels, "densepose_predictor"
        )

    def per_instance(
        self, features: Mapping[str, tf.Tensor], detections: Detections, stages: Stages
    ) -> dict[str, tf.Tensor]:
        """Also ``pred_densepose/<field>``, ``[N, S, S, C]`` relative to the boxes."""
        outputs = super().per_instance(features, detections, stages)
        if self.densepose_head is None:
            return outputs
        maps = self.densepose_maps(features, stages)
        lowres = self._on_boxes(maps, detections, stages)
        fields = self.densepose_predictor.fields(lowres)
        stages.update({f"{PREFIX}.densepose_predictor/{name}": value for name, value in fields.items()})
        return {**outputs, **{DENSEPOSE + name: value for name, value in fields.items()}}

    def densepose_maps(self, features: Mapping[str, tf.Tensor], stages: Stages) -> list[tf.Tensor]:
        """What the DensePose head pools from: the decoder's map or the levels."""
        if self.decoder is None:
            return [features[name] for name in self.feature_names]
        stages[f"{PREFIX}.decoder"] = decoded = self.decoder([features[name] for name in self.feature_names])
        return [decoded]

    def _on_boxes(self, maps: list[tf.Tensor], detections: Detections, stages: Stages) -> list[tf.Tensor]:
        """What each layer of the predictor returns for the boxes."""
        head, predictor = self.densepose_head, self.densepose_predictor
        assert head is not None
        layers = [layer.name for layer in predictor.layers_of.values()]
        results = [f"densepose_predictor.{name}" for name in layers]
        names = ["densepose_pooler", "densepose_head", *results] if is_recorded(stages) else results

        def run(pooled: tf.Tensor) -> list[tf.Tensor]:
            x = head(pooled)
            return [pooled, x, *predictor.lowres(x)][-len(names) :]

        outputs = self.densepose_pooler.compute(
            maps, detections.boxes, detections.image_index, run, len(names)
        )
        stages.update({f"{PREFIX}.{name}": x for name, x in zip(names, outputs, strict=True)})
        return outputs[-len(results) :]
