"""From a configuration and a checkpoint to a model with its weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

import weights as checkpoints
from tf_d2 import kernels
from tf_d2.config import (
    ConfigError,
    DownloadError,
    ModelConfig,
    load_config,
    load_config_text,
    resolve_weights,
    resolve_yaml,
    resolve_yaml_text,
)
from tf_d2.config.download import split_matching
from tf_d2.config.parts.conventions import with_conventions
from tf_d2.config.zoo import zoo_name
from tf_d2.densepose import vertex_embeddings
from tf_d2.layers.base import unfilled
from tf_d2.modeling import D2Model, build_model

DType = Literal["float32", "float64", "bfloat16"]


def load_model(
    config: str | Path,
    weights: str | Path | None = None,
    *,
    dtype: DType = "float32",
    opts: Sequence[Any] = (),
    ema: bool = False,
    allow_nonfinite: bool = False,
    ignore_keys: Sequence[str] = (),
    ignore_tensors: Sequence[str] = (),
    prefix: str | None = None,
    conventions: str | None = None,
) -> D2Model:
    """Build the Keras model of a detectron2 configuration and load a checkpoint into it.

    Args:
        config: path of a detectron2 YAML, or the name of a published model ("COCO-Detection/faster_rcnn_R_50_FPN_3x").
            A converted ``.weights.h5`` carries its configuration: then ``config`` may be that file and ``weights``
            None.
        weights: path of a checkpoint (.pkl, .pth, .safetensors, .weights.h5); None = MODEL.WEIGHTS of ``opts`` or
            of the YAML file, the converted file itself, or the published model's checkpoint.
        dtype: dtype of variables and computation.
        opts: ``["KEY", value, ...]``, overrides as in detectron2.
        ema: take the averaged weights of a training checkpoint.
        allow_nonfinite: accept NaN and infinity in the checkpoint, with a warning.
        ignore_keys: keys of the configuration that detectron2 does not have and that you know to change nothing, as for
            :func:`tf_d2.load_config`.
        ignore_tensors: names or patterns (``"discriminator.*"``) of tensors in the checkpoint that the model has no
            place for and that are left out; never one that it needs.
        prefix: which of several models in the checkpoint to load: an entry of the file (``"teacher"``) or the start of
            its names (``"modelTeacher."``).
        conventions: "detectron2", "detectron" or "maskrcnn-benchmark", whose arithmetic to follow; None = that of the
            project whose configuration it is (the option MODEL.CONVENTIONS).

    Raises:
        tf_d2.config.ConfigError: the configuration cannot be read or asks for something unsupported.
        weights.WeightsError: the checkpoint cannot be read or does not belong to the configuration.
        weights.errors.UsageError: TensorFlow cannot compute in bfloat16 here, or makes a graph instead of computing.
    """
    kernels.check_eager()
    kernels.keep_memory()  # before the first tensor
    if dtype == "bfloat16":
        kernels.check_bfloat16()
    if dtype == "float32":
        kernels.warn_of_rounding()
    opts = with_conventions(opts, conventions)
    parsed, path = resolve_model(config, weights, opts, ignore_keys)
    with unfilled():
        model = build_model(parsed, dtype)
    model.read_yaml = partial(model_yaml, config, tuple(opts), tuple(ignore_keys))
    load_weights(
        model,
        path,
        ema=ema,
        allow_nonfinite=allow_nonfinite,
        ignore_tensors=ignore_tensors,
        prefix=prefix,
        match_names=split_matching(str(parsed.weights if weights is None else weights))[1],
    )
    return model


def resolve_model(
    config: str | Path,
    weights: str | Path | None,
    opts: Sequence[Any] = (),
    ignore_keys: Sequence[str] = (),
) -> tuple[ModelConfig, Path]:
    """The parsed configuration and the checkpoint file that :func:`load_model` would use."""
    if _holds_both(config):
        parsed = load_config_text(_yaml_inside(config), opts, ignore_keys=ignore_keys)
    else:
        parsed = load_config(config, opts, ignore_keys=ignore_keys)
    override = parsed.weights if "MODEL.WEIGHTS" in list(opts)[::2] else ""
    if weights is not None:
        if override and override != str(weights):
            raise ConfigError(
                f"two checkpoints are given: {weights}, and {override} as MODEL.WEIGHTS in opts"
            )
        return parsed, resolve_weights(weights)
    if override:
        return parsed, resolve_weights(override)
    if _holds_both(config):
        return parsed, Path(config)
    if zoo_name(str(config)) and not Path(config).is_file():
        return parsed, resolve_weights(str(config))  # MODEL.WEIGHTS there is what its training started from
    if not parsed.weights:
        raise ConfigError(
            f"{config}: names no checkpoint (MODEL.WEIGHTS is empty); give one as weights (--weights){_hint(config)}"
        )
    found = _named_weights(config, parsed.weights)
    _warn_of_trained(Path(config), parsed.weights, found)
    return parsed, found


def _trained(config: str | Path) -> Path | None:
    """The last checkpoint of a training run, which writes its configuration beside its checkpoints; None without."""
    folder = Path(config).parent
    trained = folder / "model_final.pth"
    last = folder / "last_checkpoint"  # holds the name of a file
    if not trained.is_file() and last.is_file():
        trained = folder / last.read_text(errors="replace").strip()
    return trained if trained.is_file() else None


def _hint(config: str | Path) -> str:
    trained = _trained(config)
    return "" if trained is None else f" {trained}, with which its training run ended"


def _warn_of_trained(config: Path, name: str, found: Path) -> None:
    """MODEL.WEIGHTS in the configuration of a training run is what the training started from."""
    trained = _trained(config)
    if trained is not None and not trained.samefile(found):
        warnings.warn(
            f"{config}: no weights were given, so its MODEL.WEIGHTS is used ({name}), as detectron2 does. In the "
            f"configuration of a training run that is what the training started from; for what it ended with give "
            f"weights (--weights) {trained}",
            UserWarning,
            stacklevel=3,
        )


def _named_weights(config: str | Path, name: str) -> Path:
    try:
        return resolve_weights(name)
    except DownloadError as error:
        raise DownloadError(
            f"{config}: its MODEL.WEIGHTS cannot be used; give weights (--weights){_hint(config)}. {error}"
        ) from None


def _holds_both(config: str | Path) -> bool:
    """A converted file carries its configuration."""
    return str(config).endswith(".weights.h5")


def _yaml_inside(path: str | Path) -> str:
    text = checkpoints.read_checkpoint(path).config
    if text is None:
        raise checkpoints.CheckpointError(
            f"{path} holds no configuration (it was not written by tf-d2): pass the YAML as config"
        )
    return text


def load_weights(
    model: D2Model,
    path: str | Path,
    *,
    ema: bool = False,
    allow_nonfinite: bool = False,
    ignore_tensors: Sequence[str] = (),
    prefix: str | None = None,
    match_names: bool = False,
) -> checkpoints.Checkpoint:
    """Load a checkpoint into a model, accounting for every tensor on both sides.

    ``match_names``: its names are only the ends of the model's, as ``?matching_heuristics=True`` says.
    """
    checkpoint = checkpoints.read_checkpoint(path, ema=ema, prefix=prefix)
    checkpoint.matching_heuristics |= match_names
    specs = model.variable_specs()
    state = checkpoints.matched_state(checkpoint, specs)
    arrays = checkpoints.to_keras_arrays(
        state,
        specs,
        allow_nonfinite=allow_nonfinite,
        path=checkpoint.path,
        frozen=model.frozen_statistics(),
        ignore=ignore_tensors,
    )
    model.assign(arrays, checkpoints.touched)
    model.vertex_embeddings = _vertex_embeddings(model.config, state, path)
    return checkpoint


def _vertex_embeddings(
    config: ModelConfig, state: Mapping[str, np.ndarray], path: str | Path
) -> dict[str, np.ndarray]:
    """Embeddings of the vertices of the meshes that the configuration and the file of a CSE model have."""
    head = getattr(config.roi_heads, "densepose", None)
    if head is None or head.predictor.embed_size is None:
        return {}
    for one in head.embedders:
        for key, shape in one.shapes(head.predictor.embed_size).items():
            if key in state and state[key].shape != shape:
                raise checkpoints.ConversionError(
                    f"{path}: {key} has shape {state[key].shape}; MODEL.ROI_DENSEPOSE_HEAD.CSE says {shape}"
                )
    return vertex_embeddings(state)


def model_yaml(config: str | Path, opts: Sequence[Any] = (), ignore_keys: Sequence[str] = ()) -> str:
    """The full YAML of the configuration that :func:`load_model` would use, overrides applied."""
    if _holds_both(config):
        return resolve_yaml_text(_yaml_inside(config), opts, str(config), ignore_keys=ignore_keys)
    return resolve_yaml(config, opts, ignore_keys=ignore_keys)
