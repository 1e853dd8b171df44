"""The published models by name: what they are, whether this version runs them, where their weights are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from tf_d2.config.build import build_config, build_lazy_config
from tf_d2.config.defaults import Flat
from tf_d2.config.detectron import DETECTRON
from tf_d2.config.download import fetch, split_matching
from tf_d2.config.errors import ConfigError, DownloadError, did_you_mean
from tf_d2.config.older import keys_of
from tf_d2.config.zoo_configs import published_values
from tf_d2.config.zoo_detectron import PREFIX, detectron_data, file_name
from tf_d2.config.zoo_lazy import DIGESTS, LAZY
from tf_d2.config.zoo_table import CATALOG, HOST, ZooModel, without_extension, zoo_models


def zoo_name(name: str) -> str | None:
    """The canonical form of a zoo name (without ``configs/`` and extension), or None if it is not one.

    A model that only a Python file says may also go by a shorter name, as long as that is one model's only: without
    ``projects/`` and ``configs/``, without its schedule (``_100ep``, ``_3x``), without its folders; and by a path
    that ends with the file's path in detectron2's repository.
    """
    stem = without_extension(name.removeprefix("configs/"))
    if _is_known(stem):
        return stem
    if name.startswith(PREFIX) and detectron_data(stem) is not None:
        return _catalogue().get(file_name(stem), PREFIX + file_name(stem))
    if name.endswith(".py"):
        stem = _published_path(name) or stem
    return stem if _is_known(stem) else _short_names().get(stem)


def _is_known(stem: str) -> bool:
    return stem in zoo_models() or stem in LAZY or published_values(stem) is not None


@lru_cache(maxsize=1)
def _catalogue() -> Mapping[str, str]:
    """Detectron's file name -> the name of the row, of the models in detectron2's catalogue."""
    return MappingProxyType(
        {file_name(name): name for name in zoo_models() if name.startswith("catalog://Caffe2")}
    )


@lru_cache(maxsize=1)
def _short_names() -> Mapping[str, str]:
    """Unambiguous short form -> canonical name of the models that only LazyConfig can say."""
    found: dict[str, set[str]] = {}
    for name in LAZY:
        whole = name.removeprefix("projects/").replace("/configs/", "/")
        for form in (whole, whole.rpartition("/")[2]):
            for short in (form, re.sub(r"_\d+(ep|x)$", "", form)):
                found.setdefault(short, set()).add(name)
    return MappingProxyType({short: names.pop() for short, names in found.items() if len(names) == 1})


def _published_path(path: str) -> str | None:
    """The published model whose Python file a path ends with."""
    path = path.replace("\\", "/")
    for known in DIGESTS:
        if path.endswith("/" + (known if known.startswith("projects/") else f"configs/{known}")):
            return without_extension(known)
    return None


def published_python(path: Path) -> str | None:
    """The name of the published model that a Python file on disk is an unchanged copy of, or None.

    Found by the file's name and the digest of its text; nothing in it is run.
    """
    known = [name for name in DIGESTS if name.rpartition("/")[2] == path.name]
    if not known or path.stat().st_size > 1 << 18:
        return None
    digest = hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    return next((without_extension(name) for name in known if digest.startswith(DIGESTS[name])), None)


def zoo_lazy(name: str) -> dict | None:
    """The LazyConfig data of a published model (canonical name); None for one that yacs keys say."""
    make = LAZY.get(name)
    return None if make is None else make()


def zoo_values(name: str) -> Flat:
    """All configuration keys of a zoo model.

    Raises:
        ConfigError: the model has no configuration, or one this version does not hold.
    """
    detectron = detectron_data(name)
    if detectron is not None:
        return keys_of(detectron, (), name, DETECTRON)[0]
    row = zoo_models().get(name)
    values = published_values(name)
    if values is None:
        assert row is not None
        raise ConfigError(f"{name}: {row.no_detector}")
    return values


def unsupported_reason(row: ZooModel) -> str | None:
    """Why this version cannot run the model, found by building its configuration; None if it can."""
    try:
        if (data := zoo_lazy(row.name)) is not None:
            build_lazy_config(data, {})
        else:
            build_config(zoo_values(row.name))
    except ConfigError as error:
        return str(error).removeprefix(f"{row.name}: ")
    return None


def _catalog_url(name: str) -> str:
    row = zoo_models().get(name)
    if row is None and name.startswith(CATALOG + "MSRA/"):
        return f"{HOST}detectron/ImageNetPretrained/{name.removeprefix(CATALOG)}.pkl"
    if row is None:
        known = [n for n in zoo_models() if n.startswith("catalog://")]
        raise DownloadError(f"{name}: not in detectron2's catalogue{did_you_mean(name, known)}")
    return row.url


def weights_url(name: str) -> str | None:
    """The address of a zoo name, ``detectron2://``, ``catalog://`` or ``https://`` name; None for a path."""
    if name.startswith("catalog://"):
        return _catalog_url(name)
    if name.startswith("detectron2://"):
        return f"{HOST}detectron2/{name.removeprefix('detectron2://')}"
    if name.startswith(("https://", "http://")):
        return name
    row = zoo_models().get(zoo_name(name) or "")
    return row.url if row else None


def resolve_weights(name_or_path: str | Path, *, progress: bool = True) -> Path:
    """A local file for a path, a zoo name, or a ``detectron2://``, ``catalog://`` or ``https://`` address.

    Downloads go to a cache (``TF_D2_CACHE``, default ``~/.cache/tf_d2``) and happen once. An existing local
    file wins over a zoo name.

    Raises:
        DownloadError: neither a file nor a known name, or it could not be fetched.
    """
    name = str(name_or_path)
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    name, _ = split_matching(name)
    path = Path(name).expanduser()
    if path.is_file():
        return path
    url = weights_url(name) if isinstance(name_or_path, str) else None
    if url is not None:
        return fetch(url, progress=progress)
    if path.is_dir():
        raise DownloadError(f"{name}: is a directory, not a checkpoint")
    if zoo_name(name):
        raise DownloadError(f"{name}: no weights are known of this configuration; give a checkpoint")
    hint = did_you_mean(without_extension(name), zoo_models())
    raise DownloadError(f"{name}: no such file, and not the name of a published model{hint}")
