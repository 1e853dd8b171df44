"""Whose conventions a model computes with: detectron2's, those of Detectron (Caffe2, 2018) or maskrcnn-benchmark's.

A checkpoint needs those it was trained with: the same weights give other boxes, masks and keypoints with
others. One value, `Conventions`, says in which of the differences a model is the older one; each is an
argument of the operation it belongs to. Nothing is global.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tf_d2.config.errors import ConfigError, did_you_mean
from tf_d2.config.keys import Keys
from tf_d2.config.reading import one_of

KEY = "MODEL.CONVENTIONS"


@dataclass(frozen=True)
class Conventions:
    """The differences; the defaults are detectron2's.

    In both older projects a box names its last pixel, so that a width is ``x2 - x1 + 1``.
    """

    name: str = "detectron2"
    # Picture to network: "pillow" (uint8, sides rounded); "factor": one factor for both sides, bilinear on float32
    # (`tf_d2.ops.resize.resize_by_factor`); "truncated": Pillow with the longer side cut to a whole number.
    resize: str = "pillow"
    # Frozen batch norm has no epsilon: Detectron's AffineChannel has no statistics, maskrcnn-benchmark adds none.
    frozen_norm_without_epsilon: bool = False
    window_anchors: bool = False  # rounded at the scale of the stride, ratios outermost (`window_anchors`)
    octaves_first: bool = False  # ... but in RetinaNet octaves outermost
    decode_plus_one: bool = False
    clip_last_pixel: bool = False  # to width - 1, height - 1
    inclusive_nms: bool = False  # + 1, IoU of the threshold suppressed, every group on its own
    rank_by_probability: bool = False  # RPN sorts by sigmoid, not by logit
    clip_to_padded: bool = False  # proposals are clipped to the padded input
    inclusive_min_size: bool = False  # proposals: side + 1 >= the minimum, so that empty boxes stay
    level_plus_one: bool = False
    level_epsilon: float = 1e-8
    boxes_in_picture: bool = (
        False  # final boxes are decoded, clipped and suppressed in pixels of the original picture
    )
    ties_at_limit: bool = False  # detections as good as the last within the limit all stay
    keep_all: bool = False  # scaled to the picture, boxes are not clipped again and empty ones not dropped
    padded_mask_paste: bool = False  # `paste_padded_masks_numpy`
    doubling_without_edges: bool = False  # keypoint maps doubled by `double_unclamped`
    keypoint_scores: str = "low"  # over the map as it is; "stretched": softmax of the stretched map; "one": 1
    coarsest_without_threshold: bool = False  # RetinaNet's
    clip_before_nms: bool = False  # RetinaNet's boxes


DETECTRON2 = Conventions()
_OLDER = {
    "frozen_norm_without_epsilon": True,
    "window_anchors": True,
    "decode_plus_one": True,
    "clip_last_pixel": True,
    "inclusive_nms": True,
    "rank_by_probability": True,
    "inclusive_min_size": True,
    "level_plus_one": True,
    "level_epsilon": 1e-6,
    "ties_at_limit": True,
    "keep_all": True,
    "padded_mask_paste": True,
    "clip_before_nms": True,
}
CONVENTIONS: dict[str, Conventions] = {
    "detectron2": DETECTRON2,
    "detectron": Conventions(
        "detectron",
        resize="factor",
        octaves_first=True,
        clip_to_padded=True,
        boxes_in_picture=True,
        doubling_without_edges=True,
        keypoint_scores="stretched",
        coarsest_without_threshold=True,
        **_OLDER,  # pyright: ignore[reportArgumentType]
    ),
    "maskrcnn-benchmark": Conventions(
        "maskrcnn-benchmark",
        resize="truncated",
        keypoint_scores="one",
        **_OLDER,  # pyright: ignore[reportArgumentType]
    ),
}
"""By the value of ``MODEL.CONVENTIONS`` (a key of this project)."""


def with_conventions(opts: Sequence[Any], conventions: str | None) -> Sequence[Any]:
    """Options with MODEL.CONVENTIONS, where it is given. Raises ConfigError if they say something else."""
    if conventions is None:
        return opts
    said = [str(value) for key, value in zip(opts[0::2], opts[1::2], strict=False) if key == KEY]
    if said and said[-1] != conventions:
        raise ConfigError(
            f"two conventions are asked for: {conventions!r} (--conventions, conventions=), and {said[-1]!r} as {KEY} "
            "in the options; leave one of them out"
        )
    return [*opts, KEY, conventions]


def conventions_of(keys: Keys) -> Conventions:
    """What ``MODEL.CONVENTIONS`` names. Raises ConfigError for an unknown name."""
    name = keys[KEY]
    if name not in CONVENTIONS:
        raise keys.fail(KEY, one_of(CONVENTIONS) + did_you_mean(str(name), list(CONVENTIONS)))
    return CONVENTIONS[name]
