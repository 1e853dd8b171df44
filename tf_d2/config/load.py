"""`load_config`: a YAML file, its text, or the name of a published model -> `ModelConfig`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tf_d2.config.build import build_config, build_lazy_config, description, to_keys
from tf_d2.config.defaults import IGNORED, INFERENCE, KEYS, OPTIONAL, Flat
from tf_d2.config.detectron import DETECTRON, is_detectron
from tf_d2.config.errors import ConfigError, UnknownKeys, did_you_mean
from tf_d2.config.extension import load_extensions
from tf_d2.config.lazy import OPTIONS, dump, is_lazy, set_path
from tf_d2.config.maskrcnn_benchmark import MASKRCNN_BENCHMARK, is_maskrcnn_benchmark
from tf_d2.config.merge import literal, merge_file, merge_opts
from tf_d2.config.older import OWN_KEYS, Older, keys_of
from tf_d2.config.parts.conventions import CONVENTIONS, KEY
from tf_d2.config.safe_yaml import exists, parse_yaml, read_with_bases
from tf_d2.config.schema import ModelConfig
from tf_d2.config.zoo import published_python, zoo_lazy, zoo_name, zoo_values
from tf_d2.config.zoo_detectron import detectron_data
from tf_d2.config.zoo_table import zoo_models


class _Yacs:
    """Merged yacs keys."""

    def __init__(self, flat: Flat) -> None:
        self.flat = flat

    def model(self) -> ModelConfig:
        return build_config(self.flat)

    def yaml(self) -> str:
        return to_yaml(self.flat)


class _Lazy:
    """A LazyConfig dump, and yacs keys given as overrides."""

    def __init__(self, data: dict, options: Flat) -> None:
        self.data, self.options = data, options

    def model(self) -> ModelConfig:
        return build_lazy_config(self.data, self.options)

    def yaml(self) -> str:
        flat = to_keys(self.model())
        return to_yaml(flat) if flat else dump(self.data, self.options)


def _resolve(config: str | Path, opts: Sequence, ignore: Sequence[str] = ()) -> _Yacs | _Lazy:
    load_extensions()
    path = Path(config)
    if isinstance(config, str) and not exists(path):
        name = zoo_name(config)
        if name is not None:
            return _published(name, opts, ignore)
        hint = did_you_mean(config.removesuffix(".yaml"), zoo_models())
        raise ConfigError(f"{config}: no such file, and not the name of a published model{hint}")
    if path.suffix == ".py":
        name = published_python(path) if path.is_file() else None
        if name is not None:
            return _published(name, opts, ignore)
        raise ConfigError(f"{path}: {_python_refused(path)}")
    return _merge(read_with_bases(path), opts, str(path), ignore)


def _published(name: str, opts: Sequence, ignore: Sequence[str]) -> _Yacs | _Lazy:
    data = zoo_lazy(name) or detectron_data(name)
    if data is not None:
        return _merge(data, opts, name, ignore)
    return _Yacs(merge_opts(zoo_values(name), opts, ignore))


def _python_refused(path: Path) -> str:
    """Why a Python file is not read, and the one line that makes data of it."""
    code = (
        "from detectron2.config import LazyConfig; "
        f"LazyConfig.save(LazyConfig.load({str(path)!r}), {path.stem + '.yaml'!r})"
    )
    return (
        "is Python code, which is not run, and not an unchanged copy of a published configuration; give the "
        f'config.yaml that training wrote from it, or write one where detectron2 is: python -c "{code}"'
    )


def load_config(config: str | Path, opts: Sequence = (), *, ignore_keys: Sequence[str] = ()) -> ModelConfig:
    """Read a detectron2 configuration.

    Args:
        config: a YAML file (with ``_BASE_`` files, or the full dump a training run wrote), or the name of a
            published model such as ``"COCO-Detection/faster_rcnn_R_50_FPN_3x"``. An existing file wins.
        opts: ``["KEY", value, ...]`` overrides, as in detectron2; for a LazyConfig also its arguments,
            ``["model.roi_heads.num_classes", 3]``.
        ignore_keys: keys, sections or patterns (``"MODEL.MY_*"``) that detectron2 does not have and that you know to
            change nothing at inference. Those that cannot (training, data sets, sections of your own, what nothing in
            the model reads) are left out without it, and a `ConfigNotice` (a warning) names them.

    Raises:
        ConfigError: unreadable, not data, unknown keys, or a setting that is not supported.
    """
    return _named(str(config), lambda: _resolve(config, opts, ignore_keys).model())


def load_config_text(
    text: str, opts: Sequence = (), source: str = "configuration", *, ignore_keys: Sequence[str] = ()
) -> ModelConfig:
    """`load_config` for YAML text; it cannot name a ``_BASE_``. ``source`` names it in errors."""
    return _named(source, lambda: _resolve_text(text, opts, source, ignore_keys).model())


def _resolve_text(text: str, opts: Sequence, source: str, ignore: Sequence[str] = ()) -> _Yacs | _Lazy:
    load_extensions()
    return _merge(parse_yaml(text, source), opts, source, ignore)


def _merge(data: dict, opts: Sequence, source: str, ignore: Sequence[str]) -> _Yacs | _Lazy:
    older = DETECTRON if "MODEL.CONV_BODY" in data else _older(data)
    if older is not None:
        flat, rest = keys_of(data, opts, source, older)
        merged = merge_opts(flat, rest, ignore)
        asked = merged[KEY]
        if asked in CONVENTIONS and asked not in (older.conventions, "detectron2"):
            raise ConfigError(
                f"{source}: a configuration of {older.project}, whose models compute with the conventions "
                f"{older.conventions!r} (or, as detectron2 would run them, 'detectron2'), not with {asked!r}"
            )
        if merged["MODEL.CONVENTIONS"] == "detectron2":
            merged |= {key: KEYS[key] for key in OWN_KEYS if key not in rest[0::2]}
        return _Yacs(merged)
    if not is_lazy(data):
        try:
            return _Yacs(merge_opts(merge_file(data, source, ignore), opts, ignore))
        except UnknownKeys as error:
            raise _with_cause(error, opts, ignore) from None
    if isinstance(opts, str) or len(opts) % 2:
        raise ConfigError(f"options must be pairs of KEY and VALUE, got {list(opts)!r}")
    yacs: list[Any] = [word for pair in _saved_options(data).items() for word in pair]
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        if str(key).partition(".")[0] in data:  # an argument, as in model.roi_heads.num_classes
            set_path(data, str(key), literal(value))
        else:
            yacs += [key, value]
    return _Lazy(data, merge_opts({}, yacs, ignore))


def _older(data: dict) -> Older | None:
    """Whose configuration it is, if not detectron2's."""
    if is_detectron(data):
        return DETECTRON
    return MASKRCNN_BENCHMARK if is_maskrcnn_benchmark(data) else None


def _with_cause(error: UnknownKeys, opts: Sequence, ignore: Sequence[str]) -> ConfigError:
    """Where the model has a part that is not supported, this is said first: the unknown keys are mostly its own."""
    try:
        build_config(merge_opts(error.merged, opts, ignore))
    except ConfigError as cause:
        return ConfigError(f"{cause}\n{error.listing}")
    return error


def _saved_options(data: dict) -> dict:
    """The overrides that `resolve_yaml` wrote beside the model."""
    options = data.pop(OPTIONS, None)
    return options if isinstance(options, dict) else {}


def _named(source: str, build: Any) -> Any:
    """Errors of ``build`` start with what was being read."""
    try:
        return build()
    except ConfigError as error:
        text = str(error)
        raise error if text.startswith((source, "option")) else ConfigError(f"{source}: {text}") from None


def resolve_yaml(config: str | Path, opts: Sequence = (), *, ignore_keys: Sequence[str] = ()) -> str:
    """The resolved configuration as detectron2-style YAML: every key inference reads, and VERSION.

    A LazyConfig model that these keys cannot say is written as a LazyConfig dump, with references resolved.
    `load_config_text` reads either back to an equal `ModelConfig`. detectron2 reads them too, unless keys of this
    project are among them (`OPTIONAL`).
    """
    load_config(config, opts, ignore_keys=ignore_keys)  # what is refused is not written either
    return _named(str(config), lambda: _resolve(config, opts, ignore_keys).yaml())


def resolve_yaml_text(
    text: str, opts: Sequence = (), source: str = "configuration", *, ignore_keys: Sequence[str] = ()
) -> str:
    """`resolve_yaml` for YAML text, as `load_config_text` reads it."""
    load_config_text(text, opts, source, ignore_keys=ignore_keys)
    return _named(source, lambda: _resolve_text(text, opts, source, ignore_keys).yaml())


def reference_yaml(yaml_text: str) -> str:
    """What `resolve_yaml` wrote, for a program that reads yacs keys only to know what a model is made of.

    A LazyConfig dump gets the keys that describe it (`description`) beside it; it still reads as that dump.
    """
    data = parse_yaml(yaml_text, "configuration")
    if not is_lazy(data):
        return yaml_text
    flat = description(load_config_text(yaml_text))
    return (
        yaml_text + "\n".join(_lines(_tree({k: v for k, v in flat.items() if k not in IGNORED}), "")) + "\n"
    )


def to_yaml(flat: Flat) -> str:
    """Nested block YAML of the inference keys, in the order of the table; leaves in JSON-like flow style."""
    unset = tuple(start for start in OPTIONAL if _is_default(flat, start))
    tree = _tree({key: flat[key] for key in INFERENCE if not key.startswith(unset)})
    return "\n".join(_lines(tree, "")) + "\n"


def _tree(flat: Flat) -> dict[str, Any]:
    """``{"A.B": 1}`` -> ``{"A": {"B": "1"}}``: leaves as text of YAML."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = _scalar(value)  # text, also of a mapping (which is a leaf with keys of its own)
    return tree


def _lines(tree: dict[str, Any], indent: str) -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{name}: {value}"


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
