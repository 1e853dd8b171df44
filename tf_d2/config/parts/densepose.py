"""DensePose's heads. Source: projects/DensePose/densepose/config.py, modeling/."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.parts.poolers import PoolerConfig
from tf_d2.config.parts.roi_heads import StandardROIHeadsConfig
from tf_d2.config.parts.sem_seg import SemSegHeadConfig
from tf_d2.config.reading import Fields, refusal

_HEAD = "MODEL.ROI_DENSEPOSE_HEAD."
_CSE = _HEAD + "CSE."
_EMBEDDERS, _MESHES = _CSE + "EMBEDDERS", "DATASETS.CLASS_TO_MESH_NAME_MAPPING"

# Keys and defaults of ``add_densepose_config``: those that inference reads, and the others.
_NEW_KEYS: Flat = {
    "MODEL.DENSEPOSE_ON": True,  # read by DensePoseROIHeads alone
    _HEAD + "NAME": "",
    _HEAD + "NUM_STACKED_CONVS": 8,
    _HEAD + "NUM_PATCHES": 24,
    _HEAD + "DECONV_KERNEL": 4,
    _HEAD + "CONV_HEAD_DIM": 512,
    _HEAD + "CONV_HEAD_KERNEL": 3,
    _HEAD + "UP_SCALE": 2,
    _HEAD + "POOLER_TYPE": "ROIAlignV2",
    _HEAD + "POOLER_RESOLUTION": 28,
    _HEAD + "POOLER_SAMPLING_RATIO": 2,
    _HEAD + "NUM_COARSE_SEGM_CHANNELS": 2,
    _HEAD + "DECODER_ON": True,
    _HEAD + "DECODER_NUM_CLASSES": 256,
    _HEAD + "DECODER_CONV_DIMS": 256,
    _HEAD + "DECODER_NORM": "",
    _HEAD + "DECODER_COMMON_STRIDE": 4,
    _HEAD + "DEEPLAB.NORM": "GN",
    _HEAD + "DEEPLAB.NONLOCAL_ON": 0,
    _HEAD + "PREDICTOR_NAME": "DensePoseChartWithConfidencePredictor",
    _HEAD + "UV_CONFIDENCE.ENABLED": False,
    _HEAD + "UV_CONFIDENCE.TYPE": "iid_iso",
    _HEAD + "SEGM_CONFIDENCE.ENABLED": False,
    _HEAD + "SEGM_CONFIDENCE.EPSILON": 0.01,
    _CSE + "EMBED_SIZE": 16,
    _EMBEDDERS: {},
    _MESHES: {},
}
_IGNORED_KEYS: Flat = {
    _HEAD + "HEATMAP_SIZE": 112,
    _HEAD + "FG_IOU_THRESHOLD": 0.7,
    _HEAD + "INDEX_WEIGHTS": 5.0,
    _HEAD + "PART_WEIGHTS": 1.0,
    _HEAD + "POINT_REGRESSION_WEIGHTS": 0.01,
    _HEAD + "COARSE_SEGM_TRAINED_BY_MASKS": False,
    _HEAD + "LOSS_NAME": "DensePoseChartWithConfidenceLoss",
    _HEAD + "UV_CONFIDENCE.EPSILON": 0.01,  # a bound that the loss applies
    _CSE + "EMBEDDING_DIST_GAUSS_SIGMA": 0.01,
    _CSE + "GEODESIC_DIST_GAUSS_SIGMA": 0.01,
    _CSE + "EMBED_LOSS_WEIGHT": 0.6,
    _CSE + "EMBED_LOSS_NAME": "EmbeddingLoss",
    _CSE + "FEATURES_LR_FACTOR": 1.0,
    _CSE + "EMBEDDING_LR_FACTOR": 1.0,
    _CSE + "SHAPE_TO_SHAPE_CYCLE_LOSS": {},
    _CSE + "PIX_TO_SHAPE_CYCLE_LOSS": {},
    "INPUT.ROTATION_ANGLES": (0,),
    "TEST.AUG.ROTATION_ANGLES": (),
    # Read by build_hrfpn_backbone alone, which is not supported.
    "MODEL.HRNET": {},
    "BOOTSTRAP_DATASETS": (),
    "BOOTSTRAP_MODEL": {},
    "DATASETS.CATEGORY_MAPS": {},
    "DATASETS.WHITELISTED_CATEGORIES": {},
    "DENSEPOSE_EVALUATION": {},
}

_PREDICTORS = {  # name: (embeddings instead of charts, with confidences)
    "DensePoseChartPredictor": (False, False),
    "DensePoseChartWithConfidencePredictor": (False, True),
    "DensePoseEmbeddingPredictor": (True, False),
    "DensePoseEmbeddingWithConfidencePredictor": (True, True),
}
_UV_CONFIDENCES = {"iid_iso": ("sigma_2",), "indep_aniso": ("sigma_2", "kappa_u", "kappa_v")}


@dataclass(frozen=True)
class DensePosePredictorConfig:
    """The last layers: what is predicted for each cell of a box."""

    embed_size: int | None  # None: charts; a number: embeddings of that size (CSE)
    num_coarse_segm_channels: int
    num_patches: int
    deconv_kernel: int
    up_scale: int
    uv_confidence: str | None  # "iid_iso", "indep_aniso"
    segm_confidence_epsilon: float | None

    KEYS: ClassVar[dict[str, str]] = {
        "num_coarse_segm_channels": _HEAD + "NUM_COARSE_SEGM_CHANNELS",
        "num_patches": _HEAD + "NUM_PATCHES",
        "deconv_kernel": _HEAD + "DECONV_KERNEL",
        "up_scale": _HEAD + "UP_SCALE",
    }

    @classmethod
    def from_keys(cls, keys: Keys) -> DensePosePredictorConfig:
        fields = keys.fields(
            {
                **cls.KEYS,
                "name": _HEAD + "PREDICTOR_NAME",
                "embed_size": _CSE + "EMBED_SIZE",
                "uv": _HEAD + "UV_CONFIDENCE.ENABLED",
                "type": _HEAD + "UV_CONFIDENCE.TYPE",
                "segm": _HEAD + "SEGM_CONFIDENCE.ENABLED",
                "epsilon": _HEAD + "SEGM_CONFIDENCE.EPSILON",
            }
        )
        embeds, sure = _PREDICTORS[fields.choice("name", tuple(_PREDICTORS))]
        uv, segm = fields.flag("uv") and sure and not embeds, fields.flag("segm") and sure
        return cls(
            embed_size=fields.integer("embed_size", 1) if embeds else None,
            num_coarse_segm_channels=fields.integer("num_coarse_segm_channels", 1),
            num_patches=fields.integer("num_patches", 1),
            deconv_kernel=fields.integer("deconv_kernel", 2),
            up_scale=fields.integer("up_scale", 1),
            uv_confidence=fields.choice("type", tuple(_UV_CONFIDENCES)) if uv else None,
            segm_confidence_epsilon=fields.number("epsilon") if segm else None,
        )

    def to_keys(self) -> Flat:
        embeds, uv, epsilon = self.embed_size is not None, self.uv_confidence, self.segm_confidence_epsilon
        sure = uv is not None or epsilon is not None or not embeds
        return {
            _HEAD + "PREDICTOR_NAME": next(n for n, kind in _PREDICTORS.items() if kind == (embeds, sure)),
            _HEAD + "UV_CONFIDENCE.ENABLED": uv is not None,
            _HEAD + "UV_CONFIDENCE.TYPE": uv or "iid_iso",
            _HEAD + "SEGM_CONFIDENCE.ENABLED": epsilon is not None,
            _HEAD + "SEGM_CONFIDENCE.EPSILON": 0.01 if epsilon is None else epsilon,
            **({_CSE + "EMBED_SIZE": self.embed_size} if embeds else {}),
            **{key: getattr(self, field) for field, key in self.KEYS.items()},
        }

    @property
    def fields(self) -> dict[str, tuple[str, int]]:
        """Field of the answer -> the layer that predicts it, and its channels."""
        coarse, parts = self.num_coarse_segm_channels, self.num_patches + 1
        if self.embed_size is not None:
            found = {
                "embedding": ("embed_lowres", self.embed_size),
                "coarse_segm": ("coarse_segm_lowres", coarse),
            }
        else:
            found = {
                "coarse_segm": ("ann_index_lowres", coarse),
                "fine_segm": ("index_uv_lowres", parts),
                "u": ("u_lowres", parts),
                "v": ("v_lowres", parts),
            }
            for field in _UV_CONFIDENCES[self.uv_confidence] if self.uv_confidence else ():
                found[field] = (f"{field}_lowres", parts)
        if self.segm_confidence_epsilon is not None:
            for field in [f for f in ("fine_segm", "coarse_segm") if f in found]:
                found[f"{field}_confidence"] = (f"{field}_confidence_lowres", 1)
        return found


@dataclass(frozen=True)
class EmbedderConfig:
    """A mesh and the sizes of the tensors that embed its vertices (CSE)."""

    mesh: str
    num_vertices: int
    feature_dim: int | None  # None: the vertices are embedded directly

    @classmethod
    def from_value(cls, mesh: str, value: Any) -> EmbedderConfig:
        """One entry of MODEL.ROI_DENSEPOSE_HEAD.CSE.EMBEDDERS."""
        where = f"{_EMBEDDERS}.{mesh}"
        if not isinstance(value, Mapping):
            raise refusal(where, value, "expected a section with TYPE and NUM_VERTICES")
        fields = Fields()
        for field in ("type", "num_vertices", "feature_dim"):
            fields.put(field, f"{where}.{field.upper()}", value.get(field.upper()))
        direct = fields.choice("type", ("vertex_feature", "vertex_direct")) == "vertex_direct"
        feature_dim = None if direct else fields.integer("feature_dim", 1)
        return cls(mesh, fields.integer("num_vertices", 1), feature_dim)

    def shapes(self, embed_size: int) -> dict[str, tuple[int, int]]:
        """The tensors of a checkpoint, by key of the state dict."""
        prefix = f"roi_heads.embedder.embedder_{self.mesh}."
        if self.feature_dim is None:
            return {prefix + "embeddings": (self.num_vertices, embed_size)}
        return {
            prefix + "features": (self.num_vertices, self.feature_dim),
            prefix + "embeddings": (self.feature_dim, embed_size),
        }


@dataclass(frozen=True)
class DensePoseHeadConfig:
    """MODEL.ROI_DENSEPOSE_HEAD."""

    name: str  # DensePoseV1ConvXHead, DensePoseDeepLabHead
    pooler: PoolerConfig
    num_stacked_convs: int
    conv_head_dim: int
    conv_head_kernel: int
    deeplab_norm: str
    nonlocal_on: bool
    decoder: SemSegHeadConfig | None  # sums the levels into one map before pooling
    predictor: DensePosePredictorConfig
    embedders: tuple[EmbedderConfig, ...]
    class_to_mesh: tuple[tuple[int, str], ...]

    KEYS: ClassVar[dict[str, str]] = {
        "num_stacked_convs": _HEAD + "NUM_STACKED_CONVS",
        "conv_head_dim": _HEAD + "CONV_HEAD_DIM",
        "conv_head_kernel": _HEAD + "CONV_HEAD_KERNEL",
        "deeplab_norm": _HEAD + "DEEPLAB.NORM",
    }

    @property
    def output_side(self) -> int:
        """Side of the maps that come out."""
        predictor, side = self.predictor, self.pooler.resolution
        if self.conv_head_kernel % 2 == 0:
            side += self.num_stacked_convs
        kernel = predictor.deconv_kernel
        return ((side - 1) * 2 - 2 * int(kernel / 2 - 1) + kernel) * predictor.up_scale

    @classmethod
    def from_keys(cls, keys: Keys, names: tuple[str, ...], backbone: Any) -> DensePoseHeadConfig:
        """``names``: the levels that the ROI heads read."""
        fields = keys.fields(
            {
                **cls.KEYS,
                "name": _HEAD + "NAME",
                "nonlocal": _HEAD + "DEEPLAB.NONLOCAL_ON",
                "on": _HEAD + "DECODER_ON",
            }
        )
        if fields["nonlocal"] not in (0, 1):
            raise fields.fail("nonlocal", "expected 0 or 1")
        pooler = PoolerConfig.from_keys(keys, "ROI_DENSEPOSE_HEAD")
        decoder = None
        if fields.flag("on"):
            decoder = _decoder(keys, names, backbone)
        return cls(
            name=fields.choice("name", ("DensePoseV1ConvXHead", "DensePoseDeepLabHead")),
            pooler=pooler,
            num_stacked_convs=fields.layers("num_stacked_convs", 1),
            conv_head_dim=fields.integer("conv_head_dim", 1),
            conv_head_kernel=fields.integer("conv_head_kernel", 1),
            deeplab_norm=fields["deeplab_norm"],
            nonlocal_on=bool(fields["nonlocal"]),
            decoder=decoder,
            predictor=DensePosePredictorConfig.from_keys(keys),
            embedders=tuple(EmbedderConfig.from_value(*item) for item in keys[_EMBEDDERS].items()),
            class_to_mesh=_class_to_mesh(keys),
        )

    def to_keys(self) -> Flat:
        flat = {
            _HEAD + "NAME": self.name,
            _HEAD + "DEEPLAB.NONLOCAL_ON": int(self.nonlocal_on),
            _HEAD + "DECODER_ON": self.decoder is not None,
            _EMBEDDERS: {one.mesh: _embedder_value(one) for one in self.embedders},
            _MESHES: {str(label): mesh for label, mesh in self.class_to_mesh},
            **{key: getattr(self, field) for field, key in self.KEYS.items()},
            **self.pooler.to_keys("ROI_DENSEPOSE_HEAD"),
            **self.predictor.to_keys(),
        }
        if self.decoder is not None:
            flat |= {key: getattr(self.decoder, field) for field, key in _DECODER.items()}
        return flat


_DECODER = {
    "num_classes": _HEAD + "DECODER_NUM_CLASSES",
    "convs_dim": _HEAD + "DECODER_CONV_DIMS",
    "norm": _HEAD + "DECODER_NORM",
    "common_stride": _HEAD + "DECODER_COMMON_STRIDE",
}


def _decoder(keys: Keys, names: tuple[str, ...], backbone: Any) -> SemSegHeadConfig:
    """A semantic head without its upsampling, whose "classes" are features as wide as the levels."""
    fields = keys.fields(_DECODER)
    strides = [backbone.strides[name] for name in names]
    width = getattr(backbone, "out_channels", fields["num_classes"])
    if fields["num_classes"] != width:
        raise fields.fail("num_classes", f"the head after it expects that of the levels, {width}")
    if fields["common_stride"] != strides[0]:
        expected = f"what it makes is pooled at the stride of {names[0]}, {strides[0]}"
        raise fields.fail("common_stride", expected)
    return SemSegHeadConfig(
        in_features=names,
        num_classes=width,
        convs_dim=fields.integer("convs_dim", 1),
        common_stride=strides[0],
        norm=fields.norm("norm"),
    )


def _class_to_mesh(keys: Keys) -> tuple[tuple[int, str], ...]:
    try:
        pairs = [(int(label), str(mesh)) for label, mesh in keys[_MESHES].items()]
    except (TypeError, ValueError):
        raise keys.fail(_MESHES, "expected numbers of classes, each with the name of a mesh") from None
    return tuple(sorted(pairs))


def _embedder_value(one: EmbedderConfig) -> dict[str, Any]:
    kind = "vertex_direct" if one.feature_dim is None else "vertex_feature"
    value = {"TYPE": kind, "NUM_VERTICES": one.num_vertices, "INIT_FILE": "", "IS_TRAINABLE": True}
    return (
        value
        if one.feature_dim is None
        else {**value, "FEATURE_DIM": one.feature_dim, "FEATURES_TRAINABLE": False}
    )


@dataclass(frozen=True)
class DensePoseROIHeadsConfig(StandardROIHeadsConfig):
    """``DensePoseROIHeads``: standard heads, and a DensePose head on the detections unless it is switched off."""

    name: ClassVar[str] = "DensePoseROIHeads"
    NEW_KEYS: ClassVar[Flat] = _NEW_KEYS
    IGNORED_KEYS: ClassVar[Flat] = _IGNORED_KEYS

    densepose: DensePoseHeadConfig | None = None

    @classmethod
    def _from_keys(cls, keys: Keys, name: str, backbone: Any, generator: Any) -> dict[str, Any]:
        arguments = super()._from_keys(keys, name, backbone, generator)
        if type(keys["MODEL.DENSEPOSE_ON"]) is not bool:
            raise keys.fail("MODEL.DENSEPOSE_ON", "expected True or False")
        head = None
        if keys["MODEL.DENSEPOSE_ON"]:
            head = DensePoseHeadConfig.from_keys(keys, arguments["in_features"], backbone)
        return {**arguments, "densepose": head}

    def to_keys(self) -> Flat:
        head = self.densepose
        return {
            **super().to_keys(),
            "MODEL.DENSEPOSE_ON": head is not None,
            **(head.to_keys() if head else {}),
        }
