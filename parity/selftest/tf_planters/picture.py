"""Bugs before the network: resizing, colours, normalisation, padding."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from parity.selftest.tf_planters.base import planter, swapped
from tf_d2.modeling import model


def _resize_module() -> Any:
    from tf_d2.ops import resize

    return resize


@contextlib.contextmanager
def _resized(resize: Callable[..., Any]) -> Iterator[None]:
    """Another uint8 resize, in the model's own run and in the single computations."""
    from tf_d2 import stages

    with swapped(_resize_module(), "resize_uint8", resize), swapped(stages, "resize_uint8", resize):
        yield


@planter("rgb_for_bgr")
def _rgb(p: Any) -> Iterator[None]:
    old = _resize_module().resize_uint8
    with _resized(lambda x, h, w: old(x[:, :, ::-1], h, w)):
        yield


@planter("resize_not_antialiased")
def _not_antialiased(p: Any) -> Iterator[None]:
    def resize(x: Any, height: Any, width: Any) -> Any:
        return tf.cast(tf.round(tf.image.resize(x, [height, width])), tf.uint8)

    with _resized(resize):
        yield


@planter("resize_float")
def _resize_float(p: Any) -> Iterator[None]:
    def resize(x: Any, height: Any, width: Any) -> Any:
        y = tf.image.resize(tf.cast(x, tf.float32), [height, width], antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(y), 0, 255), tf.uint8)

    with _resized(resize):
        yield


@planter("resize_floor")
def _resize_floor(p: Any) -> Iterator[None]:
    def size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
        scale = min(short / min(height, width), longest / max(height, width))
        return int(height * scale - 1e-9), int(width * scale - 1e-9)

    with swapped(_resize_module(), "shortest_edge_size", size):
        yield


@contextlib.contextmanager
def _normalize(change: Callable[..., Any]) -> Iterator[None]:
    old = model.normalize
    with swapped(model, "normalize", lambda x, mean, std, *rest: change(old, x, mean, std)):
        yield


@planter("mean_reversed")
def _mean_reversed(p: Any) -> Iterator[None]:
    with _normalize(lambda old, x, mean, std: old(x, mean[::-1], std)):
        yield


@planter("scaled_to_one")
def _scaled(p: Any) -> Iterator[None]:
    with _normalize(lambda old, x, mean, std: old(x, mean, std) / 255):
        yield


@planter("pad_before_mean")
def _pad_before(p: Any) -> Iterator[None]:
    old, mean = p.model.prepare, p.config.input.pixel_mean

    def prepare(images: Any, sizes: Any = None) -> Any:
        x = old(images, None)
        height, width = images.shape[1], images.shape[2]
        inside = (np.arange(x.shape[1]) < height)[:, None] & (np.arange(x.shape[2]) < width)
        return tf.where(inside[None, :, :, None], x, -tf.constant(mean, x.dtype))

    with swapped(p.model, "prepare", prepare):
        yield


@planter("pad_centred")
def _pad_centred(p: Any) -> Iterator[None]:
    old = p.model.prepare

    def prepare(images: Any, sizes: Any = None) -> Any:
        x = old(images, None)
        shift = [(x.shape[k] - images.shape[k]) // 2 for k in (1, 2)]
        return tf.roll(x, shift, [1, 2])

    with swapped(p.model, "prepare", prepare):
        yield


@planter("pad_to_64")
def _pad_64(p: Any) -> Iterator[None]:
    old = model.padded_size
    with swapped(model, "padded_size", lambda h, w, divisibility, square=0: old(h, w, 64, square)):
        yield
