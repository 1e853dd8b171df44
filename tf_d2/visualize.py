"""Draw results on an image with Pillow."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tf_d2.instances import Instances

MASK_OPACITY = 0.45
_MIN_KEYPOINT_SCORE = 0.05  # detectron2's visualizer hides weaker keypoints


def color_of(index: int) -> tuple[int, int, int]:
    """A bright RGB colour for a class or segment; neighbouring indices differ clearly (golden-ratio hues)."""
    hue = (0.02 + index * 0.618033988749895) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return int(red * 255), int(green * 255), int(blue * 255)


def draw_instances(
    image_bgr: np.ndarray, instances: Instances, class_names: Sequence[str] = (), text: bool = True
) -> Image.Image:
    """Masks, boxes, labels and keypoints over an image.

    Args:
        image_bgr: uint8 ``(H, W, 3)``, the image the instances lie in; ``(H, W, 1)`` is drawn in grey.
        class_names: names by class index; a missing one is shown as its number.

    Returns:
        an RGB picture of the same size.
    """
    canvas = rgb_canvas(image_bgr)
    boxes = instances.pred_boxes if instances.has("pred_boxes") else instances.proposal_boxes
    classes = instances.pred_classes if instances.has("pred_classes") else np.zeros(len(boxes), np.int64)
    if instances.has("pred_masks"):
        # Weakest first, so that the strongest detection stays on top.
        for i in reversed(range(len(instances))):
            mask = instances.pred_masks[i]
            blended = canvas[mask] * (1 - MASK_OPACITY) + np.array(color_of(int(classes[i]))) * MASK_OPACITY
            canvas[mask] = blended
    picture = Image.fromarray(canvas.round().astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    width = max(1, round(max(picture.size) / 500))
    font = ImageFont.load_default(size=max(10, round(max(picture.size) / 50)))
    for i in reversed(range(len(instances))):
        color = color_of(int(classes[i]))
        left, top, right, bottom = (float(v) for v in boxes[i][:4])
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=width)
        if instances.has("pred_keypoints"):
            _draw_keypoints(draw, instances.pred_keypoints[i], color, 2 * width)
    if text and instances.has("scores"):
        for i in reversed(range(len(instances))):
            label = f"{_name(class_names, int(classes[i]))} {instances.scores[i]:.2f}"
            _draw_label(draw, label, boxes[i], color_of(int(classes[i])), font)
    return picture


def draw_segments(image_bgr: np.ndarray, segments: np.ndarray) -> Image.Image:
    """Colour each segment of an int ``(H, W)`` map (0 = nothing) over the image."""
    canvas = rgb_canvas(image_bgr)
    for segment in np.unique(segments):
        if segment > 0:
            where = segments == segment
            canvas[where] = canvas[where] * 0.4 + np.array(color_of(int(segment))) * 0.6
    return Image.fromarray(canvas.round().astype(np.uint8))


def rgb_canvas(image_bgr: np.ndarray) -> np.ndarray:
    """Float32 RGB ``(H, W, 3)`` to draw on; of any other number of channels the first one in grey."""
    grey = image_bgr.shape[2] != 3
    return (np.repeat(image_bgr[:, :, :1], 3, axis=2) if grey else image_bgr[:, :, ::-1]).astype(np.float32)


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else str(index)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    label: str,
    box: np.ndarray,
    color: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    x, y = float(box[0]), float(box[1])
    left, top, right, bottom = draw.textbbox((x, y), label, font=font)
    height = bottom - top + 4
    # Above the box where there is room, else inside its top edge.
    shift = -height if y - height >= 0 else 0
    draw.rectangle((left - 1, y + shift, right + 3, y + shift + height), fill=color)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luminance > 140 else (255, 255, 255)
    draw.text((x + 1, y + shift + 2 - (top - y)), label, fill=ink, font=font)


def _draw_keypoints(
    draw: ImageDraw.ImageDraw, keypoints: np.ndarray, color: tuple[int, int, int], radius: int
) -> None:
    for x, y, score in keypoints:
        if score > _MIN_KEYPOINT_SCORE:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline=(0, 0, 0))
