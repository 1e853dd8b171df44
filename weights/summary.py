"""What a checkpoint holds, in numbers: statistics, a guess of the architecture, differences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from weights._blocks import same_bits
from weights._class_counts import class_counts
from weights._transformers import transformer_name
from weights.mapping import harmless_reason
from weights.unwrap import prefixes_of

State = Mapping[str, np.ndarray]
_CHUNK = 1 << 20  # elements widened to float64 at a time, to keep memory small


@dataclass(frozen=True)
class TensorSummary:
    """One tensor; the statistics are over its finite values and None without any. ``nan`` counts NaN,
    ``inf`` infinities."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    minimum: float | None
    maximum: float | None
    mean: float | None
    nan: int
    inf: int
    ignored: str | None  # why an inference model has no variable for it


def summarize(name: str, array: np.ndarray) -> TensorSummary:
    """Statistics of one tensor, in bounded memory."""
    low, high, total, count, nan, inf = np.inf, -np.inf, 0.0, 0, 0, 0
    for chunk in _chunks(array):
        finite = chunk[np.isfinite(chunk)]
        nan += int(np.count_nonzero(np.isnan(chunk)))
        inf += int(np.count_nonzero(np.isinf(chunk)))
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            total, count = total + float(finite.sum()), count + finite.size
    statistics = (low, high, total / count) if count else (None, None, None)
    return TensorSummary(name, array.shape, array.dtype.name, *statistics, nan, inf, harmless_reason(name))


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The values as flat float64 pieces (the real part of complex ones)."""
    flat = np.real(array.reshape(-1))
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK].astype(np.float64)


@dataclass(frozen=True)
class TensorDifference:
    """How one tensor differs between two files. ``status``: "same", "values", "shape", "dtype", "only A",
    "only B"."""

    name: str
    status: str
    detail: str = ""
    max_abs: float | None = None  # largest difference where both are finite
    relative_l2: float | None = None  # ||A - B|| / ||A||


def differences(one: State, other: State) -> Iterator[TensorDifference]:
    """Compare two state dicts tensor by tensor, by sorted name."""
    for name in sorted(one.keys() | other.keys()):
        if name not in other:
            yield TensorDifference(name, "only A", str(one[name].shape))
        elif name not in one:
            yield TensorDifference(name, "only B", str(other[name].shape))
        else:
            yield _difference(name, one[name], other[name])


def _difference(name: str, one: np.ndarray, other: np.ndarray) -> TensorDifference:
    if one.shape != other.shape:
        return TensorDifference(name, "shape", f"{one.shape} and {other.shape}")
    if same_bits(one, other):
        return TensorDifference(name, "same")
    largest, squares, reference, unlike = 0.0, 0.0, 0.0, 0
    for a, b in zip(_chunks(one), _chunks(other), strict=True):
        both = np.isfinite(a) & np.isfinite(b)
        unlike += int(np.count_nonzero(~both & ~((a == b) | (np.isnan(a) & np.isnan(b)))))
        gap = a[both] - b[both]
        largest = max(largest, float(np.abs(gap).max(initial=0.0)))
        squares, reference = squares + float(gap @ gap), reference + float(a[both] @ a[both])
    relative = (squares / reference) ** 0.5 if reference else (0.0 if not squares else float("inf"))
    detail = f"{unlike} values finite in one file only" if unlike else ""
    if one.dtype != other.dtype:
        return TensorDifference(name, "dtype", f"{one.dtype} and {other.dtype}", largest, relative)
    return TensorDifference(name, "values", detail, largest, relative)


# --- architecture -----------------------------------------------------------------------------------

_DEPTHS: dict[tuple[bool, tuple[int, ...]], str] = {
    (True, (3, 4, 6, 3)): "50",
    (True, (3, 4, 23, 3)): "101",
    (True, (3, 8, 36, 3)): "152",
    (False, (2, 2, 2, 2)): "18",
    (False, (3, 4, 6, 3)): "34",
}


def guess_architecture(state: State) -> str:
    """One line on what model the names and shapes look like; "unknown" parts are said to be so.

    Of a file with several models each is told, by the prefix of its names.
    """
    prefixes = prefixes_of(state)
    if len(prefixes) > 1:
        models = {p: {n.removeprefix(p): v for n, v in state.items() if n.startswith(p)} for p in prefixes}
        return "; ".join(f"{prefix} {guess_architecture(model)}" for prefix, model in models.items())
    parts = [_family(state), _backbone(state)]
    counts = class_counts({key: tuple(value.shape) for key, value in state.items()})
    parts += [f"{option} {count}" for option, count in sorted(counts.items())]
    return ", ".join(part for part in parts if part)


def _has(state: State, pattern: str) -> bool:
    return any(re.search(pattern, key) for key in state)


def _family(state: State) -> str:
    detector = _has(state, r"^roi_heads\.box_(head|predictor)\.") or _has(state, r"^roi_heads\.res5\.")
    mask, keypoint = _has(state, r"^roi_heads\.mask_head\."), _has(state, r"^roi_heads\.keypoint_head\.")
    semantic = _has(state, r"^sem_seg_head\.")
    if detector and semantic:
        return "Panoptic FPN"
    if detector:
        kind = "Mask R-CNN" if mask else "Keypoint R-CNN" if keypoint else "R-CNN detector"
        return f"Cascade {kind}" if _has(state, r"^roi_heads\.box_predictor\.\d+\.") else kind
    if semantic:
        return "semantic segmentation"
    if _has(state, r"^head\.(cls_subnet|cls_score)"):
        return "FCOS" if _has(state, r"^head\.ctrness\.") else "RetinaNet"
    if _has(state, r"^proposal_generator\."):
        return "RPN"
    return "a backbone" if _has(state, r"(^|\.)(res2|stem|blocks|layers)\.") else "unknown architecture"


def _backbone(state: State) -> str:
    neck = " FPN" if _has(state, r"fpn_lateral\d") else " C4" if _has(state, r"^roi_heads\.res5\.") else ""
    if (transformer := transformer_name(state)) is not None:
        pyramid = " with SimpleFeaturePyramid" if _has(state, r"^backbone\.simfp_\d\.") else neck
        return (
            f"{transformer} backbone{pyramid}" if transformer == "transformer" else f"{transformer}{pyramid}"
        )
    blocks = tuple(_block_count(state, stage) for stage in range(2, 6))
    if _has(state, r"(^|\.)s1\.b1\.f\.a\.weight$"):
        return f"RegNet{'Y' if _has(state, r'[.]f[.]se[.]') else 'X'}{neck}"
    if not any(blocks):
        return f"unknown backbone{neck}"
    bottleneck = _has(state, r"(^|\.)res[2-5]\.\d+\.conv3\.weight$")
    depth = _DEPTHS.get((bottleneck, blocks), "with blocks " + "-".join(map(str, blocks)))
    groups = _groups(state)
    name = f"ResNeXt-{depth} (groups {groups})" if groups > 1 else f"ResNet-{depth}"
    deformable = ", deformable convolutions" if _has(state, r"\.conv2_offset\.") else ""
    return f"{name}{neck}, {_norm(state)}{deformable}"


def _block_count(state: State, stage: int) -> int:
    pattern = re.compile(rf"(?:^|\.)res{stage}\.(\d+)\.conv1\.weight$")
    return len({match[1] for key in state if (match := pattern.search(key))})


def _groups(state: State) -> int:
    """Groups of the first 3x3 convolution of a bottleneck: its output over its input channels."""
    for key, value in state.items():
        if re.search(r"(^|\.)res2\.0\.conv2\.weight$", key) and value.ndim == 4 and value.shape[1]:
            first = state.get(key.replace("conv2", "conv1"))
            return first.shape[0] // value.shape[1] if first is not None and first.ndim == 4 else 1
    return 1


def _norm(state: State) -> str:
    if _has(state, r"bottom_up\..*num_batches_tracked$") or _has(
        state, r"^backbone\.res.*num_batches_tracked$"
    ):
        return "BatchNorm"
    if _has(state, r"norm\.running_var$"):
        return "FrozenBatchNorm or BatchNorm"
    return "norm without statistics (GN, LN or fused)" if _has(state, r"\.norm\.weight$") else "no norm"
