"""Plain vision transformers and the pyramid made of their one map. Source: detectron2/modeling/backbone/vit.py."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.errors import ConfigError
from tf_d2.config.lazy import REQUIRED, Node
from tf_d2.config.parts.fpn import TopBlockConfig
from tf_d2.config.parts.tokens import put_activation, put_norm_eps
from tf_d2.config.reading import Fields

_SCALES = (4.0, 2.0, 1.0, 0.5)  # of a feature pyramid's level to the map it is made of


@dataclass(frozen=True)
class ViTConfig:
    """The arguments of detectron2's ``ViT``. Image sizes are pixels of the network input."""

    img_size: int = 1024  # fixes the length of the tables of relative positions, not the size of the input
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-5
    use_abs_pos: bool = True
    use_rel_pos: bool = False
    window_size: int = 0  # tokens per side of a window
    window_block_indexes: tuple[int, ...] = ()  # the other blocks attend over the whole map
    residual_block_indexes: tuple[int, ...] = ()
    pretrain_img_size: int = 224
    pretrain_use_cls_token: bool = True
    out_feature: str = "last_feat"

    @property
    def strides(self) -> dict[str, int]:
        """Pixels per cell of the one feature."""
        return {self.out_feature: self.patch_size}

    @property
    def tokens(self) -> dict[str, Any]:
        """What parity needs to know of the blocks: the window of each (0: the whole map)."""
        windows = [self.window_size if i in self.window_block_indexes else 0 for i in range(self.depth)]
        return {
            "KIND": "ViT",
            "WINDOWS": windows,
            "REL_POS": self.use_rel_pos,
            "FEATURE": self.out_feature,
        }

    @classmethod
    def _checked(cls, fields: Fields) -> ViTConfig:
        vit = cls(
            img_size=fields.integer("img_size", 1),
            patch_size=fields.integer("patch_size", 1),
            embed_dim=fields.integer("embed_dim", 1),
            depth=fields.layers("depth", 1),
            num_heads=fields.integer("num_heads", 1),
            mlp_ratio=fields.number("mlp_ratio"),
            qkv_bias=fields.flag("qkv_bias"),
            norm_eps=fields.number("norm_eps"),
            use_abs_pos=fields.flag("use_abs_pos"),
            use_rel_pos=fields.flag("use_rel_pos"),
            window_size=fields.integer("window_size", 0),
            window_block_indexes=fields.integers("window_block_indexes", 0),
            residual_block_indexes=fields.integers("residual_block_indexes", 0),
            pretrain_img_size=fields.integer("pretrain_img_size", 1),
            pretrain_use_cls_token=fields.flag("pretrain_use_cls_token"),
            out_feature=fields["out_feature"],
        )
        bounds = {
            "num_heads": (vit.embed_dim % vit.num_heads == 0, f"a divisor of embed_dim, {vit.embed_dim}"),
            "img_size": (vit.img_size >= vit.patch_size, f"at least patch_size, {vit.patch_size}"),
            "pretrain_img_size": (vit.pretrain_img_size >= vit.patch_size, f"at least {vit.patch_size}"),
            "mlp_ratio": (int(vit.embed_dim * vit.mlp_ratio) > 0, "a positive number"),
            "norm_eps": (vit.norm_eps >= 0, "0 or more"),
            "out_feature": (isinstance(vit.out_feature, str) and bool(vit.out_feature), "a name"),
        }
        for name, (holds, expected) in bounds.items():
            if not holds:
                raise fields.fail(name, f"expected {expected}")
        return vit

    @classmethod
    def from_lazy(cls, node: Node) -> ViTConfig:
        defaults = {name: getattr(cls, name) for name in cls.__dataclass_fields__ if name != "norm_eps"}
        fields = node.fields(defaults)
        put_norm_eps(node, fields)
        put_activation(node)
        node.only("in_chans", 3)
        node.done("drop_path_rate rel_pos_zero_init use_act_checkpoint")
        return cls._checked(fields)

    def to_keys(self) -> Flat:
        return {"MODEL.BACKBONE.NAME": "ViT"}


@dataclass(frozen=True)
class SimpleFeaturePyramidConfig:
    """The arguments of detectron2's ``SimpleFeaturePyramid``. ``square_pad``: side of the padded input in pixels."""

    net: Any  # a part of kind "backbone"
    in_feature: str
    out_channels: int
    scale_factors: tuple[float, ...]
    norm: str = "LN"
    top_block: TopBlockConfig | None = None
    square_pad: int = 0

    KEYS: ClassVar[dict[str, str]] = {}

    @property
    def levels(self) -> list[int]:
        """Logarithms to base 2 of the strides of what is made directly of the net's map."""
        stride = self.net.strides[self.in_feature]
        return [int(stride / scale).bit_length() - 1 for scale in self.scale_factors]

    @property
    def strides(self) -> dict[str, int]:
        """Pixels per cell of p2, p3, ..., lowest level first."""
        levels = self.levels
        extra = self.top_block.num_levels if self.top_block else 0
        return {f"p{level}": 2**level for level in range(levels[0], levels[-1] + 1 + extra)}

    @classmethod
    def _checked(
        cls, fields: Fields, net: Any, top_block: TopBlockConfig | None
    ) -> SimpleFeaturePyramidConfig:
        if fields["in_feature"] not in net.strides:
            raise fields.fail("in_feature", f"this net makes only {', '.join(net.strides)}")
        scales = fields.numbers("scale_factors")
        if any(scale not in _SCALES for scale in scales):
            raise fields.fail("scale_factors", f"expected some of {', '.join(map(str, _SCALES))}")
        if 4.0 in scales and fields["norm"] == "":
            raise fields.fail("norm", "the level of scale 4 needs one (detectron2 cannot run it either)")
        pyramid = cls(
            net=net,
            in_feature=fields["in_feature"],
            out_channels=fields.integer("out_channels", 1),
            scale_factors=scales,
            norm=fields.norm("norm"),
            top_block=top_block,
            square_pad=fields.integer("square_pad", 0),
        )
        strides = [int(net.strides[pyramid.in_feature] / scale) for scale in scales]
        if any(b != 2 * a for a, b in pairwise(strides)) or strides[0] & (strides[0] - 1) or strides[0] < 1:
            raise fields.fail("scale_factors", f"strides must be powers of 2 in a row, they are {strides}")
        if top_block is not None and top_block.in_feature not in (*net.strides, *pyramid.strides):
            known = ", ".join((*net.strides, *pyramid.strides))
            raise fields.fail(
                "scale_factors", f"{top_block.name} needs {top_block.in_feature}, there is {known}"
            )
        return pyramid

    @classmethod
    def from_lazy(cls, node: Node) -> SimpleFeaturePyramidConfig:
        net = node.part("backbone", "net")
        if getattr(net, "out_channels", None) is not None:
            raise ConfigError(f"{node.name}.net: a pyramid over a pyramid is not supported")
        top = node.take("top_block", None)
        top_block = TopBlockConfig.from_lazy(top) if isinstance(top, Node) else None
        names = {"in_feature": REQUIRED, "out_channels": REQUIRED, "scale_factors": REQUIRED, "square_pad": 0}
        fields = node.fields(names)
        node.put_norm(fields, "norm", "norm", "LN")
        node.done()
        return cls._checked(fields, net, top_block)

    def to_keys(self) -> Flat:
        return {"MODEL.BACKBONE.NAME": "SimpleFeaturePyramid", "MODEL.FPN.IN_FEATURES": (self.in_feature,)}
