"""Class counts of a checkpoint and of a model, told from the shapes of the layers that have one output per class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from weights.layouts import Shape, path_to_key, torch_shape

# --- class counts -----------------------------------------------------------------------------------
# The weights that tell how many classes a model has: name, config option, number of axes, axis of the classes.
_CLASS_WEIGHTS = (
    (r"roi_heads\.box_predictor\.(\d+\.)?cls_score\.weight", "MODEL.ROI_HEADS.NUM_CLASSES", 2, 0),
    (r"sem_seg_head\.predictor\.weight", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4, 0),
    (r"roi_heads\.keypoint_head\.score_lowres\.weight", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 4, 1),
    (r"head\.cls_score\.weight", "MODEL.RETINANET.NUM_CLASSES", 4, 0),
)


@dataclass(frozen=True)
class _Classes:
    """What the shape of one predictor's weight says: the config option, the class count, the other axes."""

    option: str
    count: int
    others: Shape


def class_count_hints(file_shapes: Mapping[str, Shape], specs: Mapping[str, Shape]) -> list[str]:
    """Sentences that name differing class counts, the usual reason why predictors do not fit.

    Only where nothing else differs: of a weight that is transposed, say, the count would be invented.
    """
    model_shapes = {
        path_to_key(path): torch_shape(tuple(shape), path.rsplit("/", 1)[-1]) for path, shape in specs.items()
    }
    hints: dict[str, str] = {}
    for key in sorted(file_shapes.keys() & model_shapes.keys()):
        found, wanted = _classes(key, file_shapes), _classes(key, model_shapes)
        if found and wanted and found.others == wanted.others and found.count != wanted.count:
            hints[wanted.option] = (
                f"{wanted.option} is {wanted.count} in the config; the file was trained with {found.count}."
            )
    return [hints[option] for option in sorted(hints)]


def class_counts(shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Config option -> class count, as far as the predictors' shapes (torch layout) tell."""
    found = (_classes(key, shapes) for key in shapes)
    return {classes.option: classes.count for classes in found if classes}


def _classes(key: str, shapes: Mapping[str, Shape]) -> _Classes | None:
    """What ``key`` says about classes; None if it is no predictor's weight, or its shape makes no sense."""
    shape = shapes[key]
    for pattern, option, axes, axis in _CLASS_WEIGHTS:
        if re.fullmatch(pattern, key) and len(shape) == axes:
            count = shape[axis]
            if option == "MODEL.ROI_HEADS.NUM_CLASSES":
                count -= 1  # the last row is the background
            elif option == "MODEL.RETINANET.NUM_CLASSES":
                anchors = next(iter(shapes.get("head.bbox_pred.weight", ())), 0) // 4
                count = count // anchors if anchors and count % anchors == 0 else 0
            return _Classes(option, count, (*shape[:axis], *shape[axis + 1 :])) if count > 0 else None
    return None
