"""The computation of an export: requests in, padded answers out, every output ``[B, ...]`` and finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from tf_d2.config.schema import ModelConfig
from tf_d2.modeling import D2Model
from tf_d2.modeling.batches import Detections
from tf_d2.modeling.given import given_proposals, given_proposals_times
from tf_d2.modeling.network_input import pixel_dtype
from tf_d2.modeling.postprocess import DENSEPOSE, rescale, rescale_keypoints, scales
from tf_d2.modeling.recording import Unrecorded
from tf_d2.serving import fitting, maps
from tf_d2.serving.decode import Picture, picture_from_bytes, picture_from_pixels
from tf_d2.serving_contract import NOT_FITTING, OK, STATUS_TEXT, ExportOptions

Outputs = dict[str, tf.Tensor]
# Steps overlap, so that one computes while the other, say, suppresses boxes; not where images have large maps.
_STEPS_AT_ONCE = 2


@dataclass(frozen=True)
class GraphOptions(ExportOptions):
    """`ExportOptions` of one model: nothing is left open."""

    max_detections: int = 0
    max_image_pixels: int = 0


def core_specs(config: ModelConfig, options: GraphOptions) -> list[tf.TensorSpec]:
    """Arguments of the core: canvas, network sizes, original sizes, size of maps, proposals if needed."""
    n = 1 if options.pad_independent else None
    specs = [
        tf.TensorSpec([n, None, None, len(config.input.pixel_mean)], pixel_dtype(config.input), "canvas"),
        tf.TensorSpec([n, 2], tf.int32, "network_sizes"),
        tf.TensorSpec([n, 2], tf.int32, "sizes"),
        tf.TensorSpec([2], tf.int32, "map_size"),
    ]
    if config.needs_proposals:
        specs += [
            tf.TensorSpec([n, None, 4], tf.float32, "proposal_boxes"),
            tf.TensorSpec([n], tf.int32, "num_proposals"),
        ]
    return specs


def core_function(model: D2Model, options: GraphOptions) -> Callable[..., Outputs]:
    """The network and everything after it: pictures at network size -> padded answers in original pixels."""
    config = model.config

    def core(
        canvas: tf.Tensor,
        network_sizes: tf.Tensor,
        sizes: tf.Tensor,
        map_size: tf.Tensor,
        *proposals: tf.Tensor,
    ) -> Outputs:
        given = None
        if proposals:
            boxes, counts = proposals
            topk, factors = config.precomputed_proposal_topk, model.factors(sizes)
            if factors is None:
                given = given_proposals(boxes, counts, network_sizes, sizes, topk)
            else:
                given = given_proposals_times(boxes, counts, factors, topk)
        raw = model.run(model.prepare(canvas, network_sizes), network_sizes, sizes, given, Unrecorded())
        outputs = _row_outputs(config, raw, network_sizes, sizes, options)
        extents = _Extents(network_sizes, sizes, map_size)
        outputs |= _map_outputs(model, raw, outputs, extents, options)
        if options.masks != "roi":
            for name in ("detection_masks", "detection_mask_boxes", "detection_mask_sides"):
                outputs.pop(name, None)
        if options.box_format == "tf" and "detection_boxes" in outputs:
            outputs["detection_boxes_xyxy"] = outputs["detection_boxes"]
            outputs["detection_boxes"] = normalised(outputs["detection_boxes"], sizes)
        return {name: _finite(value) for name, value in outputs.items()}

    return core


def _row_outputs(
    config: ModelConfig, raw: Outputs, network_sizes: tf.Tensor, sizes: tf.Tensor, options: GraphOptions
) -> Outputs:
    """Rows of a model -> original pixels, padded to ``[n, M, ...]``."""
    if "boxes" not in raw:
        return {}
    is_proposals = "objectness_logits" in raw
    scores = raw["objectness_logits"] if is_proposals else raw["scores"]
    classes = tf.zeros_like(scores, tf.int64) if is_proposals else raw["classes"]
    found = Detections(raw["boxes"], scores, classes, raw["image_index"], raw["counts"])
    done, kept = rescale(found, network_sizes, sizes, config.conventions)

    def padded(rows: tf.Tensor) -> tf.Tensor:
        return pad_rows(rows, done.image_index, done.counts, options.max_detections)

    count = tf.minimum(done.counts, options.max_detections)
    if is_proposals:
        return {
            "proposal_boxes": padded(done.boxes),
            "objectness_logits": padded(done.scores),
            "num_proposals": count,
        }
    outputs = {
        "detection_boxes": padded(done.boxes),
        "detection_scores": padded(done.scores),
        "detection_classes": padded(done.classes),
        "num_detections": count,
    }
    if "pred_masks" in raw:
        side = config.model.largest_mask if "mask_boxes" in raw else config.roi_heads.mask_side()
        masks = tf.ensure_shape(tf.gather(raw["pred_masks"], kept), [None, side, side])
        outputs["detection_masks"] = padded(tf.cast(masks, tf.float32))
        if config.conventions.padded_mask_paste and options.masks == "roi":
            outputs["masks_in_whole_pixels"] = tf.ones_like(count)
    if "mask_boxes" in raw:
        scale = tf.gather(scales(network_sizes, sizes), done.image_index)  # (y, x)
        windows = tf.gather(raw["mask_boxes"], kept) * tf.gather(scale, [1, 0, 1, 0], axis=1)
        outputs["detection_mask_boxes"] = padded(windows)
        outputs["detection_mask_sides"] = padded(tf.gather(raw["mask_sides"], kept))
    for name in [n for n in raw if n.startswith(DENSEPOSE)]:
        values = tf.transpose(tf.gather(raw[name], kept), [0, 3, 1, 2])
        side = config.roi_heads.densepose.output_side
        values = tf.ensure_shape(values, [None, raw[name].shape[-1], side, side])
        outputs[f"detection_densepose_{name.removeprefix(DENSEPOSE)}"] = padded(tf.cast(values, tf.float32))
    if "pred_keypoints" in raw:
        keypoints = tf.gather(raw["pred_keypoints"], kept)
        if not config.conventions.boxes_in_picture:
            factor = tf.gather(scales(network_sizes, sizes), done.image_index)
            keypoints = rescale_keypoints(keypoints, factor)
        outputs["detection_keypoints"] = padded(keypoints)
    return outputs


def pad_rows(rows: tf.Tensor, image_index: tf.Tensor, counts: tf.Tensor, limit: int) -> tf.Tensor:
    """Flat rows ``[N, ...]`` in image order -> ``[n, limit, ...]``: the first of each image, then zeros."""
    first = tf.cumsum(counts, exclusive=True)
    position = tf.range(tf.shape(rows)[0]) - tf.gather(first, image_index)
    inside = tf.where(position < limit)[:, 0]
    places = tf.gather(tf.stack([image_index, position], axis=1), inside)
    shape = tf.concat([[tf.shape(counts)[0], limit], tf.shape(rows)[1:]], axis=0)
    padded = tf.scatter_nd(places, tf.gather(rows, inside), shape)
    return tf.ensure_shape(padded, [counts.shape[0], limit, *rows.shape[1:]])


def normalised(boxes: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """xyxy pixels ``[n, M, 4]`` -> y1, x1, y2, x2 as fractions of each image, sizes ``[n, 2]`` (height, width)."""
    extent = tf.cast(tf.concat([sizes, sizes], axis=1), boxes.dtype)[:, None, :]
    return tf.gather(boxes, [1, 0, 3, 2], axis=2) / extent


class _Extents(NamedTuple):
    """(height, width) of the pictures of a request, int32."""

    network: tf.Tensor  # [n, 2], as the network sees them
    image: tf.Tensor  # [n, 2], as they came
    maps: tf.Tensor  # [2], of the largest one


def _map_outputs(
    model: D2Model, raw: Outputs, rows: Outputs, extents: _Extents, options: GraphOptions
) -> Outputs:
    """Answers with a value per pixel, image by image, padded to the largest image of the request."""
    config = model.config
    network_sizes, sizes, map_size = extents

    def one_image(i: tf.Tensor) -> Outputs:
        size, outputs = sizes[i], {}
        if "offset" in raw:
            one = {name: value[i][None] for name, value in raw.items()}
            fields = model.to_image(one, network_sizes[i], size)
            return maps.numbered_segments(fields, map_size, options.max_detections, options.sem_seg)
        if "detection_masks" in rows and options.masks in ("full", "png"):
            windows = rows.get("detection_mask_boxes", rows["detection_boxes"])
            count, paste = rows["num_detections"][i], maps.paste_of(config)
            sides = rows["detection_mask_sides"][i] if "detection_mask_sides" in rows else None
            found = maps.BoxMasks(rows["detection_masks"][i], windows[i], count, sides, paste)
            if options.masks == "full":
                outputs["detection_masks_full"] = maps.pad_map(
                    maps.pasted_masks(found, size), map_size, axis=1
                )
            else:
                outputs["detection_masks_png_bytes"] = maps.png_masks(found, size)
        if "sem_seg" in raw and (options.sem_seg != "none" or config.panoptic is not None):
            logits = maps.semantic_logits(raw["sem_seg"][i], network_sizes[i], size)
            labels = tf.argmax(logits, axis=-1, output_type=tf.int32)
            if options.sem_seg == "labels":
                outputs["sem_seg_labels"] = maps.pad_map(labels, map_size)
            elif options.sem_seg == "logits":
                outputs["sem_seg"] = maps.pad_map(tf.transpose(logits, [2, 0, 1]), map_size, axis=1)
            if config.panoptic is not None and "detection_masks" in rows:
                assert config.sem_seg_head is not None
                row = {name: value[i] for name, value in rows.items()}
                segments = maps.panoptic(config.panoptic, row, labels, config.sem_seg_head.num_classes)
                outputs |= segments | {"panoptic_seg": maps.pad_map(segments["panoptic_seg"], map_size)}
        return outputs

    return _stacked(one_image, tf.shape(sizes)[0])


def _stacked(function: Callable[[tf.Tensor], Outputs], count: tf.Tensor, at_once: int = 1) -> Outputs:
    """``function(0)``, ... stacked by name; at least one. Each may be large, so few are computed ``at_once``."""
    specs = tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec([], tf.int32))
    names = specs.structured_outputs
    if not names:
        return {}
    signature = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in names.items()}
    return tf.map_fn(function, tf.range(count), fn_output_signature=signature, parallel_iterations=at_once)


def _in_steps(
    function: Callable[[tf.Tensor, tf.Tensor], Outputs], count: tf.Tensor, length: tf.Tensor, at_once: int
) -> Outputs:
    """``function(start, end)`` for ranges of ``length`` images that cover ``count`` >= 1, joined by name."""
    limits = [tf.TensorSpec([], tf.int32)] * 2
    specs = tf.function(function, autograph=False).get_concrete_function(*limits).structured_outputs
    steps = (count + length - 1) // length
    arrays = {
        name: tf.TensorArray(s.dtype, steps, infer_shape=False, element_shape=s.shape)
        for name, s in specs.items()
    }

    def step(i: tf.Tensor, arrays: dict[str, tf.TensorArray]) -> tuple[tf.Tensor, dict[str, tf.TensorArray]]:
        answer = function(i * length, tf.minimum((i + 1) * length, count))
        return i + 1, {name: arrays[name].write(i, value) for name, value in answer.items()}

    _, arrays = tf.while_loop(lambda i, _: i < steps, step, (0, arrays), parallel_iterations=at_once)
    return {name: tf.ensure_shape(a.concat(), specs[name].shape) for name, a in arrays.items()}


def _finite(value: tf.Tensor) -> tf.Tensor:
    """No NaN or infinity leaves the server: JSON has no word for them."""
    if not value.dtype.is_floating:
        return value
    return tf.where(tf.math.is_finite(value), value, tf.zeros([], value.dtype))


# === Requests ===


class _Usable(NamedTuple):
    """Those pictures of a request that have an answer."""

    pixels: tf.TensorArray  # of all pictures, at network size
    chosen: tf.Tensor  # int32 [n], which of them
    network_sizes: tf.Tensor  # int32 [n, 2]
    sizes: tf.Tensor  # int32 [n, 2], as they came
    proposals: list[tf.Tensor]  # of [n, ...]


class Requests:
    """From a request to the core and back: resize, pad, leave out what cannot be used, put in order."""

    def __init__(self, config: ModelConfig, options: GraphOptions, core: Callable[..., Outputs]) -> None:
        self.config, self.options, self.core = config, options, core
        self.channels = len(config.input.pixel_mean)
        has_maps = config.sem_seg_head is not None or options.masks in ("full", "png")
        self.at_once = 1 if has_maps else _STEPS_AT_ONCE

    def from_tensors(self, inputs: tf.Tensor, *proposals: tf.Tensor) -> Outputs:
        """``inputs`` uint8 ``[B, H, W, C]``: RGB, or as many channels as the model has."""
        limit = self.options.max_image_pixels

        def picture(i: tf.Tensor) -> Picture:
            return picture_from_pixels(inputs[i], self.config.input, limit)

        return self._answer(picture, tf.shape(inputs)[0], proposals)

    def from_bytes(self, image_bytes: tf.Tensor, *proposals: tf.Tensor) -> Outputs:
        """``image_bytes`` string ``[B]``: JPEG, PNG, BMP or WebP files of any sizes."""
        limit = self.options.max_image_pixels

        def picture(i: tf.Tensor) -> Picture:
            return picture_from_bytes(image_bytes[i], self.config.input, limit)

        return self._answer(picture, tf.shape(image_bytes)[0], proposals)

    def _answer(
        self, picture: Callable[[tf.Tensor], Picture], count: tf.Tensor, proposals: tuple[tf.Tensor, ...]
    ) -> Outputs:
        blank = fitting.blank_size(self.config)
        dtype = pixel_dtype(self.config.input)
        pixels, network_sizes, sizes, status = _collect(picture, count, (*blank, self.channels), dtype)
        status = fitting.checked(self.config, status, network_sizes, OK, NOT_FITTING)
        status = self._checked(status[:count])
        usable = tf.cast(tf.where(status == OK)[:, 0], tf.int32)
        # The blank picture behind the last image keeps the model from running on an empty batch.
        chosen = tf.cond(tf.size(usable) > 0, lambda: usable, lambda: count[None])
        extra = [tf.gather(tf.pad(p, [[0, 1]] + [[0, 0]] * (p.shape.rank - 1)), chosen) for p in proposals]
        pictures = _Usable(pixels, chosen, tf.gather(network_sizes, chosen), tf.gather(sizes, chosen), extra)
        answers = self._each(pictures) if self.options.pad_independent else self._together(pictures)
        outputs = {name: _put_back(value, chosen, count) for name, value in answers.items()}
        for name in ("num_detections", "num_proposals"):
            if name in outputs:
                outputs[name] = tf.where(status == OK, outputs[name], -1)
        return outputs | {"image_size": sizes[:count], "image_status": status}

    def _checked(self, status: tf.Tensor) -> tf.Tensor:
        if self.options.bad_images == "status":
            return status
        legend = ", ".join(f"{code}: {text}" for code, text in STATUS_TEXT.items())
        assertion = tf.debugging.Assert(
            tf.reduce_all(status == OK),
            [f"unusable image in the request ({legend}); status of each image:", status],
        )
        with tf.control_dependencies([assertion]):
            return tf.identity(status)

    def _together(self, pictures: _Usable) -> Outputs:
        """All pictures on canvases of one size, as detectron2 batches them."""
        pixels, chosen, network_sizes, sizes, proposals = pictures
        largest, map_size = tf.reduce_max(network_sizes, axis=0), tf.reduce_max(sizes, axis=0)
        canvas = tf.map_fn(
            lambda i: maps.pad_map(pixels.read(i), largest),
            chosen,
            fn_output_signature=tf.TensorSpec([None, None, self.channels], pixel_dtype(self.config.input)),
        )

        def step(start: tf.Tensor, end: tf.Tensor) -> Outputs:
            part = slice(start, end)
            extra = [p[part] for p in proposals]
            return self.core(canvas[part], network_sizes[part], sizes[part], map_size, *extra)

        count = tf.shape(chosen, out_type=tf.int64)[0]
        fitting = self.options.step_pixels // tf.reduce_prod(tf.cast(largest, tf.int64))
        length = tf.cast(tf.clip_by_value(fitting, 1, count), tf.int32)
        return _in_steps(step, tf.cast(count, tf.int32), length, self.at_once)

    def _each(self, pictures: _Usable) -> Outputs:
        """Every picture on a canvas of its own."""
        pixels, chosen, network_sizes, sizes, proposals = pictures
        map_size = tf.reduce_max(sizes, axis=0)

        def one_image(i: tf.Tensor) -> Outputs:
            part = slice(i, i + 1)
            canvas = pixels.read(chosen[i])[None]
            extra = [p[part] for p in proposals]
            answer = self.core(canvas, network_sizes[part], sizes[part], map_size, *extra)
            return {name: value[0] for name, value in answer.items()}

        return _stacked(one_image, tf.shape(chosen)[0], self.at_once)


def _collect(
    picture: Callable[[tf.Tensor], Picture],
    count: tf.Tensor,
    blank: tuple[int, int, int],
    dtype: tf.DType,
) -> tuple[tf.TensorArray, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Pixels, network sizes, sizes and status of every image, and of a ``blank`` one ``(h, w, C)`` after the last."""
    pixels = tf.TensorArray(
        dtype, count + 1, infer_shape=False, element_shape=[None, None, blank[2]], clear_after_read=False
    )
    facts = tf.TensorArray(tf.int32, count + 1, element_shape=[5])

    def step(i: tf.Tensor, pixels: tf.TensorArray, facts: tf.TensorArray) -> tuple[object, ...]:
        result = picture(i)
        row = tf.concat([result.network_size, result.size, result.status[None]], axis=0)
        return i + 1, pixels.write(i, result.pixels), facts.write(i, row)

    start = (0, pixels, facts)
    _, pixels, facts = tf.while_loop(lambda i, *_: i < count, step, start, parallel_iterations=2)
    pixels = pixels.write(count, tf.zeros(blank, dtype))
    height, width = blank[:2]
    table = facts.write(count, tf.constant([height, width, height, width, OK])).stack()  # [B + 1, 5]
    return pixels, table[:, :2], table[:, 2:4], table[:, 4]


def _put_back(rows: tf.Tensor, chosen: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Answers of the chosen images at their places among all; the others are zero (empty strings)."""
    shape = tf.concat([(count + 1)[None], tf.shape(rows)[1:]], axis=0)
    if rows.dtype == tf.bool:
        placed = tf.scatter_nd(chosen[:, None], tf.cast(rows, tf.int32), shape) > 0
    else:
        placed = tf.scatter_nd(chosen[:, None], rows, shape)
    return tf.ensure_shape(placed[:count], [None, *rows.shape[1:]])
