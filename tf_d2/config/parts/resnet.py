"""ResNet and ResNeXt backbones. Source: detectron2/modeling/backbone/resnet.py ``build_resnet_backbone``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.lazy import REQUIRED, Node
from tf_d2.config.parts.conventions import conventions_of
from tf_d2.config.reading import Fields

STRIDES = {"stem": 4, "res2": 4, "res3": 8, "res4": 16, "res5": 32}
_STEM_WIDTH = 64  # groups times width per group in what make_default_stages makes


@dataclass(frozen=True)
class ResNetConfig:
    """``MODEL.RESNETS.*``. ``out_features`` are the stages the backbone returns ("stem", "res2", ...)."""

    depth: int
    out_features: tuple[str, ...]
    norm: str  # of the stages
    stem_norm: str  # only LazyConfig can name another one than that of the stages
    num_groups: int
    width_per_group: int
    stride_in_1x1: bool
    res2_out_channels: int
    stem_out_channels: int
    res5_dilation: int
    deform_on_per_stage: tuple[bool, bool, bool, bool]
    deform_modulated: bool
    deform_num_groups: int

    KEYS: ClassVar[dict[str, str]] = {
        "depth": "MODEL.RESNETS.DEPTH",
        "out_features": "MODEL.RESNETS.OUT_FEATURES",
        "norm": "MODEL.RESNETS.NORM",
        "num_groups": "MODEL.RESNETS.NUM_GROUPS",
        "width_per_group": "MODEL.RESNETS.WIDTH_PER_GROUP",
        "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
        "res2_out_channels": "MODEL.RESNETS.RES2_OUT_CHANNELS",
        "stem_out_channels": "MODEL.RESNETS.STEM_OUT_CHANNELS",
        "res5_dilation": "MODEL.RESNETS.RES5_DILATION",
        "deform_on_per_stage": "MODEL.RESNETS.DEFORM_ON_PER_STAGE",
        "deform_modulated": "MODEL.RESNETS.DEFORM_MODULATED",
        "deform_num_groups": "MODEL.RESNETS.DEFORM_NUM_GROUPS",
    }

    @property
    def strides(self) -> dict[str, int]:
        """Pixels per cell of each feature the backbone returns, lowest level first."""
        strides, stride = {"stem": STRIDES["stem"]}, STRIDES["stem"]
        for index, stage in enumerate(("res2", "res3", "res4", "res5")):
            stride *= self.first_stride(index)
            strides[stage] = stride
        return {name: stride for name, stride in strides.items() if name in self.out_features}

    def first_stride(self, index: int) -> int:
        """Stride of the first block of stage ``index`` (0 = res2 .. 3 = res5); the others have 1."""
        return 1 if index == 0 or (index == 3 and self.res5_dilation > 1) else 2

    def dilations(self, index: int, blocks: int) -> tuple[int, ...]:
        """Dilation of the 3x3 convolution in each of the ``blocks`` of stage ``index``."""
        return (self.res5_dilation if index == 3 else 1,) * blocks

    @classmethod
    def _checked(cls, fields: Fields) -> ResNetConfig:
        deform = fields["deform_on_per_stage"]
        if not (isinstance(deform, tuple) and len(deform) == 4 and all(type(d) is bool for d in deform)):
            raise fields.fail("deform_on_per_stage", "expected four booleans, for res2 to res5")
        resnet = cls(
            depth=fields.choice("depth", (18, 34, 50, 101, 152)),
            out_features=fields.names("out_features", tuple(STRIDES)),
            norm=fields.norm("norm"),
            stem_norm=fields.norm("stem_norm"),
            num_groups=fields.integer("num_groups", 1),
            width_per_group=fields.integer("width_per_group", 1),
            stride_in_1x1=fields.flag("stride_in_1x1"),
            res2_out_channels=fields.integer("res2_out_channels", 1),
            stem_out_channels=fields.integer("stem_out_channels", 1),
            res5_dilation=fields.choice("res5_dilation", (1, 2)),
            deform_on_per_stage=deform,
            deform_modulated=fields.flag("deform_modulated"),
            deform_num_groups=fields.integer("deform_num_groups", 1),
        )
        if resnet.depth in (18, 34):
            resnet._check_basic_blocks(fields)
        return resnet

    def _check_basic_blocks(self, fields: Fields) -> None:
        """ResNet-18 and -34 have no room for these options."""
        fixed = {
            "res2_out_channels": 64,
            "res5_dilation": 1,
            "num_groups": 1,
            "deform_on_per_stage": (False,) * 4,
        }
        for name, needed in fixed.items():
            if getattr(self, name) != needed:
                raise fields.fail(name, f"with DEPTH {self.depth} it must be {needed}")

    @classmethod
    def from_keys(cls, keys: Keys, name: str) -> ResNetConfig:
        fields = keys.fields(cls.KEYS)
        if fields["norm"] == "FrozenBN" and conventions_of(keys).frozen_norm_without_epsilon:
            fields.put("norm", fields.where("norm"), "AffineChannel")
        fields.put("stem_norm", fields.where("norm"), fields["norm"])
        return cls._checked(fields)

    @classmethod
    def from_lazy(cls, node: Node) -> ResNetConfig:
        """``ResNet(stem=BasicStem, stages=ResNet.make_default_stages(...))``."""
        stem, stages = node.node("stem"), node.node("stages")
        stem.check("BasicStem")
        stages.check("ResNet.make_default_stages")
        fields = stages.fields({"depth": REQUIRED, "num_groups": 1, "stride_in_1x1": False})
        groups = fields["num_groups"]
        if type(groups) is not int or groups < 1 or _STEM_WIDTH % groups:
            raise fields.fail("num_groups", f"expected a divisor of {_STEM_WIDTH}")
        stages.put_norm(fields, "norm", "norm", "BN")
        stem.put_norm(fields, "stem_norm", "norm", "BN")
        stem.put(fields, "stem_out_channels", "out_channels", 64)
        node.put(fields, "out_features", "out_features", ["res5"])
        computed = {
            "width_per_group": _STEM_WIDTH // groups,
            "res2_out_channels": 64 if fields["depth"] in (18, 34) else 256,
            "res5_dilation": 1,
            "deform_on_per_stage": (False,) * 4,
            "deform_modulated": False,
            "deform_num_groups": 1,
        }
        for field, value in computed.items():
            fields.put(field, f"{stages.name}.{field}", value)
        stem.done("in_channels")
        stages.done()
        node.done("freeze_at")
        of_stages = fields["norm"]
        node.overridden(fields, cls.KEYS)
        if fields["norm"] != of_stages:  # MODEL.RESNETS.NORM is that of all
            fields.put("stem_norm", fields.where("norm"), fields["norm"])
        return cls._checked(fields)

    def to_keys(self) -> Flat:
        values = {key: getattr(self, field) for field, key in self.KEYS.items()}
        return {"MODEL.BACKBONE.NAME": "build_resnet_backbone", **values}
