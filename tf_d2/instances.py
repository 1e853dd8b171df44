"""Results as plain numpy arrays, with detectron2's field names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tf_d2.tables import html_table, to_pandas, to_supervision


class Instances:
    """Objects of one image, one row each in every field, by descending score.

    Fields (those the model has): ``pred_boxes`` float32 ``(N, 4)`` xyxy in pixels of the image, ``scores``
    float32 ``(N,)``, ``pred_classes`` int64 ``(N,)`` 0-based, ``pred_masks`` bool ``(N, H, W)``,
    ``pred_keypoints`` float32 ``(N, K, 3)`` (x, y, score), ``pred_keypoint_heatmaps`` float32 ``(N, K, S,
    S)`` logits; proposal networks have ``proposal_boxes`` ``(N, 4)`` and ``objectness_logits`` ``(N,)``.
    ``pred_densepose`` is an object of such arrays (:mod:`tf_d2.densepose`). Fields are attributes.

    Source: detectron2/structures/instances.py (there with torch tensors).
    """

    def __init__(self, image_size: tuple[int, int], **fields: Any) -> None:
        """``image_size`` is (height, width) in pixels. Raises ValueError if the fields differ in length."""
        if len({len(value) for value in fields.values()}) > 1:
            lengths = {name: len(value) for name, value in fields.items()}
            raise ValueError(f"fields differ in length: {lengths}")
        self._image_size = image_size
        self._fields = fields

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the image the boxes lie in."""
        return self._image_size

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(f"these instances have no field {name!r}; they have {', '.join(fields)}")

    def has(self, name: str) -> bool:
        """Whether the model produced this field."""
        return name in self._fields

    def get_fields(self) -> dict[str, Any]:
        """All fields by name."""
        return dict(self._fields)

    def __len__(self) -> int:
        return len(next(iter(self._fields.values()))) if self._fields else 0

    def __getitem__(self, item: Any) -> Instances:
        """Rows by boolean mask, index array, slice or integer (which keeps one row). TypeError for anything else."""
        if not isinstance(item, slice):
            rows = np.asarray(item)
            if rows.size == 0 and not isinstance(item, np.ndarray):
                rows = rows.astype(np.intp)  # an empty list
            if rows.ndim > 1 or rows.dtype.kind not in ("iu" if rows.ndim == 0 else "iub"):
                raise TypeError(
                    f"instances are indexed by a slice, an integer, a mask or a list of integers, not by {item!r}"
                )
            if rows.ndim == 0 and not -len(self) <= rows < len(self):
                raise IndexError(f"instance {rows} of {len(self)}")
            item = rows.reshape(-1)
        return Instances(self._image_size, **{name: value[item] for name, value in self._fields.items()})

    def __iter__(self) -> Iterator[Instances]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        height, width = self._image_size
        fields = ", ".join(
            f"{name} {value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else f"{name} {value}"
            for name, value in self._fields.items()
        )
        return f"Instances({len(self)} in {height}x{width}: {fields})"

    def _repr_html_(self) -> str:
        """What notebooks show: the first rows as a table, large fields by their shape."""
        return html_table(self)

    def to_supervision(self, names: Sequence[str] = ()) -> Any:
        """``supervision.Detections`` of these (needs the package ``supervision``); see :mod:`tf_d2.tables`."""
        return to_supervision(self, names)

    def to_pandas(self, names: Sequence[str] = ()) -> Any:
        """``pandas.DataFrame`` of these, one row each (needs the package ``pandas``); see :mod:`tf_d2.tables`."""
        return to_pandas(self, names)
