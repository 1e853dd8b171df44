"""Units of the backbones: from the network input to the features that heads read (`steps/backbone/<feature>`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from parity.core.units.table import Unit, arrays
from parity.core.units.tokens import token_units
from weights.errors import UsageError


def feature_name(feature: str) -> str:
    """The array that holds a backbone output, `p2` -> `steps/backbone/p2`."""
    return f"steps/backbone/{feature}"


@dataclass(frozen=True)
class _Residual:
    """A network of a stem and numbered residual stages: section of its keys, prefix of the stages' names, number
    of the first one (which has stride 4), and how many levels the FPN adds above the last (None: no FPN)."""

    section: str
    prefix: str
    first: int
    extra: int | None


def backbone_units(model: Mapping[str, Any]) -> list[Unit]:
    """The backbone's units.

    model: the MODEL node. Raises ValueError for a backbone without units.
    """
    name = model["BACKBONE"]["NAME"]
    if name == _TRIDENT and model.get("TRIDENT", {}).get("TEST_BRANCH_IDX", 1) == -1:
        raise UsageError(
            "MODEL.TRIDENT.TEST_BRANCH_IDX -1 (all branches at once) has no stage table: compare one branch, "
            "--opts MODEL.TRIDENT.TEST_BRANCH_IDX 1"
        )
    if name not in BACKBONES:
        raise UsageError(
            f"MODEL.BACKBONE.NAME {name!r} has no stage table; supported: {', '.join(BACKBONES)}"
        )
    return BACKBONES[name](model)


def residual_units(
    section: str, prefix: str, first: int, extra_levels: int | None = None
) -> Callable[[Mapping[str, Any]], list[Unit]]:
    """The units of a network of a stem and numbered stages, as a function of the MODEL node.

    section: of the keys, with OUT_FEATURES. prefix: of the stages' names. first: number of the first stage, which has
    stride 4. extra_levels: how many levels the FPN adds above the last; None: no FPN.
    """
    return partial(_residual_units, _Residual(section, prefix, first, extra_levels))


def _residual_units(kind: _Residual, model: Mapping[str, Any]) -> list[Unit]:
    levels = _pyramid_levels(kind, model)
    module = "backbone.bottom_up" if levels else "backbone"
    stem = f"steps/{module}.stem"
    built = [Unit("stem", "module", ("steps/input",), (stem,), "continuous", (f"{module}.stem",))]
    source, pending = stem, []
    wanted = {int(name.removeprefix(kind.prefix)) for name in model[kind.section]["OUT_FEATURES"]}
    for number in range(kind.first, max(wanted) + 1):
        pending.append(f"{kind.prefix}{number}")
        if number in wanted:
            target = f"steps/{module}/{pending[-1]}"
            inner = f"{module}.{pending[-1]}"
            stages = tuple(pending)
            built.append(Unit(pending[-1], "res", (source,), (target,), "continuous", stages, module=inner))
            source, pending = target, []
    if levels:
        inputs = tuple(f"steps/{module}/{feature}" for feature in model["FPN"]["IN_FEATURES"])
        outputs = arrays(*map(feature_name, levels))
        built.append(Unit("fpn", "fpn", inputs, outputs, "continuous", levels))
    return built


def _pyramid_levels(kind: _Residual, model: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the FPN's outputs, finest first, or () for a backbone without FPN."""
    if kind.extra is None:
        return ()
    features = model["FPN"]["IN_FEATURES"]
    numbers = [int(feature.removeprefix(kind.prefix)) + 2 - kind.first for feature in features]
    numbers += [numbers[-1] + 1 + k for k in range(kind.extra)]
    return tuple(f"p{number}" for number in numbers)


def _inner_units(child: str, model: Mapping[str, Any]) -> list[Unit]:
    """A network of any kind under the name `child`, and the pyramid over it.

    The network is one call of it where nothing is known of its inside; the levels that `SimpleFeaturePyramid` makes
    of its one map are units of their own (MODEL.BACKBONE.SCALED).
    """
    node, network = model["BACKBONE"], f"backbone.{child}"
    read = tuple(f"steps/{network}/{name}" for name in model["FPN"]["IN_FEATURES"])
    if tokens := node.get("TOKENS"):
        built = token_units(tokens["KIND"], network, tokens, f"steps/{network}")
    else:
        inner = arrays(*(f"steps/{network}/{name}" for name in node["INNER_FEATURES"]))
        built = [Unit(child, "module", ("steps/input",), inner, "continuous", (network,))]
    scaled = tuple(node.get("SCALED", ()))
    for index, level in enumerate(scaled):
        module = f"backbone.simfp_{level.removeprefix('p')}"
        made = (feature_name(level),)
        built.append(Unit(level, "simfp", read, made, "continuous", (index,), module=module))
    levels = tuple(level for level in node["OUT_FEATURES"] if level not in scaled)
    outputs = arrays(*map(feature_name, levels))
    return [*built, *([Unit("fpn", "fpn", read, outputs, "continuous", levels)] if levels else [])]


def _whole_units(model: Mapping[str, Any]) -> list[Unit]:
    """A network of any kind without a pyramid; in one call where nothing is known of its inside."""
    if tokens := model["BACKBONE"].get("TOKENS"):
        return token_units(tokens["KIND"], "backbone", tokens, "steps/backbone")
    features = arrays(*map(feature_name, model["BACKBONE"]["OUT_FEATURES"]))
    return [Unit("backbone", "module", ("steps/input",), features, "continuous", ("backbone",))]


_TRIDENT = "build_trident_resnet_backbone"
BACKBONES: dict[str, Callable[[Mapping[str, Any]], list[Unit]]] = {
    "build_resnet_backbone": residual_units("RESNETS", "res", 2),
    _TRIDENT: residual_units("RESNETS", "res", 2),
    "build_resnet_deeplab_backbone": residual_units("RESNETS", "res", 2),
    "build_resnet_fpn_backbone": residual_units("RESNETS", "res", 2, 1),
    "build_retinanet_resnet_fpn_backbone": residual_units("RESNETS", "res", 2, 2),
    "build_regnet_backbone": residual_units("REGNETS", "s", 1),
    "build_regnet_fpn_backbone": residual_units("REGNETS", "s", 1, 1),
    # names of classes: networks that only a LazyConfig can say
    "FPN": partial(_inner_units, "bottom_up"),
    "SimpleFeaturePyramid": partial(_inner_units, "net"),
    "ViT": _whole_units,
    "MViT": _whole_units,
    "SwinTransformer": _whole_units,
}
