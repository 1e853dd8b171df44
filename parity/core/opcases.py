"""Generated inputs for comparing single operations, edge cases first. numpy only, and always the same.

Feature maps are NCHW, boxes (x1, y1, x2, y2). Each operation has a function that yields (case name, inputs,
arguments); both sides read the same file of inputs, so no random generator has to agree across machines.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Yields = Iterator[tuple[str, dict[str, np.ndarray], dict[str, Any]]]


@dataclass(frozen=True)
class Case:
    """One call of one operation."""

    op: str
    name: str
    inputs: Mapping[str, np.ndarray]
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """``op/name``."""
        return f"{self.op}/{self.name}"


def all_cases() -> list[Case]:
    """Every case of every operation."""
    return [
        Case(op, name, inputs, args) for op, make in _OPS.items() for name, inputs, args in make(_rng(op))
    ]


def _rng(op: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(op.encode()))


def save(cases: list[Case], path: Path) -> None:
    """Write cases to one .npz file."""
    arrays: dict[str, Any] = {f"{c.path}/{key}": value for c in cases for key, value in c.inputs.items()}
    index = [{"op": c.op, "name": c.name, "args": dict(c.args), "inputs": list(c.inputs)} for c in cases]
    arrays["index"] = np.array(json.dumps(index))
    np.savez(path, **arrays)


def load(path: str | Path) -> list[Case]:
    """The cases in a file written by ``save``."""
    with np.load(path, allow_pickle=False) as archive:
        index = json.loads(str(archive["index"]))
        return [
            Case(
                c["op"], c["name"], {k: archive[f"{c['op']}/{c['name']}/{k}"] for k in c["inputs"]}, c["args"]
            )
            for c in index
        ]


def _maps(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def _boxes(rng: np.random.Generator, count: int, width: float, height: float) -> np.ndarray:
    a = rng.uniform(-0.1, 1.1, (count, 2)) * (width, height)
    size = np.exp(rng.uniform(np.log(1.0), np.log(0.7 * max(width, height)), (count, 2)))
    return np.concatenate([a, a + size], axis=1).astype(np.float32)


# ---- images and maps -------------------------------------------------------------------------------------


def _resize(rng: np.random.Generator) -> Yields:
    sizes = {
        "up": ((37, 53), (80, 115)),
        "down": ((97, 141), (40, 58)),
        "same": ((31, 47), (31, 47)),
        "one_axis": ((31, 47), (31, 94)),
        "one_pixel": ((1, 1), (8, 8)),
        "one_row": ((1, 64), (5, 320)),
        "one_column": ((50, 1), (200, 4)),
        "to_one": ((20, 30), (1, 1)),
        "barely_smaller": ((50, 50), (49, 49)),
        "strong_down": ((300, 200), (30, 20)),
        "mixed": ((40, 90), (80, 30)),
    }
    for name, (size, target) in sizes.items():
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        yield name, {"image": image}, {"height": target[0], "width": target[1]}
    extreme = (rng.random((33, 45, 3)) > 0.5).astype(np.uint8) * 255
    yield "black_and_white", {"image": extreme}, {"height": 71, "width": 97}


def _conv(rng: np.random.Generator) -> Yields:
    variants = {
        "k1": (1, 1, 0, 1, 1),
        "k1_s2": (1, 2, 0, 1, 1),
        "k3": (3, 1, 1, 1, 1),
        "k3_s2": (3, 2, 1, 1, 1),
        "k7_s2": (7, 2, 3, 1, 1),
        "k3_dilated": (3, 1, 2, 2, 1),
        "k3_grouped": (3, 1, 1, 1, 4),
        "k3_grouped_s2": (3, 2, 1, 1, 4),
        "k3_depthwise": (3, 1, 1, 1, 8),
    }
    for name, (k, stride, padding, dilation, groups) in variants.items():
        for tag, size in (("even", (16, 20)), ("odd", (15, 21))):
            inputs = {
                "x": _maps(rng, 2, 8, *size),
                "kernel": _maps(rng, 12 if groups < 8 else 8, 8 // groups, k, k),
                "bias": _maps(rng, 12 if groups < 8 else 8),
            }
            args = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            yield f"{name}_{tag}", inputs, args
    tiny = {"x": _maps(rng, 1, 8, 1, 1), "kernel": _maps(rng, 4, 8, 3, 3), "bias": _maps(rng, 4)}
    yield "one_pixel", tiny, {"stride": 2, "padding": 1, "dilation": 1, "groups": 1}


def _conv_transpose(rng: np.random.Generator) -> Yields:
    for name, k, padding in (("k2_s2", 2, 0), ("k4_s2_p1", 4, 1)):
        for count in (0, 1, 3):
            inputs = {
                "x": _maps(rng, count, 5, 7, 6),
                "kernel": _maps(rng, 5, 4, k, k),
                "bias": _maps(rng, 4),
            }
            yield f"{name}_n{count}", inputs, {"stride": 2, "padding": padding}


def _max_pool(rng: np.random.Generator) -> Yields:
    for tag, size in (("even", (16, 20)), ("odd", (15, 21)), ("one", (1, 1))):
        yield f"k3_s2_{tag}", {"x": _maps(rng, 1, 3, *size)}, {"kernel": 3, "stride": 2, "padding": 1}
        yield f"k1_s2_{tag}", {"x": _maps(rng, 1, 3, *size)}, {"kernel": 1, "stride": 2, "padding": 0}
    negative = -1.0 - np.abs(_maps(rng, 1, 3, 9, 9))
    yield "all_negative", {"x": negative}, {"kernel": 3, "stride": 2, "padding": 1}


def _interpolate(rng: np.random.Generator) -> Yields:
    sizes = {
        "x2": ((7, 9), (14, 18)),
        "x8": ((5, 4), (40, 32)),
        "down": ((30, 41), (11, 13)),
        "non_integer": ((20, 24), (37, 51)),
        "from_one": ((1, 1), (6, 7)),
        "to_one": ((6, 7), (1, 1)),
        "same": ((9, 9), (9, 9)),
        "one_row": ((1, 9), (4, 17)),
    }
    for name, (size, target) in sizes.items():
        yield name, {"x": _maps(rng, 2, 3, *size)}, {"height": target[0], "width": target[1]}


def _nearest(rng: np.random.Generator) -> Yields:
    for tag, size in (("even", (6, 8)), ("odd", (5, 7)), ("one", (1, 1))):
        yield tag, {"x": _maps(rng, 2, 3, *size), "fine": _maps(rng, 2, 3, *(2 * n for n in size))}, {}


# ---- boxes -----------------------------------------------------------------------------------------------


def _anchors(rng: np.random.Generator) -> Yields:
    for offset in (0.0, 0.5):
        for stride, sizes in ((4, [32.0]), (16, [32.0, 64.0, 128.0]), (8, [32.0, 40.3174, 50.7968])):
            args = {"sizes": sizes, "ratios": [0.5, 1.0, 2.0], "stride": stride, "offset": offset}
            yield f"stride{stride}_offset{offset}", {}, {**args, "height": 5, "width": 7}
    yield (
        "one_cell",
        {},
        {"sizes": [64.0], "ratios": [1.0], "stride": 32, "offset": 0.0, "height": 1, "width": 1},
    )


def _deltas(rng: np.random.Generator) -> Yields:
    boxes = _boxes(rng, 40, 300, 200)
    for name, weights in (("unit", [1, 1, 1, 1]), ("ten", [10, 10, 5, 5]), ("thirty", [30, 30, 15, 15])):
        yield name, {"deltas": _maps(rng, 40, 4), "boxes": boxes}, {"weights": weights}
    yield "per_class", {"deltas": _maps(rng, 40, 28), "boxes": boxes}, {"weights": [10, 10, 5, 5]}
    large = _maps(rng, 40, 4) * 100
    yield "clamped", {"deltas": large, "boxes": boxes}, {"weights": [1, 1, 1, 1]}
    edge = np.full((3, 4), np.log(1000 / 16), np.float32)
    edge[0] -= np.float32(1e-6)
    yield "at_the_clamp", {"deltas": edge, "boxes": boxes[:3]}, {"weights": [1, 1, 1, 1]}
    flat = boxes.copy()
    flat[:, 2:] = flat[:, :2]
    yield "empty_boxes", {"deltas": _maps(rng, 40, 4), "boxes": flat}, {"weights": [1, 1, 1, 1]}
    by_hand = np.array([[0, 0, 10, -100]], np.float32), np.array([[0, 0, 16, 16]], np.float32)
    yield "by_hand", dict(zip(("deltas", "boxes"), by_hand, strict=True)), {"weights": [1, 1, 1, 1]}
    broken = _maps(rng, 4, 4)
    broken[0, 0], broken[1, 2], broken[2, 3] = np.nan, np.inf, -np.inf
    yield "not_finite", {"deltas": broken, "boxes": boxes[:4]}, {"weights": [1, 1, 1, 1]}
    yield "none", {"deltas": np.zeros((0, 4), np.float32), "boxes": boxes[:0]}, {"weights": [1, 1, 1, 1]}


def _clip(rng: np.random.Generator) -> Yields:
    wild = _boxes(rng, 50, 300, 200) * 3 - 200
    yield "wild", {"boxes": wild}, {"height": 200, "width": 300}
    by_hand = np.array([[-5, 3, 2000, 900]], np.float32)
    yield "by_hand", {"boxes": by_hand}, {"height": 800, "width": 1200}
    yield "none", {"boxes": by_hand[:0]}, {"height": 8, "width": 12}


def _levels(rng: np.random.Generator) -> Yields:
    yield "random", {"boxes": _boxes(rng, 300, 1200, 800)}, {"lowest": 2, "highest": 5}
    sides = np.array([224, 223.99998, 223.9999, 112, 448, 447.9999, 56, 0, 2000, 111.99999, 28], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    yield "thresholds", {"boxes": boxes}, {"lowest": 2, "highest": 5}
    around = np.float32(112) * 2.0 ** np.arange(4)
    ulps = np.concatenate(
        [np.nextafter(around, np.float32(0)), around, np.nextafter(around, np.float32(1e9))]
    )
    square = np.stack([0 * ulps, 0 * ulps, ulps, ulps], axis=1).astype(np.float32)
    yield "one_ulp_around", {"boxes": square}, {"lowest": 2, "highest": 5}


_WEIRD_ROIS = np.array(
    [
        [0, 0, 160, 120],  # the whole map
        [-40, -30, 20, 25],  # over the top left corner
        [150, 110, 300, 260],  # over the bottom right corner
        [-100, -100, -50, -50],  # outside
        [400, 400, 500, 500],
        [30, 30, 30, 30],  # no extent
        [30, 30, 30.001, 60],
        [80, 20, 40, 60],  # negative width
        [10.5, 20.25, 11, 20.5],  # far below one cell
        [-500, -500, 900, 900],  # far larger than the map
        [0, 0, 159.99, 0.5],
        [158, 118, 160, 120],
    ],
    np.float32,
)


def _roi_align(rng: np.random.Generator) -> Yields:
    features = _maps(rng, 1, 3, 15, 20)
    rois = np.concatenate([_WEIRD_ROIS, _boxes(rng, 30, 160, 120)])
    for aligned in (True, False):
        for ratio in (0, 1, 2, 3):
            args = {"size": 7, "scale": 0.125, "ratio": ratio, "aligned": aligned}
            name = f"{'aligned' if aligned else 'legacy'}_ratio{ratio}"
            yield name, {"features": features, "boxes": rois}, args
    tall = {"size": 14, "scale": 0.25, "ratio": 0, "aligned": True}
    yield "size14", {"features": _maps(rng, 1, 2, 31, 41), "boxes": _boxes(rng, 20, 164, 124)}, tall
    ramp = np.tile(np.arange(10, dtype=np.float32), (1, 1, 10, 1))
    line = np.array([[0, 0, 10, 10], [-1, 0, 1, 1], [9, 0, 11, 1]], np.float32)
    yield "ramp", {"features": ramp, "boxes": line}, {"size": 2, "scale": 1.0, "ratio": 1, "aligned": True}
    yield "none", {"features": features, "boxes": rois[:0]}, tall


def _roi_pool(rng: np.random.Generator) -> Yields:
    rois = np.concatenate([_WEIRD_ROIS, _boxes(rng, 30, 160, 120)])
    yield "mixed", {"features": _maps(rng, 1, 3, 15, 20), "boxes": rois}, {"size": 7, "scale": 0.125}
    small = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    by_hand = np.array([[0, 0, 3, 3], [0.5, 0.5, 2.5, 2.5], [3, 3, 1, 1], [10, 10, 12, 12]], np.float32)
    yield "by_hand", {"features": small, "boxes": by_hand}, {"size": 2, "scale": 1.0}


def _nms(rng: np.random.Generator) -> Yields:
    boxes, scores = _boxes(rng, 300, 300, 200), rng.random(300).astype(np.float32)
    for threshold in (0.3, 0.5, 0.7):
        yield f"random_{threshold}", {"boxes": boxes, "scores": scores}, {"threshold": threshold}
    tied = np.round(scores, 1).astype(np.float32)
    yield "tied", {"boxes": boxes, "scores": tied}, {"threshold": 0.5}
    same = np.tile(np.array([[10, 10, 20, 20]], np.float32), (3, 1))
    yield "identical", {"boxes": same, "scores": np.array([0.5, 0.9, 0.9], np.float32)}, {"threshold": 0.5}
    for name, last, threshold in (("at_0.6", 6, 0.6), ("at_0.7", 7, 0.7), ("at_0.5", 5, 0.5)):
        pair = np.array([[0, 0, 10, 10], [0, 0, 10, last]], np.float32)
        yield name, {"boxes": pair, "scores": np.array([0.9, 0.8], np.float32)}, {"threshold": threshold}
    empty = np.zeros((4, 4), np.float32)
    empty[2:] = (5, 5, 5, 9)
    yield "no_extent", {"boxes": empty, "scores": np.array([1, 2, 3, 4], np.float32)}, {"threshold": 0.5}
    yield "none", {"boxes": boxes[:0], "scores": scores[:0]}, {"threshold": 0.5}


def _batched_nms(rng: np.random.Generator) -> Yields:
    for count in (300, 1500):
        boxes, scores = _boxes(rng, count, 300, 200), rng.random(count).astype(np.float32)
        groups = rng.integers(0, 5, count)
        yield f"n{count}", {"boxes": boxes, "scores": scores, "groups": groups}, {"threshold": 0.5}
    boxes = np.array([[-200, -200, 5, 5], [-206, -206, -1, -1], [0, 0, 6, 6]], np.float32)
    inputs = {"boxes": boxes, "scores": np.array([0.9, 0.8, 0.1], np.float32), "groups": np.array([0, 1, 0])}
    yield "negative", inputs, {"threshold": 0.5}
    none = {k: v[:0] for k, v in inputs.items()}
    yield "none", none, {"threshold": 0.5}


# ---- results ---------------------------------------------------------------------------------------------


def _paste(rng: np.random.Generator) -> Yields:
    masks = rng.random((12, 28, 28)).astype(np.float32)
    boxes = _boxes(rng, 12, 100, 80)
    yield "random", {"masks": masks, "boxes": boxes}, {"height": 80, "width": 100}
    smooth = np.ones((3, 28, 28), np.float32)
    hand = np.array([[2, 2, 5, 5], [2.25, 2.25, 5.5, 5.5], [-3, -4, 6.3, 5.1]], np.float32)
    yield "full_masks", {"masks": smooth, "boxes": hand}, {"height": 8, "width": 9}
    tiny = np.array([[4, 4, 4.2, 4.2], [0, 0, 100, 0.6], [99.5, 79.5, 140, 120]], np.float32)
    yield "tiny_and_outside", {"masks": masks[:3], "boxes": tiny}, {"height": 80, "width": 100}
    yield "none", {"masks": masks[:0], "boxes": boxes[:0]}, {"height": 8, "width": 9}


def _keypoints(rng: np.random.Generator) -> Yields:
    boxes = np.abs(_boxes(rng, 6, 120, 90))
    yield "random", {"heatmaps": _maps(rng, 6, 4, 56, 56), "boxes": boxes}, {}
    special = np.array([[5, 5, 5, 5], [0, 0, 20, 20], [3, 4, 3.4, 40.2], [1, 1, 57, 57]], np.float32)
    yield "flat", {"heatmaps": np.zeros((4, 1, 56, 56), np.float32), "boxes": special}, {}
    peak = np.zeros((4, 1, 56, 56), np.float32)
    peak[:, 0, 17, 31] = 50.0
    yield "sharp", {"heatmaps": peak, "boxes": special}, {}
    yield "none", {"heatmaps": peak[:0], "boxes": special[:0]}, {}


def _deform(rng: np.random.Generator) -> Yields:
    for name, stride, dilation, groups, modulated, spread in (
        ("v1", 1, 1, 1, False, 2.0),
        ("v1_s2", 2, 1, 1, False, 2.0),
        ("v1_far", 1, 1, 1, False, 30.0),
        ("v1_zero", 1, 1, 1, False, 0.0),
        ("v2", 1, 1, 1, True, 2.0),
        ("v2_dilated", 1, 2, 1, True, 2.0),
        ("v2_groups", 1, 1, 2, True, 2.0),
    ):
        size = (9, 11)
        out = tuple((n + 2 * dilation - 2 * dilation - 1) // stride + 1 for n in size)
        inputs = {
            "x": _maps(rng, 1, 8, *size),
            "offset": _maps(rng, 1, 18 * groups, *out) * np.float32(spread),
            "kernel": _maps(rng, 6, 8, 3, 3),
        }
        if modulated:
            inputs["mask"] = rng.random((1, 9 * groups, *out)).astype(np.float32)
        yield (
            name,
            inputs,
            {"stride": stride, "padding": dilation, "dilation": dilation, "deform_groups": groups},
        )


_OPS: dict[str, Callable[[np.random.Generator], Yields]] = {
    "resize_uint8": _resize,
    "conv2d": _conv,
    "conv_transpose2d": _conv_transpose,
    "max_pool2d": _max_pool,
    "bilinear": _interpolate,
    "bicubic": _interpolate,
    "add_nearest2x": _nearest,
    "anchors": _anchors,
    "apply_deltas": _deltas,
    "clip": _clip,
    "nonempty": _clip,
    "assign_levels": _levels,
    "roi_align": _roi_align,
    "roi_pool": _roi_pool,
    "nms": _nms,
    "batched_nms": _batched_nms,
    "paste_masks": _paste,
    "keypoints": _keypoints,
    "deform_conv2d": _deform,
}
