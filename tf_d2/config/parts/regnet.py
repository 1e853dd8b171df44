"""RegNet backbones, and the widths and depths that their few numbers stand for.

Source: detectron2/modeling/backbone/regnet.py (``RegNet``, ``generate_regnet_parameters`` and
``adjust_block_compatibility``). Only LazyConfig can say it in detectron2; the yacs keys are names of this project.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import log
from typing import ClassVar, NamedTuple

from tf_d2.config.defaults import Flat
from tf_d2.config.errors import ConfigError
from tf_d2.config.keys import Keys
from tf_d2.config.lazy import REQUIRED, Node
from tf_d2.config.reading import NORMS, Fields

_WIDTH_MULTIPLE = 8


class RegNetStage(NamedTuple):
    """One stage: ``name`` "s1", "s2", ...; ``blocks`` blocks of ``width`` channels, their 3x3 convolution in
    ``groups`` groups; ``stride`` in pixels of its output.
    """

    name: str
    blocks: int
    width: int
    groups: int
    stride: int


@dataclass(frozen=True)
class RegNetConfig:
    """The arguments of detectron2's ``RegNet``.

    Stem ``SimpleStem``, blocks ``ResBottleneckBlock`` as wide inside as outside. `stages` computes the stages.
    ``out_features`` are the stages the backbone returns ("stem", "s1", ...).
    """

    depth: int  # blocks in all stages together
    w_a: float  # slope and
    w_0: int  # start of the linear law of widths,
    w_m: float  # ratio of the widths of consecutive stages
    group_width: int  # channels per group of the 3x3 convolutions
    stem_width: int
    se_ratio: float  # hidden channels of squeeze and excitation per input channel of the block; 0 = none
    norm: str
    out_features: tuple[str, ...]

    KEYS: ClassVar[dict[str, str]] = {
        "depth": "MODEL.REGNETS.DEPTH",
        "w_a": "MODEL.REGNETS.W_A",
        "w_0": "MODEL.REGNETS.W_0",
        "w_m": "MODEL.REGNETS.W_M",
        "group_width": "MODEL.REGNETS.GROUP_WIDTH",
        "stem_width": "MODEL.REGNETS.STEM_WIDTH",
        "se_ratio": "MODEL.REGNETS.SE_RATIO",
        "norm": "MODEL.REGNETS.NORM",
        "out_features": "MODEL.REGNETS.OUT_FEATURES",
    }

    @property
    def stages(self) -> tuple[RegNetStage, ...]:
        """All stages of the network, in order; the stem before them has stride 2 and every stage doubles it."""
        blocks_of_width = Counter(self._block_width(index) for index in range(self.depth))
        stages = []
        for index, (width, blocks) in enumerate(sorted(blocks_of_width.items())):
            group_width = min(self.group_width, width)
            # A stage is as wide as a whole number of groups; a half rounds to even.
            groups = max(1, round(width / group_width))
            stages.append(RegNetStage(f"s{index + 1}", blocks, groups * group_width, groups, 4 * 2**index))
        return tuple(stages)

    def _block_width(self, index: int) -> int:
        """A linear law, moved to the nearest power of ``w_m`` (times ``w_0``), then to a multiple of 8."""
        linear = index * self.w_a + self.w_0
        power = round(log(linear / self.w_0) / log(self.w_m))
        return round(self.w_0 * self.w_m**power / _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE

    @property
    def strides(self) -> dict[str, int]:
        """Pixels per cell of each feature the backbone returns, lowest level first."""
        strides = {"stem": 2, **{stage.name: stage.stride for stage in self.stages}}
        return {name: stride for name, stride in strides.items() if name in self.out_features}

    @classmethod
    def _checked(cls, fields: Fields) -> RegNetConfig:
        default = fields["out_features"] is None  # the constructor's: the last stage
        regnet = cls(
            depth=fields.layers("depth", 1),
            w_a=fields.number("w_a"),
            w_0=fields.integer("w_0", 1),
            w_m=fields.number("w_m"),
            group_width=fields.integer("group_width", 1),
            stem_width=fields.integer("stem_width", 1),
            se_ratio=fields.number("se_ratio"),
            norm=fields.norm("norm", NORMS[1:]),
            out_features=() if default else fields.names("out_features"),
        )
        bounds = {
            "w_a": (0 <= regnet.w_a < 2**31, "expected 0 or more"),
            "w_0": (regnet.w_0 % _WIDTH_MULTIPLE == 0, f"expected a multiple of {_WIDTH_MULTIPLE}"),
            "w_m": (regnet.w_m > 1, "expected a number above 1"),
            "se_ratio": (0 <= regnet.se_ratio < 2**31, "expected 0 (none) or more"),
        }
        for name, (holds, expected) in bounds.items():
            if not holds:
                raise fields.fail(name, expected)
        names = [stage.name for stage in regnet.stages]
        if default:
            fields.put("out_features", fields.where("out_features"), (names[-1],))
        out_features = fields.names("out_features", ("stem", *names))
        return replace(regnet, out_features=out_features)

    @classmethod
    def from_keys(cls, keys: Keys, name: str) -> RegNetConfig:
        return cls._checked(keys.fields(cls.KEYS))

    @classmethod
    def from_lazy(cls, node: Node) -> RegNetConfig:
        for key, name in (("stem_class", "SimpleStem"), ("block_class", "ResBottleneckBlock")):
            if not (isinstance(value := node.take(key), str) and value.endswith(f".regnet.{name}")):
                raise ConfigError(f"{node.name}.{key} = {value!r} is not supported: expected {name}")
        node.only("stride", 2)
        node.only("bottleneck_ratio", 1.0)
        node.only("activation_class", None)
        arguments = ("stem_width", "depth", "w_a", "w_0", "w_m", "group_width")
        fields = node.fields({**dict.fromkeys(arguments, REQUIRED), "se_ratio": 0.0, "out_features": None})
        node.put_norm(fields, "norm", "norm", "BN")
        node.done("freeze_at")
        return cls._checked(node.overridden(fields, cls.KEYS))

    def to_keys(self) -> Flat:
        values = {key: getattr(self, field) for field, key in self.KEYS.items()}
        return {"MODEL.BACKBONE.NAME": "build_regnet_backbone", **values}
