"""Requests around a core that shows what it was given, and the padding of rows."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tf_d2
from tf_d2.config import load_config
from tf_d2.serving import decode, graph
from tf_d2.serving.graph import GraphOptions, Requests

from .conftest import DEMO

CONFIG = load_config(DEMO / "shapes.yaml")  # shortest side 192, longest 288, BGR
SIDE = 300  # of the canvas that the core below shows


def showing_core(canvas: Any, network_sizes: Any, sizes: Any, map_size: Any, *rest: Any) -> Any:
    """Everything the core is called with, as outputs."""
    shape = tf.shape(canvas)
    shown = tf.pad(canvas, [[0, 0], [0, SIDE - shape[1]], [0, SIDE - shape[2]], [0, 0]])
    outputs = {
        "canvas": tf.ensure_shape(shown, [canvas.shape[0], SIDE, SIDE, 3]),
        "canvas_size": tf.repeat(shape[None, 1:3], shape[0], axis=0),
        "network_sizes": network_sizes,
        "sizes": sizes,
        "map_size": tf.repeat(map_size[None], shape[0], axis=0),
        "num_detections": sizes[:, 0],
        "together": tf.fill(shape[:1], shape[0]),
        "text_bytes": tf.strings.as_string(sizes[:, :1]),
        "flag": sizes > 0,
    }
    for i, value in enumerate(rest):
        outputs[f"proposals{i}"] = value
    return outputs


@cache
def call(pad_independent: bool, bad_images: str = "status", proposals: bool = False) -> Callable[..., Any]:
    more: dict[str, Any] = {"bad_images": bad_images, "step_pixels": 2**20}
    options = GraphOptions(5, pad_independent=pad_independent, max_image_pixels=60_000, **more)
    core = showing_core
    if pad_independent:
        core = tf.function(showing_core, input_signature=graph.core_specs(CONFIG, options), autograph=False)
    specs = [tf.TensorSpec([None], tf.string)]
    if proposals:
        specs += [tf.TensorSpec([None, None, 4], tf.float32), tf.TensorSpec([None], tf.int32)]
    function = tf.function(Requests(CONFIG, options, core).from_bytes, input_signature=specs, autograph=False)
    return lambda *arguments: {name: value.numpy() for name, value in function(*arguments).items()}


def answer(requests: Requests, pictures: list[Image.Image]) -> dict[str, np.ndarray]:
    """To pictures that are decoded already: the graph that decodes all kinds of files takes longest to make."""
    height, width = (max(picture.size[axis] for picture in pictures) for axis in (1, 0))
    pixels = np.zeros((len(pictures), height, width, 3), np.uint8)
    sizes = np.array([picture.size[::-1] for picture in pictures], np.int32)
    for row, picture, (tall, wide) in zip(pixels, pictures, sizes, strict=True):
        row[:tall, :wide] = np.asarray(picture)

    def function(pixels: tf.Tensor, sizes: tf.Tensor) -> dict[str, tf.Tensor]:
        def picture(i: tf.Tensor) -> decode.Picture:
            own = pixels[i, : sizes[i, 0], : sizes[i, 1]]
            return decode.picture_from_pixels(own, CONFIG.input, requests.options.max_image_pixels)

        return requests._answer(picture, tf.shape(pixels)[0], ())

    specs = [tf.TensorSpec([None, None, None, 3], tf.uint8), tf.TensorSpec([None, 2], tf.int32)]
    outputs = tf.function(function, input_signature=specs, autograph=False)(pixels, sizes)
    return {name: value.numpy() for name, value in outputs.items()}


def image(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 255, (height, width, 3), np.uint8))


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [image(100, 150), image(150, 100), image(64, 64)]
NETWORK = [(192, 288), (288, 192), (192, 192)]


@pytest.mark.parametrize("pad_independent", [False, pytest.param(True, marks=pytest.mark.wide)])
def test_canvas_and_order(pad_independent: bool) -> None:
    files = [png(IMAGES[0]), b"broken", png(IMAGES[1]), png(image(300, 300)), png(IMAGES[2])]
    outputs = call(pad_independent)(files)
    good = [0, 2, 4]
    assert outputs["image_status"].tolist() == [0, 1, 0, 2, 0]
    assert outputs["num_detections"].tolist() == [100, -1, 150, -1, 64]
    assert outputs["image_size"].tolist() == [[100, 150], [0, 0], [150, 100], [0, 0], [64, 64]]
    assert outputs["text_bytes"].tolist() == [[b"100"], [b""], [b"150"], [b""], [b"64"]]
    assert outputs["flag"][:, 0].tolist() == [True, False, True, False, True]
    np.testing.assert_array_equal(outputs["network_sizes"][good], NETWORK)
    np.testing.assert_array_equal(outputs["sizes"], outputs["image_size"])
    assert (outputs["map_size"][good] == [150, 150]).all()
    expected = NETWORK if pad_independent else [(288, 288)] * 3
    np.testing.assert_array_equal(outputs["canvas_size"][good], expected)
    for row, picture, (height, width) in zip(good, IMAGES, NETWORK, strict=True):
        canvas = outputs["canvas"][row]
        resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))[:, :, ::-1]
        np.testing.assert_array_equal(canvas[:height, :width], resized)
        assert not canvas[height:].any()
        assert not canvas[:, width:].any()
    assert not outputs["canvas"][[1, 3]].any()


@cache
def in_steps(step_pixels: int) -> dict[str, np.ndarray]:
    options = GraphOptions(5, max_image_pixels=60_000, step_pixels=step_pixels)
    return answer(Requests(CONFIG, options, showing_core), [*IMAGES, IMAGES[1], IMAGES[0]])


@pytest.mark.parametrize(
    ("step_pixels", "together"),
    [(1, [1, 1, 1, 1, 1]), (2 * 288**2 + 1, [2, 2, 2, 2, 1]), (5 * 288**2, [5] * 5), (2**31 - 1, [5] * 5)],
)
def test_a_batch_goes_through_in_steps(step_pixels: int, together: list[int]) -> None:
    """288 x 288 is the size of the canvas here."""
    outputs, whole = dict(in_steps(step_pixels)), dict(in_steps(2**20))
    assert outputs.pop("together").tolist() == together
    assert whole.pop("together").tolist() == [5] * 5
    for name, value in whole.items():
        np.testing.assert_array_equal(outputs[name], value, err_msg=name)


@pytest.mark.wide
def test_steps_of_the_model_give_what_the_batch_gives() -> None:
    """With strings among the outputs."""
    model = tf_d2.load_model(DEMO / "shapes.yaml", DEMO / "shapes.pkl")
    picture = Image.open(DEMO / "shapes.png").convert("RGB")
    nothing = Image.new("RGB", (0, 0))
    pictures = [picture, nothing, picture.crop((40, 60, 340, 300)), picture.crop((0, 0, 200, 300))]
    either = [
        GraphOptions(100, "png", "none", max_image_pixels=10**6, step_pixels=pixels)
        for pixels in (1, 2**31 - 1)
    ]
    core = tf.function(
        graph.core_function(model, either[0]),
        input_signature=graph.core_specs(CONFIG, either[0]),
        autograph=False,
    )
    one, all_at_once = (answer(Requests(CONFIG, options, core), pictures) for options in either)
    assert one["num_detections"].tolist() == all_at_once["num_detections"].tolist()
    assert (one["num_detections"] > 0).tolist() == [True, False, True, True]
    masks = [decoded(either.pop("detection_masks_png_bytes")) for either in (one, all_at_once)]
    unlike = [np.sum(a != b) for a, b in zip(*masks, strict=True)]
    # A pixel whose probability is one half but for rounding, which depends on how many pictures a kernel is given.
    assert max(unlike) <= 1 and np.sum(unlike) <= 3
    for name, value in all_at_once.items():
        if value.dtype == np.float32:
            np.testing.assert_allclose(one[name], value, rtol=0, atol=1e-4, err_msg=name)
        else:
            np.testing.assert_array_equal(one[name], value, err_msg=name)


def decoded(masks: np.ndarray) -> list[np.ndarray]:
    """Pixels of each PNG file; none of an empty string."""
    return [np.asarray(Image.open(io.BytesIO(png))) if png else np.zeros(0) for png in masks.ravel()]


@pytest.mark.parametrize(
    ("sem_seg_head", "masks", "at_once"),
    [(False, "roi", 2), (False, "png", 1), (False, "full", 1), (True, "roi", 1)],
)
def test_images_with_large_maps_are_computed_alone(sem_seg_head: bool, masks: Any, at_once: int) -> None:
    config = CONFIG
    if sem_seg_head:
        config = load_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x")
    options = GraphOptions(5, masks, max_image_pixels=60_000)
    assert Requests(config, options, showing_core).at_once == at_once


@pytest.mark.parametrize("pad_independent", [pytest.param(False, marks=pytest.mark.wide), True])
def test_no_usable_image(pad_independent: bool) -> None:
    run = call(pad_independent)
    outputs = run([b"", b"x"])
    assert outputs["num_detections"].tolist() == [-1, -1]
    assert not outputs["canvas"].any()
    assert {len(value) for value in run(np.zeros(0, object)).values()} == {0}


def test_bad_image_can_fail_the_request() -> None:
    run = call(False, "error")
    assert run([png(IMAGES[0])])["num_detections"].tolist() == [100]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"unusable image .* \[0 1\]"):
        run([png(IMAGES[0]), b"x"])


def test_proposals_follow_their_image() -> None:
    boxes = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    counts = np.array([2, 1, 0], np.int32)
    outputs = call(False, proposals=True)([png(IMAGES[0]), b"x", png(IMAGES[2])], boxes, counts)
    np.testing.assert_array_equal(outputs["proposals0"][[0, 2]], boxes[[0, 2]])
    np.testing.assert_array_equal(outputs["proposals1"], [2, 0, 0])


# === Rows ===


def test_pad_rows_by_hand() -> None:
    rows = tf.constant([[1.0], [2], [3], [4], [5]])
    padded = graph.pad_rows(rows, tf.constant([0, 0, 0, 2, 2]), tf.constant([3, 0, 2]), 2)
    np.testing.assert_array_equal(padded[..., 0], [[1, 2], [0, 0], [4, 5]])


def test_normalised_boxes_by_hand() -> None:
    boxes = tf.constant([[[10.0, 20, 30, 40], [0, 0, 0, 0]], [[5, 5, 10, 10], [0, 0, 0, 0]]])
    found = graph.normalised(boxes, tf.constant([[80, 40], [10, 20]]))
    np.testing.assert_array_equal(found, [[[0.25, 0.25, 0.5, 0.75], [0] * 4], [[0.5, 0.25, 1, 0.5], [0] * 4]])


def test_outputs_are_finite() -> None:
    values = tf.constant([1.0, np.nan, np.inf, -np.inf])
    assert graph._finite(values).numpy().tolist() == [1, 0, 0, 0]
    assert graph._finite(tf.constant([3])).numpy().tolist() == [3]
