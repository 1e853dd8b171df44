"""detectron2 state dicts <-> Keras variables: one naming rule, layouts by shape, every tensor accounted for.

Naming: variable path ``backbone/bottom_up/res2/0/conv1/kernel`` <-> key
``backbone.bottom_up.res2.0.conv1.weight``. Layouts (torch -> Keras), decided by the two shapes and never by
reshaping until it fits:

* convolution ``(out, in/groups, kh, kw)`` -> ``(kh, kw, in/groups, out)``; transposed convolution
  ``(in, out, kh, kw)`` -> ``(kh, kw, out, in)``: the same permutation, ``transpose(2, 3, 1, 0)``;
* linear ``(out, in)`` -> ``(in, out)``;
* linear after flattening C, H, W ``(out, C*H*W)`` -> ``(H, W, C, out)``, because our features are H, W, C;
* everything else as it is.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from weights._class_counts import class_count_hints
from weights._files import touched
from weights.errors import ConversionError
from weights.layouts import Shape, keras_layout, path_to_key, torch_layout, torch_shape

# what FrozenBatchNorm2d takes for files older than its version 2, and what a new batch norm starts from
_FILL = {"moving_mean": 0.0, "moving_variance": 1.0}
_HEADS = ("roi_heads.box", "roi_heads.res5", "proposal_generator.", "head.", "sem_seg_head.")
_SHOWN = 40  # names of each kind in an error message
_FLOATING = ("float16", "bfloat16", "float32", "float64")  # what weights come as

# Tensors that a checkpoint may hold beyond the model's variables, and why they change nothing for inference.
_HARMLESS = (
    (re.compile(r"(^|\.)anchor_generator\.cell_anchors(\.|$)"), "anchors are computed from the config"),
    (re.compile(r"^pixel_(mean|std)$"), "taken from the config, as detectron2 does"),
    (re.compile(r"(^|\.)num_batches_tracked$"), "a counter of training steps"),
    (re.compile(r"^roi_heads\.keypoint_head\.score\."), "Detectron's fixed bilinear upsampling"),
    (re.compile(r"(^|\.)fed_loss_cls_weights$"), "weights of a training loss"),
    (re.compile(r"(^|\.)relative_position_index$"), "computed from the window size"),
    (
        re.compile(r"^roi_heads\.embedder\."),
        "embeddings of a mesh's vertices, compared with what was detected",
    ),
)


def harmless_reason(key: str) -> str | None:
    """Why a model for inference has no variable for ``key``, or None when it should have one."""
    return next((reason for pattern, reason in _HARMLESS if pattern.search(key)), None)


def split_harmless(state: Mapping[str, np.ndarray], keys: Iterable[str]) -> dict[str, np.ndarray]:
    """The entries of ``state`` under ``keys`` that no inference model needs (kept for the way back)."""
    return {key: state[key] for key in keys if key in state and harmless_reason(key)}


def to_keras_arrays(
    state: Mapping[str, np.ndarray],
    specs: Mapping[str, Shape],
    *,
    dtype: Any = np.float32,
    allow_nonfinite: bool = False,
    path: str | os.PathLike[str] = "",
    frozen: Collection[str] = (),
    ignore: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Fill the variables of a model from a detectron2 state dict, with every tensor accounted for.

    Args:
        state: tensors by detectron2 key, in torch layout (``Checkpoint.state``).
        specs: variable path -> Keras shape (``model.variable_specs()``).
        dtype: what the tensors become (float16 is widened); only tables of indices keep theirs.
        allow_nonfinite: NaN and infinite values give a warning with their count instead of an error.
        path: the file that ``state`` is from, for the messages.
        frozen: paths of the statistics of frozen norms (``model.frozen_statistics()``): in old files they are a part of
            weight and bias, and 0 and 1 take their place. Without those of any other norm the model is incomplete.
        ignore: names or patterns (``"discriminator.*"``) of tensors that the model has no variable for and that are
            left out; never one that it needs.

    Returns:
        path -> array in Keras layout, in the order of ``specs``; views of ``state`` where only the order of
        axes changes.

    Raises:
        ConversionError: lists all missing, unexpected and mismatched names and those whose dtype is none of
            weights, and the class counts if they explain it.
    """
    fit = _fit(state, specs, dtype, frozen)
    fit.unexpected = [key for key in fit.unexpected if not is_ignored(key, ignore)]
    if fit.missing or fit.unexpected or fit.mismatched or fit.not_floating:
        raise ConversionError(_mismatch_message(fit, state, specs, path))
    if fit.nonfinite:
        text = _nonfinite_message(fit.nonfinite, path)
        if not allow_nonfinite:
            raise ConversionError(
                f"{text}\nThe training probably diverged; --allow-nonfinite (in Python allow_nonfinite=True) "
                "loads them all the same."
            )
        warnings.warn(text, stacklevel=2)
    return fit.arrays


def initial_arrays(
    state: Mapping[str, np.ndarray],
    specs: Mapping[str, Shape],
    *,
    dtype: Any = np.float32,
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """Fill what a checkpoint of a part of the model has, for training from a backbone.

    Args:
        state: tensors under the model's keys, usually from :func:`weights.match_heuristically`.
        specs, dtype: as for :func:`to_keras_arrays`.

    Returns:
        path -> array for the variables that were found, the keys that stay as they are, and the names in the
        file that the model does not have (a classifier, say), both sorted.

    Raises:
        ConversionError: when nothing fits, or a tensor has another shape or a dtype that is none of weights,
            or values are not finite.
    """
    fit = _fit(state, specs, dtype)
    if fit.mismatched or fit.not_floating or not fit.arrays:
        raise ConversionError(_mismatch_message(fit, state, specs))
    if fit.nonfinite:
        raise ConversionError(
            f"{_nonfinite_message(fit.nonfinite)}\nThe training probably diverged; start from another file."
        )
    return fit.arrays, sorted(fit.missing), sorted(fit.unexpected)


@dataclass
class _Fit:
    """How a state dict and the variables of a model go together, by detectron2 key."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    not_floating: list[str] = field(default_factory=list)
    nonfinite: dict[str, int] = field(default_factory=dict)


def is_ignored(key: str, patterns: Iterable[str]) -> bool:
    """Whether one of the names, modules or patterns covers the tensor ``key``."""
    if isinstance(patterns, str):
        raise ConversionError(f"ignore_tensors is a list of patterns, not the text {patterns!r}")
    return any(
        key == pattern or fnmatchcase(key, pattern) or key.startswith(pattern.rstrip(".") + ".")
        for pattern in patterns
    )


def _fit(
    state: Mapping[str, np.ndarray],
    specs: Mapping[str, Shape],
    dtype: Any,
    frozen: Collection[str] | None = None,
) -> _Fit:
    """``frozen``: the norms whose statistics may be filled in; None = all."""
    fit, left = _Fit(), dict(state)
    fused_norms = not any(key.endswith(".running_mean") for key in state)
    for path, spec in specs.items():
        key, leaf, shape = path_to_key(path), path.rsplit("/", 1)[-1], tuple(spec)
        source = left.pop(key, None)
        if source is None:
            may_fill = frozen is None or path in frozen
            if leaf in _FILL and may_fill and fused_norms and _norm_is_present(key, state):
                fit.arrays[path] = np.full(shape, _FILL[leaf], dtype)
            else:
                fit.missing.append(key)
            continue
        array = keras_layout(source, shape, leaf)
        if array is None:
            fit.mismatched.append(f"{key}: file {tuple(source.shape)}, model {torch_shape(shape, leaf)}")
            continue
        if source.dtype.name not in _FLOATING and harmless_reason(key) is None:
            fit.not_floating.append(f"{key}: {source.dtype}")
            continue
        fit.arrays[path] = _cast(array, dtype)
        count = nonfinite_count(fit.arrays[path])
        touched(source.nbytes)
        if count:
            fit.nonfinite[key] = count
    fit.unexpected = [key for key in left if harmless_reason(key) is None]
    return fit


def _norm_is_present(key: str, state: Mapping[str, np.ndarray]) -> bool:
    """Old files fold the statistics of a frozen norm into its weight and bias; both must be there."""
    layer = key.rsplit(".", 1)[0]
    return f"{layer}.weight" in state and f"{layer}.bias" in state


def _cast(array: np.ndarray, dtype: Any) -> np.ndarray:
    if array.dtype.name not in _FLOATING:
        return array
    with np.errstate(over="ignore"):  # an overflow becomes infinite, which is then counted and reported
        return array.astype(dtype, copy=False)


def nonfinite_count(array: np.ndarray) -> int:
    """Number of NaN and infinite values; allocates only when there are any."""
    if array.dtype.kind not in "fc" or not array.size:
        return 0
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(array.min()) and np.isfinite(array.max())
    return 0 if finite else int(array.size - np.count_nonzero(np.isfinite(array)))


def _leftover_patterns(names: Iterable[str], specs: Mapping[str, Shape]) -> list[str]:
    """The modules that hold ``names`` and nothing of the model, outermost first, as patterns."""
    known = {key[:end] for path in specs for key in [path_to_key(path)] for end in _dots(key)}
    patterns: dict[str, None] = {}
    for name in sorted(names):
        outside = next((name[:end] for end in _dots(name) if name[:end] not in known), None)
        patterns[f"{outside}.*" if outside else name] = None
    return list(patterns)[:_SHOWN]


def _dots(key: str) -> list[int]:
    return [index for index, letter in enumerate(key) if letter == "."]


def _nonfinite_message(bad_values: dict[str, int], path: str | os.PathLike[str] = "") -> str:
    names = _listing([f"{key}: {count}" for key, count in sorted(bad_values.items())])
    count = sum(bad_values.values())
    return _about(path, f"{count} NaN or infinite values in {len(bad_values)} tensors:{names}")


def _about(path: str | os.PathLike[str], text: str) -> str:
    return f"{os.fspath(path)}: {text}" if path else text


def _listing(names: list[str]) -> str:
    shown = "".join(f"\n  {name}" for name in names[:_SHOWN])
    return shown + (f"\n  ... and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _mismatch_message(
    fit: _Fit,
    state: Mapping[str, np.ndarray],
    specs: Mapping[str, Shape],
    path: str | os.PathLike[str] = "",
) -> str:
    parts = [_about(path, "The checkpoint does not match the model of the config.")]
    parts += class_count_hints({key: tuple(value.shape) for key, value in state.items()}, specs)
    if fit.arrays and fit.missing and not any(key.startswith(_HEADS) for key in state):
        parts.append("The file holds a backbone only: weights.initial_arrays starts a model from it.")
    statistics = [key for key in fit.missing if key.endswith((".running_mean", ".running_var"))]
    if statistics:
        parts.append(
            f"{len(statistics)} statistics (running_mean, running_var) of batch norms are missing; only frozen ones "
            "(NORM FrozenBN) may be without. The file may hold model.parameters() alone: save model.state_dict()."
        )
    lists = (
        ("missing", fit.missing),
        ("unexpected", fit.unexpected),
        ("of another shape", fit.mismatched),
        ("not floating point, as in a quantised model (load it as it was before that)", fit.not_floating),
    )
    for title, names in lists:
        if names:
            parts.append(f"{len(names)} {title}:{_listing(sorted(names))}")
    if fit.unexpected and not (fit.missing or fit.mismatched or fit.not_floating):
        patterns = " ".join(f"'{pattern}'" for pattern in _leftover_patterns(fit.unexpected, specs))
        parts.append(
            "The model is complete without them. If they belong to something that only training used, leave them out: "
            f"--ignore-tensors {patterns} (in Python ignore_tensors=[...])."
        )
    if fit.missing or fit.unexpected or fit.mismatched:
        parts.append("Check that the config (--config-file) is the one it was trained with.")
    parts.append(f"`tf-d2 inspect {os.fspath(path) or 'FILE'}` lists its tensors.")
    return "\n".join(parts)


# --- and back ---------------------------------------------------------------------------------------
def to_state_dict(
    arrays: Mapping[str, np.ndarray],
    *,
    shapes: Mapping[str, Shape] | None = None,
    dtypes: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Inverse of :func:`to_keras_arrays`, bit for bit.

    Args:
        arrays: variable path -> array in Keras layout.
        shapes: variable path -> torch shape, where known (see :func:`torch_layout`).
        dtypes: variable path -> dtype in the original file, where it was narrower; taken where exact.
        extra: tensors by detectron2 key that the model has no variable for; added as they are.

    Raises:
        ConversionError: if two variables claim the same key.
    """
    shapes, dtypes = shapes or {}, dtypes or {}
    state: dict[str, np.ndarray] = {}
    for path, array in arrays.items():
        key = path_to_key(path)
        if key in state or (extra and key in extra):
            raise ConversionError(
                f"Two variables claim the state-dict key {key!r}; is this a model of this library?"
            )
        value = torch_layout(array, path, shapes.get(path))
        state[key] = _narrowed(value, dtypes[path]) if path in dtypes else value
    return {**state, **(extra or {})}


def _narrowed(array: np.ndarray, dtype: Any) -> np.ndarray:
    """``array`` in a narrower dtype, unless that would change it (it was trained further)."""
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    return narrow if np.array_equal(narrow, array, equal_nan=True) else array
