"""How an image becomes the network input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.errors import ConfigError
from tf_d2.config.keys import Keys
from tf_d2.config.lazy import Node
from tf_d2.config.parts.conventions import DETECTRON2, KEY, Conventions, conventions_of
from tf_d2.config.reading import Fields, Floats

_UNLIMITED = 2**31 - 1


@dataclass(frozen=True)
class InputConfig:
    """``INPUT.*``, ``MODEL.PIXEL_*``; in a LazyConfig the test mapper and two arguments of the model."""

    format: str  # "BGR" or "RGB": channel order of mean, std and the network input; "L": one channel
    min_size_test: int  # shortest edge in pixels; 0 = no resize at all
    max_size_test: int  # cap of the longest edge in pixels
    pixel_mean: Floats
    pixel_std: Floats
    size_divisibility: int = -1  # of the padded sides; -1 = the backbone's own
    conventions: Conventions = DETECTRON2

    KEYS: ClassVar[dict[str, str]] = {
        "format": "INPUT.FORMAT",
        "min_size_test": "INPUT.MIN_SIZE_TEST",
        "max_size_test": "INPUT.MAX_SIZE_TEST",
        "pixel_mean": "MODEL.PIXEL_MEAN",
        "pixel_std": "MODEL.PIXEL_STD",
        "size_divisibility": "MODEL.SIZE_DIVISIBILITY",
    }

    @classmethod
    def _checked(cls, fields: Fields) -> InputConfig:
        mean = fields.numbers("pixel_mean")
        # DefaultPredictor refuses "L", with which DatasetMapper trains models of one channel.
        formats = ("BGR", "RGB", "L") if len(mean) == 1 else ("BGR", "RGB")
        if fields["format"] == "L" and len(mean) != 1:
            raise fields.fail(
                "format", f"a grey picture has one channel, and pixel_mean has {len(mean)} values"
            )
        return cls(
            format=fields.choice("format", formats),
            min_size_test=fields.integer("min_size_test", 0),
            max_size_test=fields.integer("max_size_test", 1),
            pixel_mean=mean,
            pixel_std=fields.nonzero("pixel_std", [len(mean)]),
            size_divisibility=fields.integer("size_divisibility", -1),
        )

    @classmethod
    def from_keys(cls, keys: Keys) -> InputConfig:
        return replace(cls._checked(keys.fields(cls.KEYS)), conventions=conventions_of(keys))

    @classmethod
    def from_lazy(cls, model: Node) -> InputConfig:
        """The model holds mean and std, ``dataloader.test.mapper`` the resize and the channel order."""
        fields = Fields()
        model.put(fields, "pixel_mean", "pixel_mean")
        model.put(fields, "pixel_std", "pixel_std")
        try:
            mapper = model.file.node("dataloader", "test", "mapper")
            steps = mapper.nodes("augmentations")
        except ConfigError as error:
            raise ConfigError(
                "dataloader.test.mapper.augmentations is needed: it says how to resize"
            ) from error
        if len(steps) != 1 or steps[0].check("ResizeShortestEdge") is None:
            raise ConfigError(
                "dataloader.test.mapper.augmentations is not supported: expected one ResizeShortestEdge"
            )
        step = steps[0]
        step.put(fields, "min_size_test", "short_edge_length")
        short = fields["min_size_test"]
        if isinstance(short, tuple) and len(set(short)) == 1:
            fields.put("min_size_test", fields.where("min_size_test"), short[0])
        step.put(fields, "max_size_test", "max_size", _UNLIMITED)
        if fields["max_size_test"] is None:
            fields.put("max_size_test", fields.where("max_size_test"), _UNLIMITED)
        mapper.put(fields, "format", "image_format")
        fields.put("size_divisibility", "", -1)
        step.done("sample_style interp")
        return cls._checked(model.overridden(fields, cls.KEYS))

    def to_keys(self) -> Flat:
        values = {key: getattr(self, field) for field, key in self.KEYS.items()}
        return {**values, KEY: self.conventions.name}
