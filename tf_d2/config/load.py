"""`load_config`: a YAML file, its text, or the name of a published model -> `ModelConfig`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tf_d2.config.build import build_config
from tf_d2.config.defaults import INFERENCE, LAZY_ONLY, Flat
from tf_d2.config.errors import ConfigError, did_you_mean
from tf_d2.config.lazy import is_lazy, lazy_values
from tf_d2.config.merge import coerce_all, merge_file, merge_opts
from tf_d2.config.safe_yaml import exists, parse_yaml, read_with_bases
from tf_d2.config.schema import ModelConfig
from tf_d2.config.zoo import zoo_models, zoo_name, zoo_values


def _resolve(config: str | Path, opts: Sequence, ignore: Sequence[str] = ()) -> Flat:
    path = Path(config)
    if isinstance(config, str) and not exists(path):
        name = zoo_name(config)
        if name is not None:
            return merge_opts(zoo_values(name), opts, ignore)
        hint = did_you_mean(config.removesuffix(".yaml"), zoo_models())
        raise ConfigError(f"{config}: no such file, and not the name of a published model{hint}")
    if path.suffix == ".py":
        raise ConfigError(
            f"{path}: is Python code, which is not run; give the config.yaml that training wrote from it, or "
            "save one with detectron2's LazyConfig.save(cfg, 'config.yaml')"
        )
    return _merge(read_with_bases(path), opts, str(path), ignore)


def load_config(config: str | Path, opts: Sequence = (), *, ignore_keys: Sequence[str] = ()) -> ModelConfig:
    """Read a detectron2 configuration.

    Args:
        config: a YAML file (with ``_BASE_`` files, or the full dump a training run wrote), or the name of a
            published model such as ``"COCO-Detection/faster_rcnn_R_50_FPN_3x"``. An existing file wins.
        opts: ``["KEY", value, ...]`` overrides, as in detectron2.
        ignore_keys: keys, sections or patterns (``"MODEL.MY_*"``) that detectron2 does not have and that you know to
            change nothing at inference. Those that cannot (training, data sets, sections of your own, what nothing in
            the model reads) are left out without it, and a `ConfigNotice` (a warning) names them.

    Raises:
        ConfigError: unreadable, not data, unknown keys, or a setting that is not supported.
    """
    return _named(str(config), lambda: build_config(_resolve(config, opts, ignore_keys)))


def load_config_text(
    text: str, opts: Sequence = (), source: str = "configuration", *, ignore_keys: Sequence[str] = ()
) -> ModelConfig:
    """`load_config` for YAML text; it cannot name a ``_BASE_``. ``source`` names it in errors."""
    return _named(source, lambda: build_config(_resolve_text(text, opts, source, ignore_keys)))


def _resolve_text(text: str, opts: Sequence, source: str, ignore: Sequence[str] = ()) -> Flat:
    return _merge(parse_yaml(text, source), opts, source, ignore)


def _merge(data: dict, opts: Sequence, source: str, ignore: Sequence[str]) -> Flat:
    flat = coerce_all(lazy_values(data)) if is_lazy(data) else merge_file(data, source, ignore)
    return merge_opts(flat, opts, ignore)


def _named(source: str, build: Any) -> Any:
    """Errors of ``build`` start with what was being read."""
    try:
        return build()
    except ConfigError as error:
        text = str(error)
        raise error if text.startswith((source, "option")) else ConfigError(f"{source}: {text}") from None


def resolve_yaml(config: str | Path, opts: Sequence = (), *, ignore_keys: Sequence[str] = ()) -> str:
    """The resolved configuration as detectron2-style YAML: every key inference reads, and VERSION.

    `load_config_text` reads it back to an equal `ModelConfig`. detectron2 reads it too, unless the model has
    a setting that only its LazyConfig can express (`LAZY_ONLY`).
    """
    load_config(config, opts, ignore_keys=ignore_keys)  # what is refused is not written either
    return to_yaml(_named(str(config), lambda: _resolve(config, opts, ignore_keys)))


def resolve_yaml_text(
    text: str, opts: Sequence = (), source: str = "configuration", *, ignore_keys: Sequence[str] = ()
) -> str:
    """`resolve_yaml` for YAML text, as `load_config_text` reads it."""
    load_config_text(text, opts, source, ignore_keys=ignore_keys)
    return to_yaml(_named(source, lambda: _resolve_text(text, opts, source, ignore_keys)))


def to_yaml(flat: Flat) -> str:
    """Nested block YAML of the inference keys, in the order of the table; leaves in JSON-like flow style."""
    lines: list[str] = []
    open_sections: list[str] = []
    unset = tuple(start for start in LAZY_ONLY if _is_default(flat, start))
    for key in INFERENCE:
        if key.startswith(unset):
            continue
        *sections, leaf = key.split(".")
        common = 0
        while common < min(len(sections), len(open_sections)) and sections[common] == open_sections[common]:
            common += 1
        lines += [f"{'  ' * depth}{sections[depth]}:" for depth in range(common, len(sections))]
        open_sections = sections
        lines.append(f"{'  ' * len(sections)}{leaf}: {_scalar(flat[key])}")
    return "\n".join(lines) + "\n"


def _is_default(flat: Flat, start: str) -> bool:
    return all(flat[key] == default for key, default in INFERENCE.items() if key.startswith(start))


def _scalar(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_scalar, value))}]"
    if isinstance(value, float):
        text = repr(value)
        # YAML 1.1 reads 1e-05 as a string; it needs the dot
        return text if "." in text or "e" not in text else text.replace("e", ".0e")
    return json.dumps(value, ensure_ascii=True)
