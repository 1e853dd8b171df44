"""DeepLab v3 and v3+. Source: projects/DeepLab/deeplab/."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.parts.resnet import ResNetConfig
from tf_d2.config.reading import Fields

_RESNETS, _HEAD, _CROP = "MODEL.RESNETS.", "MODEL.SEM_SEG_HEAD.", "INPUT.CROP."

# Keys and defaults of ``add_deeplab_config``: those that inference reads, and the others.
_RESNET_KEYS: Flat = {
    _RESNETS + "RES4_DILATION": 1,
    _RESNETS + "RES5_MULTI_GRID": (1, 2, 4),
    _RESNETS + "STEM_TYPE": "deeplab",
}
_HEAD_KEYS: Flat = {
    _HEAD + "PROJECT_CHANNELS": (48,),
    _HEAD + "ASPP_CHANNELS": 256,
    _HEAD + "ASPP_DILATIONS": (6, 12, 18),
    _HEAD + "USE_DEPTHWISE_SEPARABLE_CONV": False,
    # detectron2's own, which only DeepLab reads at inference.
    _CROP + "ENABLED": False,
    _CROP + "TYPE": "relative_range",
    _CROP + "SIZE": (0.9, 0.9),
}
_IGNORED_KEYS: Flat = {
    "SOLVER.POLY_LR_POWER": 0.9,
    "SOLVER.POLY_LR_CONSTANT_ENDING": 0.0,
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    _HEAD + "LOSS_TYPE": "hard_pixel_mining",
    _HEAD + "PROJECT_FEATURES": ("res2",),  # nothing reads it
    _HEAD + "ASPP_DROPOUT": 0.1,
}


def _positive(fields: Fields, name: str, count: int) -> tuple[int, ...]:
    values = fields[name]
    if not (
        isinstance(values, tuple) and len(values) == count and all(type(v) is int and v > 0 for v in values)
    ):
        raise fields.fail(name, f"expected {count} numbers above 0")
    return values


@dataclass(frozen=True)
class DeepLabResNetConfig(ResNetConfig):
    """``build_resnet_deeplab_backbone``: a stem of three convolutions, dilated res4 and res5, a multi-grid in res5."""

    NEW_KEYS: ClassVar[Flat] = _RESNET_KEYS

    stem_type: str  # "deeplab": three 3x3 convolutions; "basic": that of a plain ResNet
    res4_dilation: int
    res5_multi_grid: tuple[int, ...]  # the dilation of each block of res5 is RES5_DILATION times this

    def first_stride(self, index: int) -> int:
        dilated = {2: self.res4_dilation, 3: self.res5_dilation}.get(index, 1)
        return 1 if index == 0 or dilated > 1 else 2

    def dilations(self, index: int, blocks: int) -> tuple[int, ...]:
        if index == 3:
            return tuple(self.res5_dilation * grid for grid in self.res5_multi_grid)
        return (self.res4_dilation if index == 2 else 1,) * blocks

    @classmethod
    def from_keys(cls, keys: Keys, name: str) -> DeepLabResNetConfig:
        fields = keys.fields(cls.KEYS)
        dilation = fields.choice("res5_dilation", (1, 2, 4))
        fields.put("res5_dilation", cls.KEYS["res5_dilation"], 1)  # the plain ResNet knows no 4
        fields.put("stem_norm", fields.where("norm"), fields["norm"])
        resnet = ResNetConfig._checked(fields)
        if resnet.depth < 50:
            raise keys.fail(cls.KEYS["depth"], f"{name} needs one of 50, 101, 152")
        own = keys.fields(
            {
                "stem": _RESNETS + "STEM_TYPE",
                "res4": _RESNETS + "RES4_DILATION",
                "grid": _RESNETS + "RES5_MULTI_GRID",
            }
        )
        plain = {field.name: getattr(resnet, field.name) for field in dataclasses.fields(resnet)}
        config = cls(
            **{**plain, "res5_dilation": dilation},
            stem_type=own.choice("stem", ("basic", "deeplab")),
            res4_dilation=own.choice("res4", (1, 2)),
            res5_multi_grid=_positive(own, "grid", 3),
        )
        if config.res4_dilation == 2 and dilation != 4:
            raise own.fail("res4", f"with 2, {cls.KEYS['res5_dilation']} must be 4")
        if config.stem_type == "deeplab" and config.stem_out_channels % 2:
            raise keys.fail(cls.KEYS["stem_out_channels"], "expected an even number")
        return config

    def to_keys(self) -> Flat:
        return {
            **super().to_keys(),
            "MODEL.BACKBONE.NAME": "build_resnet_deeplab_backbone",
            _RESNETS + "STEM_TYPE": self.stem_type,
            _RESNETS + "RES4_DILATION": self.res4_dilation,
            _RESNETS + "RES5_MULTI_GRID": self.res5_multi_grid,
        }


def decoder_keys(section: str) -> dict[str, str]:
    """Field -> key of a decoder whose keys start with ``section``."""
    fields = "in_features convs_dim common_stride norm project_channels aspp_channels aspp_dilations".split()
    return {
        **{field: section + field.upper() for field in fields},
        "use_depthwise_separable_conv": _HEAD + "USE_DEPTHWISE_SEPARABLE_CONV",
    }


@dataclass(frozen=True)
class DeepLabDecoderConfig:
    """ASPP on the coarsest feature and a decoder over finer ones, under the keys of one section."""

    NEW_KEYS: ClassVar[Flat] = _HEAD_KEYS
    IGNORED_KEYS: ClassVar[Flat] = _IGNORED_KEYS

    name: str
    in_features: tuple[str, ...]  # finest first; the last goes through ASPP
    convs_dim: int
    common_stride: int
    norm: str
    project_channels: tuple[int, ...]  # of all features but the last
    aspp_channels: int
    aspp_dilations: tuple[int, ...]
    pool_kernel: tuple[int, int] | None  # cells (height, width) that ASPP averages over; None = all
    crop_size: tuple[int, int] | None  # INPUT.CROP.SIZE in pixels, from which the kernel comes
    use_depthwise_separable_conv: bool

    SECTION: ClassVar[str] = _HEAD
    KEYS: ClassVar[dict[str, str]] = decoder_keys(_HEAD)

    @property
    def plus(self) -> bool:
        """Whether there is a decoder behind ASPP."""
        return self.name != "DeepLabV3Head"

    @classmethod
    def from_keys(cls, keys: Keys, name: str, backbone: Any) -> Any:
        fields = keys.fields(cls.KEYS)
        return cls(name=name, **cls._checked(keys, fields, name, backbone))

    @classmethod
    def _checked(cls, keys: Keys, fields: Fields, name: str, backbone: Any) -> dict[str, Any]:
        plus, strides = name != "DeepLabV3Head", backbone.strides
        names = fields.names("in_features", strides)
        if not plus and len(names) != 1:
            raise fields.fail("in_features", f"{name} needs one")
        names = tuple(sorted(names, key=lambda feature: strides[feature]))
        # v3 does not read PROJECT_CHANNELS; its value is kept, so that a dump says it again.
        projected = (
            _positive(fields, "project_channels", len(names) - 1) if plus else fields["project_channels"]
        )
        stride = fields.choice("common_stride", (1, 2, 4, 8, 16, 32))
        crop = _crop_size(keys)
        divisor = strides[names[-1]] if plus else stride
        if crop and (crop[0] % divisor or crop[1] % divisor):
            raise keys.fail(_CROP + "SIZE", f"expected multiples of the stride {divisor}")
        channels, convs = fields.integer("aspp_channels", 1), fields.integer("convs_dim", 1)
        if not plus and channels != convs:
            raise fields.fail("convs_dim", f"{name} needs that of {cls.KEYS['aspp_channels']}, {channels}")
        return {
            "in_features": names,
            "convs_dim": convs,
            "common_stride": stride,
            "norm": fields.norm("norm"),
            "project_channels": projected,
            "aspp_channels": channels,
            "aspp_dilations": _positive(fields, "aspp_dilations", 3),
            "pool_kernel": (crop[0] // divisor, crop[1] // divisor) if crop else None,
            "crop_size": crop,
            "use_depthwise_separable_conv": fields.flag("use_depthwise_separable_conv"),
        }

    def to_keys(self) -> Flat:
        crop: Flat = {_CROP + "ENABLED": self.crop_size is not None}
        if self.crop_size is not None:
            crop |= {_CROP + "TYPE": "absolute", _CROP + "SIZE": self.crop_size}
        own = {key: getattr(self, field) for field, key in self.KEYS.items()}
        return {self.SECTION + "NAME": self.name, **own, **crop}


@dataclass(frozen=True)
class DeepLabHeadConfig(DeepLabDecoderConfig):
    """``DeepLabV3Head`` (one feature, no decoder) or ``DeepLabV3PlusHead``."""

    num_classes: int

    KEYS: ClassVar[dict[str, str]] = {
        **DeepLabDecoderConfig.KEYS,
        "num_classes": _HEAD + "NUM_CLASSES",
    }

    @classmethod
    def _checked(cls, keys: Keys, fields: Fields, name: str, backbone: Any) -> dict[str, Any]:
        classes = {"num_classes": fields.integer("num_classes", 1)}
        return {**super()._checked(keys, fields, name, backbone), **classes}


def _crop_size(keys: Keys) -> tuple[int, int] | None:
    """Pixels (height, width) that a model was trained on, where pictures were cropped; ASPP averages over as many."""
    if keys[_CROP + "ENABLED"] is not True:
        return None
    if keys[_CROP + "TYPE"] != "absolute":
        raise keys.fail(
            _CROP + "TYPE", "DeepLab needs 'absolute', in pixels, from which it knows what to average over"
        )
    height, width = _positive(keys.fields({"size": _CROP + "SIZE"}), "size", 2)
    return height, width
