"""Bugs in DensePose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import tensorflow as tf

from parity.selftest.tf_planters.base import aligned_corners, planter, swapped
from tf_d2.modeling.densepose import predictor as densepose_predictor


@planter("densepose_decoder_average")
def _decoder_average(p: Any) -> Iterator[None]:
    decoder = p.model.roi_heads.decoder
    old, count = decoder.predictor, len(decoder.feature_names)
    with swapped(decoder, "predictor", lambda total: old(total / count)):
        yield


@planter("densepose_pooler_aligned")
def _pooler_aligned(p: Any) -> Iterator[None]:
    heads = p.model.roi_heads
    pooler = heads.densepose_pooler
    aligned = replace(pooler, config=replace(pooler.config, type="ROIAlignV2"))
    with swapped(heads, "densepose_pooler", aligned):
        yield


@planter("densepose_aspp_relu_missing")
def _aspp_relu(p: Any) -> Iterator[None]:
    with swapped(p.model.roi_heads.densepose_head.ASPP.project, "relu", False):
        yield


@planter("densepose_align_corners")
def _densepose_corners(p: Any) -> Iterator[None]:
    with swapped(densepose_predictor, "bilinear", aligned_corners):
        yield


@planter("confidence_without_epsilon")
def _without_epsilon(p: Any) -> Iterator[None]:
    predictor = p.model.roi_heads.densepose_predictor
    with swapped(predictor, "config", replace(predictor.config, segm_confidence_epsilon=0.0)):
        yield


@planter("segmentation_without_confidence")
def _without_confidence(p: Any) -> Iterator[None]:
    old = densepose_predictor.DensePosePredictor.fields

    def fields(self: Any, lowres: Any) -> Any:
        found, raw = old(self, lowres), dict(zip(self.layers_of, lowres, strict=True))
        weighted = [name for name in found if f"{name}_confidence" in found]
        return {**found, **{name: self._upscale(raw[name]) for name in weighted}}

    with swapped(densepose_predictor.DensePosePredictor, "fields", fields):
        yield


@planter("embedding_normalised")
def _normalised(p: Any) -> Iterator[None]:
    old = densepose_predictor.DensePosePredictor.fields

    def fields(self: Any, lowres: Any) -> Any:
        found = old(self, lowres)
        return {**found, "embedding": tf.math.l2_normalize(found["embedding"], axis=-1)}

    with swapped(densepose_predictor.DensePosePredictor, "fields", fields):
        yield
