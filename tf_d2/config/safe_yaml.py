"""YAML that is only ever data: plain values, size limits, ``_BASE_`` files, one recognised expression.

detectron2 reads its configurations with ``yaml.unsafe_load`` where the safe loader refuses; this module never
does. The limits are far above real files (a full training dump has about 10 kB, 500 values and 4 levels).
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tf_d2.config.errors import ConfigError, ConfigNotice

MAX_BYTES = 1 << 18
_MAX_VALUES = 20_000
_MAX_DEPTH = 50
_MAX_BASES = 20
_MAX_DIGITS = 100

_NUMBER = r"\d+(?:\.\d*)?"
_ITEM = (
    rf"x(?:\s*\*\s*(?:2\s*\*\*\s*\(\s*(?P<num>{_NUMBER})\s*/\s*(?P<den>{_NUMBER})\s*\)|(?P<mul>{_NUMBER})))?"
)
# "[[x, x * 2**(1.0/3), ...] for x in [32, 64, ...]]", the anchor sizes of detectron2's Base-RetinaNet.yaml
_SIZES = re.compile(
    r"\s*\[\s*\[(?P<items>[^\[\]]*)\]\s*for\s+x\s+in\s*\[(?P<sizes>[^\[\]]*)\]\s*\]\s*", re.ASCII
)
_ITEM_RE = re.compile(_ITEM, re.ASCII)
# what PyYAML raises for values that do not fit an explicit tag: "!!int", "!!bool x", "!!timestamp x"
_PYYAML_BUGS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
PARTIAL = "_partial_"
"""Key of the mapping that stands for ``functools.partial``: the function's name, its arguments beside it."""
_EVAL_TAG = "tag:yaml.org,2002:python/object/apply:eval"


@dataclass(frozen=True, eq=False)
class Unread:
    """A value that asks for more than data (a Python object, an expression). Nothing was evaluated.

    Whoever needs the value raises `refusal`; in a place that only training reads it does no harm.

    Attributes:
        tag: what was asked for, ``"!!python/object/apply:functools.partial"``.
        data: what stands behind the tag, as plain lists, mappings and values.
    """

    tag: str
    data: Any
    why: str

    def refusal(self) -> str:
        """The sentence that refuses the value, with the line it stands in."""
        return self.why

    def __repr__(self) -> str:
        return f"<{self.tag[:100]}, not evaluated>"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that counts as it reads, tells duplicate keys and reads harmless Python tags."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.values = 0
        self.depth = 0
        self.twice: list[str] = []

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.values += 1
        if self.values > _MAX_VALUES:
            raise ConfigError(f"more than {_MAX_VALUES} values")
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise ConfigError(f"values are nested more than {_MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: dict[str, str] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    self.twice.append(f"{key_node.value} ({seen[key_node.value]} and {_where(key_node)})")
                seen[key_node.value] = _where(key_node)
        return super().construct_mapping(node, deep)


def _where(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _scale(item: str, x: int | float) -> int | float:
    match = _ITEM_RE.fullmatch(item.strip())
    if match is None:
        raise ConfigError(item.strip())
    if match["num"]:
        return x * 2 ** (_number(match["num"]) / _number(match["den"]))
    return x * _number(match["mul"]) if match["mul"] else x


def anchor_sizes(expression: str) -> list[list[int | float]]:
    """Anchor sizes in pixels, one list per level, of the list comprehension that Base-RetinaNet.yaml holds.

    Accepts ``[[x, x * 2**(a/b), x * c] for x in [s, ...]]`` with any such factors and sizes, and computes it
    in the order Python would, so the floats are detectron2's. Anything else is a ConfigError.
    """
    match = _SIZES.fullmatch(expression) if len(expression) < 1000 else None
    try:
        if match is None:
            raise ConfigError(expression[:80])
        sizes = [_number(s.strip()) for s in match["sizes"].rstrip(" ,").split(",")]
        items = match["items"].rstrip(" ,").split(",")
        return [[_scale(item, x) for item in items] for x in sizes]
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(
            f"the expression {expression[:80]!r} is not evaluated: only anchor sizes like "
            "'[[x, x * 2**(1.0/3)] for x in [32, 64]]' are understood; write the numbers out"
        ) from error


def _construct_eval(loader: _Loader, node: yaml.Node) -> list | Unread:
    args = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    if len(args) != 1 or not isinstance(args[0], str):
        return _unread(loader, node)
    try:
        return anchor_sizes(args[0])
    except ConfigError as error:
        return Unread(_tag(node), args, f"{error} ({_where(node)})")


def _construct_list(loader: _Loader, node: yaml.Node) -> list | Unread:
    if not isinstance(node, yaml.SequenceNode):
        return _unread(loader, node)
    return loader.construct_sequence(node, deep=True)


def _construct_dict(loader: _Loader, node: yaml.Node) -> dict | Unread:
    if not isinstance(node, yaml.MappingNode):
        return _unread(loader, node)
    return loader.construct_mapping(node, deep=True)


def _construct_text(loader: _Loader, node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"the tag {node.tag!r} needs a string ({_where(node)})")
    return str(loader.construct_scalar(node))


def _construct_shape(loader: _Loader, node: yaml.Node) -> dict:
    """detectron2's ShapeSpec in a LazyConfig dump: four numbers, kept as a mapping."""
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"ShapeSpec needs a mapping ({_where(node)})")
    return loader.construct_mapping(node, deep=True)


def _construct_name(loader: _Loader, suffix: str, node: yaml.Node) -> str:
    """The name of a Python object in a LazyConfig dump: kept as the text ``python:name``, never looked up."""
    return f"python:{suffix}"


def _tag(node: yaml.Node) -> str:
    return node.tag.replace("tag:yaml.org,2002:", "!!")


def _unread(loader: _Loader, node: yaml.Node) -> Unread:
    """Any other tag: what stands behind it stays data, and whoever needs the value refuses it."""
    tag = _tag(node)
    advice = "write the plain value instead"
    if tag.endswith(".CfgNode"):
        advice = "this is yaml.dump(cfg); write the file with cfg.dump() instead"
    why = f"the tag {tag[:100]!r} asks for more than data and is not executed ({_where(node)}); {advice}"
    if isinstance(node, yaml.MappingNode):
        return Unread(tag, loader.construct_mapping(node, deep=True), why)
    if isinstance(node, yaml.SequenceNode):
        return Unread(tag, loader.construct_sequence(node, deep=True), why)
    return Unread(tag, loader.construct_scalar(node), why)  # type: ignore[arg-type]


def _construct_partial(loader: _Loader, node: yaml.Node) -> Any:
    """``functools.partial`` of a named class with keyword arguments, as pickle's protocol writes it: data.

    ``args: [name]`` and ``state: [name, [], {arguments}, null]`` become ``{PARTIAL: name, **arguments}``; anything
    else stays unread.
    """
    value = loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else {}
    args, state = value.get("args"), value.get("state")
    given = isinstance(args, list) and len(args) == 1 and isinstance(args[0], str)
    if value.keys() != {"args", "state"} or not isinstance(args, list) or not given:
        return _unread(loader, node)
    if not isinstance(state, list) or len(state) != 4:
        return _unread(loader, node)
    name, positional, arguments, attributes = state
    plain = isinstance(arguments, dict) and all(isinstance(key, str) for key in arguments)
    if name != args[0] or positional or attributes or not plain or PARTIAL in arguments:
        return _unread(loader, node)
    return {PARTIAL: name, **arguments}


_PYTHON = "tag:yaml.org,2002:python/"
_Loader.add_constructor(_EVAL_TAG, _construct_eval)
for _name, _construct in {
    "tuple": _construct_list,
    "list": _construct_list,
    "dict": _construct_dict,
    "str": _construct_text,
    "unicode": _construct_text,
    "none": yaml.SafeLoader.construct_yaml_null,
    "bool": yaml.SafeLoader.construct_yaml_bool,
    "int": yaml.SafeLoader.construct_yaml_int,
    "long": yaml.SafeLoader.construct_yaml_int,
    "float": yaml.SafeLoader.construct_yaml_float,
    "object:detectron2.layers.shape_spec.ShapeSpec": _construct_shape,
    "object:detectron2.layers.ShapeSpec": _construct_shape,
    "object/apply:functools.partial": _construct_partial,
}.items():
    _Loader.add_constructor(_PYTHON + _name, _construct)
_Loader.add_multi_constructor(_PYTHON + "name:", _construct_name)
_Loader.add_constructor(None, _unread)  # type: ignore[arg-type]  # None: every other tag


def _check_size(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """Number of values below ``node`` with every alias written out; errors before anything is built."""
    known = sizes.get(id(node), 0)
    if known is None:
        raise ConfigError(f"an alias contains itself ({_where(node)})")
    if known:
        return known
    sizes[id(node)] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    elif node.tag in _NUMBERS and len(node.value) > _MAX_DIGITS:
        raise ConfigError(f"a number of more than {_MAX_DIGITS} characters ({_where(node)})")
    total = 1 + sum(_check_size(child, sizes) for child in children)
    if total > _MAX_VALUES:
        raise ConfigError(f"aliases expand to more than {_MAX_VALUES} values ({_where(node)})")
    sizes[id(node)] = total
    return total


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping in ``text``; ``source`` names it in errors. Never executes anything.

    Values that ask for more than data come as `Unread`. Of a key that occurs twice the last value wins, as in
    PyYAML, and a `ConfigNotice` says so.

    Raises:
        ConfigError: not YAML, empty, not a mapping, or over the limits.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{source}: larger than {MAX_BYTES} bytes, which no configuration is")
    loader, twice = None, []
    try:
        loader = _Loader(text)
        twice = loader.twice
        node = loader.get_single_node()
        if node is not None:
            _check_size(node, {})
        data = None if node is None else loader.construct_document(node)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    except (yaml.YAMLError, *_PYYAML_BUGS) as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())[:300]}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: values are nested too deep") from error
    finally:
        if loader is not None:
            loader.dispose()
    if isinstance(data, Unread):
        raise ConfigError(f"{source}: {data.refusal()}")
    if data is None:
        raise ConfigError(
            f"{source}: is empty or holds comments only, so it is no configuration; detectron2's defaults alone would "
            "be a Faster R-CNN R50-C4 of 80 classes"
        )
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: holds a {type(data).__name__}, not the mapping of a configuration")
    if twice:
        text = f"{source}: of a key that occurs twice the last value is taken: {', '.join(twice[:5])}"
        warnings.warn(text, ConfigNotice, stacklevel=2)
    return data


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            inside = sorted(p.name for p in path.glob("*.y*ml"))[:5]
            hint = f"; in it are {', '.join(inside)}" if inside else ""
            raise ConfigError(f"{path}: is a directory, not a configuration file{hint}")
        if not path.exists():
            raise ConfigError(f"{path}: no such file")
        if not path.is_file():
            raise ConfigError(f"{path}: is not a regular file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    from weights import kind_of_no_config  # brings numpy, which most commands about configurations do without

    if raw and (what := kind_of_no_config(raw)):
        raise ConfigError(f"{path}: is {what}")
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes, which no configuration is")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not text in UTF-8 throughout; save it as UTF-8") from None


def _merge_raw(new: dict, into: dict, source: str, prefix: str = "") -> None:
    for key, value in new.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise ConfigError(f"{source}: {prefix}{key} is a section here and a value in its base")
            _merge_raw(value, into[key], source, f"{prefix}{key}.")
        else:
            into[key] = value


def exists(path: Path) -> bool:
    """Whether there is something at the path; False for what cannot be a path."""
    try:
        return path.expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _base_path(base: Any, path: Path) -> Path:
    if not isinstance(base, str):
        raise ConfigError(f"{path}: _BASE_ must name a file, not {base!r}")
    if "://" in base:
        raise ConfigError(f"{path}: _BASE_ {base!r} is a URL; fetch it and name the local file instead")
    return Path(base) if base.startswith("~") else path.parent / base


def read_with_bases(path: Path, opened: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in the file, merged over its ``_BASE_`` file or files; later values win.

    ``_BASE_`` is relative to the file that names it, absolute, or starts with ``~``; bases may have bases.
    Source: fvcore ``CfgNode.load_yaml_with_base``.
    """
    try:
        path = path.expanduser()
        resolved = path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # no such user, a circle of links, a null byte
        raise ConfigError(f"{str(path)!r}: not a usable path: {error}") from error
    if resolved in opened:
        raise ConfigError(f"{path}: _BASE_ leads back to the same file")
    if len(opened) > _MAX_BASES:
        raise ConfigError(f"{path}: more than {_MAX_BASES} levels of _BASE_")
    data = parse_yaml(_read_text(path), str(path))
    if "_BASE_" not in data:
        return data
    bases = data.pop("_BASE_")
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        base_path = _base_path(base, path)
        if not exists(base_path):
            raise ConfigError(
                f"{path}: its _BASE_ {base!r} does not exist at {base_path}. Copy that file too, or use the "
                "full config.yaml that training wrote, or the zoo name of a published model"
            )
        _merge_raw(read_with_bases(base_path, (*opened, resolved)), merged, str(base_path))
    _merge_raw(data, merged, str(path))
    return merged
