"""What an export and its clients agree on: options of an export, and what each input and output is.

Plain data without TensorFlow: the graph, the README of an export, the command line and the client read it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args

from weights.errors import UsageError

Masks = Literal["roi", "full", "png", "none"]
SemSeg = Literal["labels", "logits", "none"]
BoxFormat = Literal["xyxy", "tf"]
BadImages = Literal["status", "error"]
Precision = Literal["float32", "bfloat16"]

# More than this many pixels at once are no faster on a processor, but take memory for each.
_STEP_PIXELS = 2**20

CHOICES: dict[str, tuple[str, ...]] = {
    "masks": get_args(Masks),
    "sem_seg": get_args(SemSeg),
    "box_format": get_args(BoxFormat),
    "bad_images": get_args(BadImages),
    "precision": get_args(Precision),
}


@dataclass(frozen=True)
class ExportOptions:
    """What an export answers with. None: what fits the model.

    Attributes:
        max_detections: rows per image; None = what the configuration detects at most. With fewer, the best stay.
        masks: "roi" = probabilities in the box (the client pastes them; TensorMask, whose masks have up to 480 x 480
            cells of a window of their own, answers with "png" instead), "full" = 0/1 maps of the image,
            "png" = the same as PNG files, "none".
        sem_seg: "labels" = the best class per pixel, "logits" = all classes (large), "none".
        precision: "bfloat16" computes the network in bfloat16: nearly the same objects, not the same numbers
            (deploy/README.md has the measurement), for processors that have it.
        pad_independent: compute every image on its own canvas: answers do not depend on the rest of the batch.
        bad_images: "status" = an unusable image gets ``num_detections`` -1 and an ``image_status``, its
            neighbours their answers; "error" = the request fails.
        max_image_pixels: larger images are refused; None = 50 million, fewer where maps of an image take more memory.
        box_format: "xyxy" = detectron2's pixels; "tf" = ``detection_boxes`` as TensorFlow's detectors give them
            (y1, x1, y2, x2 as fractions of the image), and the pixels beside them in ``detection_boxes_xyxy``.
        step_pixels: a batch goes through the network in steps of this many pixels (of the resized images), at least
            one image, two steps at a time (with maps of the whole image: one). More need more memory and pay on a
            GPU only.
    """

    max_detections: int | None = None
    masks: Masks = "roi"
    sem_seg: SemSeg = "labels"
    precision: Precision = "float32"
    pad_independent: bool = False
    bad_images: BadImages = "status"
    max_image_pixels: int | None = None
    box_format: BoxFormat = "xyxy"
    step_pixels: int = _STEP_PIXELS

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}")


# Values of the output `image_status`.
OK = 0
UNREADABLE = 1  # not a complete JPEG, PNG, BMP or WebP file, or an image without pixels
TOO_LARGE = 2  # more pixels than the export allows
TOO_THIN = 3  # one side of the network input would be 0 pixels (detectron2 fails, too)
NOT_EXACT = 4  # a file that detectron2 may read, but that the graph cannot read as detectron2 does
NOT_FITTING = 5  # a size that the pooling of DeepLab does not divide (detectron2 fails, too)

STATUS_TEXT = {
    UNREADABLE: "not a readable JPEG, PNG, BMP or WebP image",
    TOO_LARGE: "the image has more pixels than this export accepts",
    TOO_THIN: "the image is too elongated to be resized to the network input",
    NOT_EXACT: "a kind of JPEG, PNG, BMP or WebP file that cannot be decoded here exactly as detectron2 does; "
    "convert it to PNG",
    NOT_FITTING: "the image, once resized, is no multiple of the window that the model's pooling was trained with "
    "(INPUT.CROP.SIZE)",
}


def takes_files(channels: int) -> bool:
    """Whether an export has the signature ``serving_bytes``: image files hold RGB, or grey, and nothing else."""
    return channels in (1, 3)


OPTION_NAMES = tuple(field.name for field in fields(ExportOptions))


class Tensor(NamedTuple):
    """An input or output: the dtype by which a client reads JSON (None: float32, or text), and its meaning."""

    meaning: str
    dtype: str | None = None


DENSEPOSE = {
    "coarse_segm": "DensePose: scores of background and body",
    "fine_segm": "DensePose: scores of background and parts",
    "u": "DensePose: first coordinate on each part",
    "v": "DensePose: second coordinate on each part",
    "embedding": "DensePose: embedding of the surface point",
    "sigma_2": "DensePose: raw confidence of u and v",
    "kappa_u": "DensePose: raw confidence of u",
    "kappa_v": "DensePose: raw confidence of v",
    "fine_segm_confidence": "DensePose: confidence of the parts",
    "coarse_segm_confidence": "DensePose: confidence of the body",
}

# Without `image_status`, whose values have texts of their own.
TENSORS: dict[str, Tensor] = {
    "inputs": Tensor("RGB pixels, 0 to 255; all images of a request have the same size", "uint8"),
    "image_bytes": Tensor(
        "JPEG, PNG, BMP or WebP files (WebP: if the server's TensorFlow has it), sizes may differ"
    ),
    "proposal_boxes": Tensor("xyxy boxes in pixels of the original image, best first"),
    "num_proposals": Tensor("how many rows of proposal_boxes count", "int32"),
    "objectness_logits": Tensor("objectness of each proposal, best first"),
    "detection_boxes": Tensor(
        "x1, y1, x2, y2 in pixels of the original image (not normalised), by descending score"
    ),
    "detection_boxes_xyxy": Tensor("x1, y1, x2, y2 in pixels of the original image, by descending score"),
    "detection_scores": Tensor("0 to 1"),
    "detection_classes": Tensor("0-based, names in assets/class_names.txt", "int64"),
    "num_detections": Tensor(
        "how many rows count; the rows after them are zero; -1 = this image could not be used", "int32"
    ),
    "detection_masks": Tensor(
        "probabilities in the box; paste them and compare with 0.5 (tf_d2.client does)"
    ),
    "masks_in_whole_pixels": Tensor(
        "1: detection_masks are pasted as Detectron pastes them (tf_d2.ops.mask_paste_padded_numpy)", "int32"
    ),
    "detection_masks_full": Tensor(
        "1 where the object is; padded with 0 to the largest image of the request", "uint8"
    ),
    "detection_masks_png_bytes": Tensor("grey PNG (0 or 255) of the image's size"),
    "detection_keypoints": Tensor("x, y in pixels of the original image, and a score"),
    **{
        f"detection_densepose_{name}": Tensor(f"{what}, relative to the box")
        for name, what in DENSEPOSE.items()
    },
    "detection_panoptic_ids": Tensor(
        "number of each instance in panoptic_seg, which is its mask; rows are in the order of these", "int32"
    ),
    "image_size": Tensor("height, width of each image, after decoding", "int32"),
    "image_status": Tensor("", "int32"),
    "sem_seg": Tensor("logits of every class, padded to the largest image of the request"),
    "sem_seg_labels": Tensor(
        "best class of each pixel, padded with 0 to the largest image of the request", "int32"
    ),
    "panoptic_seg": Tensor(
        "segment number of each pixel, 0 = none; segment k + 1 is row k of panoptic_segment_*", "int32"
    ),
    "panoptic_segment_classes": Tensor("class of a thing, or semantic class of stuff", "int64"),
    "panoptic_segment_is_thing": Tensor("whether the segment is a thing", "bool"),
    "panoptic_segment_scores": Tensor("score of a thing, 0 for stuff"),
    "panoptic_segment_instances": Tensor("row of the thing among the detections, -1 for stuff", "int32"),
    "panoptic_segment_areas": Tensor("pixels of the segment", "int32"),
    "num_panoptic_segments": Tensor("how many rows of panoptic_segment_* count", "int32"),
}
NUMBERED_SEGMENTS = {
    "panoptic_seg": "class * LABEL_DIVISOR + instance (1, 2, ...; stuff 0) of each pixel, -1 = nothing",
    "detection_boxes": "x1, y1, x2, y2 in pixels of the original image, by detection_panoptic_ids",
    "detection_scores": "mean probability of the class times the raw heat at the middle; may be negative",
}
"""What outputs mean where segments have numbers and no table (Panoptic-DeepLab)."""
OTHER_CHANNELS = (
    "pixels, 0 to 255, with the channels of the model in the order that tf_d2.Predictor takes them; all images of a "
    "request have the same size"
)
"""What ``inputs`` are where a model has another number of channels than three."""
NORMALISED_BOXES = (
    "y1, x1, y2, x2 as fractions of height and width of the original image, by descending score"
)
