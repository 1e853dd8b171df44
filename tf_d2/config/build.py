"""From what a file says to a `ModelConfig`, through either door, and back to yacs keys.

Every setting that this version cannot reproduce exactly is refused by name, with its value and what is supported.
What detectron2 asserts at construction is asserted here, so that a configuration fails before a model is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tf_d2.config.defaults import IGNORED, KEYS, Flat
from tf_d2.config.errors import ConfigError
from tf_d2.config.keys import Keys
from tf_d2.config.lazy import LazyFile
from tf_d2.config.merge import coerce
from tf_d2.config.parts.conventions import DETECTRON2, KEY
from tf_d2.config.parts.input import InputConfig
from tf_d2.config.schema import ModelConfig
from tf_d2.config.table import PARTS

_DATASETS = ("DATASETS.TEST", "DATASETS.TRAIN")


def build_config(flat: Flat) -> ModelConfig:
    """The model that the merged yacs keys describe.

    Raises:
        ConfigError: a value is not supported, out of range, or inconsistent with another key.
    """
    keys = Keys(flat, PARTS)
    config = ModelConfig(
        model=keys.part("meta_architecture", "MODEL.META_ARCHITECTURE"),
        input=InputConfig.from_keys(keys),
        weights=flat["MODEL.WEIGHTS"],
        dataset=_dataset(keys),
    )
    _check_conventions(keys, config)
    return config


def _check_conventions(keys: Keys, config: ModelConfig) -> None:
    """The older projects have no other models than these."""
    heads = getattr(config.roi_heads, "name", "StandardROIHeads")
    known = config.meta_architecture in ("GeneralizedRCNN", "ProposalNetwork", "RetinaNet")
    if config.conventions != DETECTRON2 and not (known and heads in ("StandardROIHeads", "Res5ROIHeads")):
        model = heads if known else config.meta_architecture
        raise keys.fail(KEY, f"{model} has detectron2's only")


def _dataset(keys: Keys) -> str:
    fields = keys.fields({key: key for key in _DATASETS})
    return next((fields.names(key)[0] for key in _DATASETS if fields[key]), "")


def build_lazy_config(data: dict, options: Flat) -> ModelConfig:
    """The model that a LazyConfig dump describes, with yacs keys as overrides.

    Raises:
        ConfigError: naming the object or argument that is not supported, or the option that the model lacks.
    """
    file = LazyFile(data, options, PARTS)
    node = file.node("model")
    model = node.read_as("meta_architecture")
    config = ModelConfig(
        model=model,
        input=InputConfig.from_lazy(node),
        weights=options.get("MODEL.WEIGHTS", _text(file.value("train", "init_checkpoint"))),
        dataset=_lazy_dataset(file, options),
    )
    for key in options:
        if key == KEY and options[key] == DETECTRON2.name:
            continue
        if (
            key not in file.used
            and key not in (*_DATASETS, "MODEL.WEIGHTS", "VERSION")
            and key not in IGNORED
        ):
            raise ConfigError(
                f"option {key}: this model is a LazyConfig without that setting; name the argument instead, as in "
                "model.roi_heads.num_classes"
            )
    return config


def _lazy_dataset(file: LazyFile, options: Flat) -> str:
    for key in _DATASETS:
        if options.get(key):
            return str(options[key][0])
    names = file.value("dataloader", "test", "dataset", "names")
    return _text(names[0] if isinstance(names, Sequence) and names and not isinstance(names, str) else names)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def description(config: ModelConfig) -> Flat:
    """The model as far as yacs keys, with their defaults, can say it.

    Parts that only LazyConfig can name stand under the names of their classes, and two keys of this project say what
    comes out: ``MODEL.BACKBONE.OUT_FEATURES``, and ``INNER_FEATURES`` of the network below a pyramid. Of a transformer,
    ``TOKENS`` says what its blocks are, and ``SCALED`` which levels a pyramid makes of its one map.

    Raises:
        AttributeError: a part has no `to_keys`.
    """
    flat = {**KEYS, **config.model.to_keys(), **config.input.to_keys(), "MODEL.WEIGHTS": config.weights}
    flat["DATASETS.TEST"] = (config.dataset,) if config.dataset else ()
    inner = getattr(config.backbone, "bottom_up", None) or getattr(config.backbone, "net", None)
    flat["MODEL.BACKBONE.OUT_FEATURES"] = tuple(config.backbone.strides)
    flat["MODEL.BACKBONE.INNER_FEATURES"] = tuple(inner.strides) if inner else ()
    tokens = getattr(inner or config.backbone, "tokens", None)
    if tokens is not None:
        flat["MODEL.BACKBONE.TOKENS"] = tokens
        flat["MODEL.BACKBONE.SCALED"] = tuple(f"p{n}" for n in getattr(config.backbone, "levels", ()))
    return flat


def to_keys(config: ModelConfig) -> Flat | None:
    """The model as yacs keys with their defaults; None where these cannot say it."""
    try:
        flat = description(config)
    except AttributeError:  # a part that only LazyConfig can name may have no `to_keys`
        return None
    try:
        flat = {key: coerce(key, _whole(flat[key], default)) for key, default in KEYS.items()}
        same = build_config(flat) == config
    except ConfigError:
        return None
    return flat if same else None


def _whole(value: Any, default: Any) -> Any:
    """A float without fraction as an int, where the key has one."""
    return int(value) if type(default) is int and isinstance(value, float) and value.is_integer() else value
