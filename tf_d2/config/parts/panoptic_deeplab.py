"""Panoptic-DeepLab. Source: projects/Panoptic-DeepLab/panoptic_deeplab/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.parts.deeplab import DeepLabDecoderConfig, DeepLabHeadConfig, decoder_keys
from tf_d2.config.reading import Fields

_SEMANTIC, _INSTANCE, _OWN = "MODEL.SEM_SEG_HEAD.", "MODEL.INS_EMBED_HEAD.", "MODEL.PANOPTIC_DEEPLAB."
_SEPARABLE = "USE_DEPTHWISE_SEPARABLE_CONV"

# Semantic classes that are things, by the data set's name in detectron2, whose metadata say them.
_THINGS: dict[str, tuple[int, ...]] = {
    **{f"coco_2017_{split}_panoptic": tuple(range(80)) for split in ("train", "val", "val_100")},
    **{f"cityscapes_fine_panoptic_{split}": tuple(range(11, 19)) for split in ("train", "val")},
}
LABEL_DIVISOR = 1000  # of all of them


@dataclass(frozen=True)
class PanopticDeepLabSemSegHeadConfig(DeepLabHeadConfig):
    """``PanopticDeepLabSemSegHead``: the decoder of DeepLab v3+ and two convolutions before the predictor."""

    NEW_KEYS: ClassVar[Flat] = {_SEMANTIC + "HEAD_CHANNELS": 256}
    IGNORED_KEYS: ClassVar[Flat] = {_SEMANTIC + "LOSS_TOP_K": 0.2}

    head_channels: int

    KEYS: ClassVar[dict[str, str]] = {
        **DeepLabHeadConfig.KEYS,
        "head_channels": _SEMANTIC + "HEAD_CHANNELS",
    }

    @classmethod
    def _checked(cls, keys: Keys, fields: Fields, name: str, backbone: Any) -> dict[str, Any]:
        width = {"head_channels": fields.integer("head_channels", 1)}
        return {**super()._checked(keys, fields, name, backbone), **width}


@dataclass(frozen=True)
class PanopticDeepLabInsEmbedHeadConfig(DeepLabDecoderConfig):
    """``PanopticDeepLabInsEmbedHead``: a decoder of its own, a heat map of centres and offsets to them."""

    NEW_KEYS: ClassVar[Flat] = {
        _INSTANCE + "NAME": "PanopticDeepLabInsEmbedHead",
        _INSTANCE + "IN_FEATURES": ("res2", "res3", "res5"),
        _INSTANCE + "PROJECT_CHANNELS": (32, 64),
        _INSTANCE + "ASPP_CHANNELS": 256,
        _INSTANCE + "ASPP_DILATIONS": (6, 12, 18),
        _INSTANCE + "HEAD_CHANNELS": 32,
        _INSTANCE + "CONVS_DIM": 128,
        _INSTANCE + "COMMON_STRIDE": 4,
        _INSTANCE + "NORM": "SyncBN",
    }
    IGNORED_KEYS: ClassVar[Flat] = {
        _INSTANCE + "PROJECT_FEATURES": ("res2", "res3"),  # nothing reads it
        _INSTANCE + "ASPP_DROPOUT": 0.1,
        _INSTANCE + "CENTER_LOSS_WEIGHT": 200.0,
        _INSTANCE + "OFFSET_LOSS_WEIGHT": 0.01,
    }

    head_channels: int

    SECTION: ClassVar[str] = _INSTANCE
    KEYS: ClassVar[dict[str, str]] = {
        **decoder_keys(_INSTANCE),
        "head_channels": _INSTANCE + "HEAD_CHANNELS",
    }

    @classmethod
    def _checked(cls, keys: Keys, fields: Fields, name: str, backbone: Any) -> dict[str, Any]:
        width = {"head_channels": fields.integer("head_channels", 1)}
        return {**super()._checked(keys, fields, name, backbone), **width}


@dataclass(frozen=True)
class PanopticDeepLabConfig:
    """A backbone, both heads, and how a map of segments is made of what they say.

    detectron2 takes thing classes and divisor from the metadata of the first data set of ``DATASETS.TRAIN``. For
    another one, ``MODEL.PANOPTIC_DEEPLAB.THING_IDS`` and ``LABEL_DIVISOR`` say them, two keys of this project.
    """

    name: ClassVar[str] = "PanopticDeepLab"

    backbone: Any
    sem_seg_head: PanopticDeepLabSemSegHeadConfig
    ins_embed_head: PanopticDeepLabInsEmbedHeadConfig
    size_divisibility: int  # both sides of the network input are padded to a multiple; below 1: no padding
    center_threshold: float  # of the raw heat, exclusive
    nms_kernel: int  # pixels of the picture, odd
    top_k_instance: int  # at most one fewer becomes a centre
    stuff_area: int  # pixels that a stuff class needs
    predict_instances: bool
    train_dataset: str  # whose metadata say the two facts below; "" if the configuration does
    thing_ids: tuple[int, ...]  # semantic classes that have instances, ascending
    label_divisor: int  # a segment's number is class * this + instance (from 1; stuff: 0)

    KEYS: ClassVar[dict[str, str]] = {
        "size_divisibility": _OWN + "SIZE_DIVISIBILITY",
        "center_threshold": _OWN + "CENTER_THRESHOLD",
        "nms_kernel": _OWN + "NMS_KERNEL",
        "top_k_instance": _OWN + "TOP_K_INSTANCE",
        "stuff_area": _OWN + "STUFF_AREA",
        "predict_instances": _OWN + "PREDICT_INSTANCES",
    }
    NEW_KEYS: ClassVar[Flat] = {
        _OWN + "STUFF_AREA": 2048,
        _OWN + "CENTER_THRESHOLD": 0.1,
        _OWN + "NMS_KERNEL": 7,
        _OWN + "TOP_K_INSTANCE": 200,
        _OWN + "PREDICT_INSTANCES": True,
        _OWN + _SEPARABLE: False,
        _OWN + "SIZE_DIVISIBILITY": -1,
        _OWN + "THING_IDS": (),
        _OWN + "LABEL_DIVISOR": LABEL_DIVISOR,
    }
    IGNORED_KEYS: ClassVar[Flat] = {
        _OWN + "BENCHMARK_NETWORK_SPEED": False,
        "INPUT.GAUSSIAN_SIGMA": 10,
        "INPUT.IGNORE_STUFF_IN_OFFSET": True,
        "INPUT.SMALL_INSTANCE_AREA": 4096,
        "INPUT.SMALL_INSTANCE_WEIGHT": 3,
        "INPUT.IGNORE_CROWD_IN_SEMANTIC": False,
        "SOLVER.OPTIMIZER": "ADAM",
    }

    @property
    def num_classes(self) -> int:
        """Of its instances, which have semantic classes."""
        return self.sem_seg_head.num_classes

    @property
    def detections_per_image(self) -> int:
        """The most instances a picture can have."""
        return self.top_k_instance - 1 if self.predict_instances else 0

    @classmethod
    def from_keys(cls, keys: Keys, name: str) -> PanopticDeepLabConfig:
        backbone = keys.part("backbone", "MODEL.BACKBONE.NAME")
        head = keys.part("sem_seg_head", _SEMANTIC + "NAME", backbone)
        if not isinstance(head, PanopticDeepLabSemSegHeadConfig):
            raise keys.fail(_SEMANTIC + "NAME", f"{name} needs PanopticDeepLabSemSegHead")
        if keys[_OWN + _SEPARABLE] is not keys[_SEMANTIC + _SEPARABLE]:
            raise keys.fail(_OWN + _SEPARABLE, f"expected that of {_SEMANTIC}{_SEPARABLE}")
        fields = keys.fields(cls.KEYS)
        kernel, limit = fields.integer("nms_kernel", 1), fields.integer("top_k_instance", 1)
        if kernel % 2 == 0:
            raise fields.fail("nms_kernel", "expected an odd number")
        dataset, things = _things(keys, head.num_classes)
        divisor = keys.fields({"d": _OWN + "LABEL_DIVISOR"}).integer("d", 1) if things else LABEL_DIVISOR
        if divisor < limit:
            raise keys.fail(
                _OWN + "LABEL_DIVISOR", f"expected at least {cls.KEYS['top_k_instance']}, {limit}"
            )
        return cls(
            backbone=backbone,
            sem_seg_head=head,
            ins_embed_head=keys.part("ins_embed_head", _INSTANCE + "NAME", backbone),
            size_divisibility=max(fields.integer("size_divisibility", -(2**31)), 0),
            center_threshold=fields.number("center_threshold"),
            nms_kernel=kernel,
            top_k_instance=limit,
            stuff_area=fields.integer("stuff_area", -(2**31)),
            predict_instances=fields.flag("predict_instances"),
            train_dataset=dataset,
            thing_ids=things,
            label_divisor=divisor,
        )

    def to_keys(self) -> Flat:
        flat = {
            "MODEL.META_ARCHITECTURE": self.name,
            **self.backbone.to_keys(),
            **self.sem_seg_head.to_keys(),
            **self.ins_embed_head.to_keys(),
            **{key: getattr(self, field) for field, key in self.KEYS.items()},
            _OWN + _SEPARABLE: self.sem_seg_head.use_depthwise_separable_conv,
        }
        if self.train_dataset:
            return {**flat, "DATASETS.TRAIN": (self.train_dataset,)}
        return {**flat, _OWN + "THING_IDS": self.thing_ids, _OWN + "LABEL_DIVISOR": self.label_divisor}


def _things(keys: Keys, num_classes: int) -> tuple[str, tuple[int, ...]]:
    """The data set that says what things are ("" if the configuration does), and their semantic classes."""
    given = keys[_OWN + "THING_IDS"]
    if given:
        known = isinstance(given, tuple) and all(type(i) is int and 0 <= i < num_classes for i in given)
        if not known or len(set(given)) != len(given):
            raise keys.fail(
                _OWN + "THING_IDS", f"expected different semantic classes from 0 to {num_classes - 1}"
            )
        return "", tuple(sorted(given))
    names = keys.fields({"train": "DATASETS.TRAIN"})
    first = names["train"][0] if names["train"] else ""
    if first not in _THINGS:
        raise names.fail(
            "train",
            f"which semantic classes are things is known of {', '.join(_THINGS)}; for another data set give "
            f"{_OWN}THING_IDS, a list of classes as the model numbers them, and {_OWN}LABEL_DIVISOR",
        )
    return first, _THINGS[first]
