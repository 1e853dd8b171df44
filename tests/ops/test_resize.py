"""ResizeShortestEdge: sizes against exact hand cases, pixels against Pillow itself, byte by byte."""

from fractions import Fraction

import numpy as np
import PIL
import pytest
import tensorflow as tf
from PIL import Image

from tf_d2.ops.resize import resize_float, resize_uint8, shortest_edge_size, shortest_edge_size_tf

_SCALARS = [tf.TensorSpec([], tf.int32)] * 2
_resize_graph = tf.function(
    resize_uint8, input_signature=[tf.TensorSpec([None, None, None], tf.uint8), *_SCALARS]
)
_size_graph = tf.function(shortest_edge_size_tf, input_signature=[tf.TensorSpec([], tf.int32)] * 4)

LIMITS = [(300, 500), (64, 100), (17, 40)]
PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13

# Recorded from detectron2 at shortest side 800, longest 1333.
SIZES = [
    ((427, 640), (800, 1199)),
    ((480, 640), (800, 1067)),
    ((640, 480), (1067, 800)),
    ((1080, 1920), (750, 1333)),
    ((1024, 2048), (667, 1333)),
    ((100, 10000), (13, 1333)),
    ((3, 5000), (1, 1333)),
    ((1, 1), (800, 800)),
    ((2, 1), (1333, 667)),
    ((1, 5000), (0, 1333)),
    ((258, 141), (1333, 728)),  # 729 in exact arithmetic
    ((27, 86), (418, 1333)),  # 419 in exact arithmetic
]


def pillow_resize(image: np.ndarray, new_h: int, new_w: int) -> np.ndarray:
    picture = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
    resized = np.asarray(picture.resize((new_w, new_h), Image.Resampling.BILINEAR))
    return resized.reshape(new_h, new_w, image.shape[2])


def random_image(rng: np.random.Generator, height: int, width: int, channels: int = 3) -> np.ndarray:
    noise = rng.integers(0, 256, (height, width, channels), np.uint8)
    return (noise // 128 * 255).astype(np.uint8) if rng.random() < 0.3 else noise  # saturated: rounds at 255


@pytest.mark.parametrize("size, expected", SIZES)
def test_shortest_edge_size_recorded(size, expected):
    assert shortest_edge_size(*size, 800, 1333) == expected


def test_shortest_edge_size_graph_gives_the_same_integers():
    rng = np.random.default_rng(0)
    cases = [(*size, 800, 1333) for size, _ in SIZES] + rng.integers(1, 6000, (600, 4)).tolist()
    cases += [(h, w, 0, 1333) for h, w in rng.integers(1, 3000, (5, 2)).tolist()]
    for case in cases:
        expected = shortest_edge_size(*case)
        assert tuple(int(v) for v in _size_graph(*case)) == expected, case
    assert tuple(int(v) for v in shortest_edge_size_tf(*cases[0])) == shortest_edge_size(*cases[0])
    assert _size_graph.experimental_get_tracing_count() == 1


def test_shortest_edge_size_keeps_float64_rounding():
    """Exact rational arithmetic gives another integer for these: the float order is part of the semantics."""
    s = Fraction(800, 141)
    t = Fraction(1333) / (s * 258)
    assert int(800 * t + Fraction(1, 2)) == 729
    assert shortest_edge_size(258, 141, 800, 1333) == (1333, 728)


def test_shortest_edge_size_zero_disables_and_bad_sizes_are_refused():
    assert shortest_edge_size(5, 9000, 0, 10) == (5, 9000)
    with pytest.raises(ValueError, match="at least 1 pixel"):
        shortest_edge_size(0, 10, 800, 1333)
    with pytest.raises(ValueError, match="not negative"):
        shortest_edge_size(10, 10, -1, 1333)


def test_resize_uint8_equals_pillow_on_aspect_preserving_shapes():
    rng = np.random.default_rng(1)
    for _ in range(250):
        height, width = rng.integers(1, 260, 2).tolist()
        if not PILLOW_13 and height > 2 * width:
            continue
        new_h, new_w = shortest_edge_size(height, width, *LIMITS[rng.integers(3)])
        if min(new_h, new_w) == 0:
            continue
        image = random_image(rng, height, width, int(rng.choice([1, 3])))
        np.testing.assert_array_equal(_resize_graph(image, new_h, new_w), pillow_resize(image, new_h, new_w))
    assert _resize_graph.experimental_get_tracing_count() == 1


@pytest.mark.skipif(not PILLOW_13, reason="Pillow before 13 always runs the horizontal pass first")
def test_resize_uint8_equals_pillow_on_any_shape():
    rng = np.random.default_rng(2)
    for _ in range(250):
        height, width, new_h, new_w = rng.integers(1, 150, 4).tolist()
        image = random_image(rng, height, width)
        np.testing.assert_array_equal(_resize_graph(image, new_h, new_w), pillow_resize(image, new_h, new_w))


@pytest.mark.parametrize(
    "size, new_size",
    [
        ((480, 640), (800, 1067)),
        ((1080, 1920), (750, 1333)),
        ((1600, 800), (1333, 667)),
        ((2340, 1080), (1333, 615)),
        ((3, 5000), (1, 1333)),
        ((100, 10000), (13, 1333)),
        ((1, 1), (800, 800)),
        ((20000, 1), (1, 1)),
        ((2, 20000), (2, 3)),
        ((37, 53), (37, 53)),
    ],
)
@pytest.mark.parametrize("fill", [None, 255])
def test_resize_uint8_equals_pillow_at_real_and_extreme_sizes(size, new_size, fill):
    if not PILLOW_13 and size[0] >= 2 * size[1]:
        pytest.skip("Pillow before 13 always runs the horizontal pass first")
    rng = np.random.default_rng(3)
    image = (
        rng.integers(0, 256, (*size, 3), np.uint8) if fill is None else np.full((*size, 3), fill, np.uint8)
    )
    expected = pillow_resize(image, *new_size)
    np.testing.assert_array_equal(_resize_graph(image, *new_size), expected)
    np.testing.assert_array_equal(resize_uint8(image, *new_size), expected)


def test_static_sizes_in_a_graph_give_the_same_result():
    """Constants invite the graph optimiser to rewrite float arithmetic."""
    rng = np.random.default_rng(5)
    unknown = [tf.TensorSpec([None, None, 3], tf.uint8)]
    for new_h, new_w, height, width in [(49, 91, 21, 39), (21, 39, 147, 273), (70, 133, 30, 57)]:
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        graph = tf.function(lambda x, h=new_h, w=new_w: resize_uint8(x, h, w), input_signature=unknown)
        np.testing.assert_array_equal(graph(image), pillow_resize(image, new_h, new_w))
    sizes = tf.function(
        lambda h, w: shortest_edge_size_tf(h, w, 800, 1333), input_signature=[tf.TensorSpec([], tf.int32)] * 2
    )
    for size, expected in SIZES:
        assert tuple(int(v) for v in sizes(*size)) == expected


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("size", [(33, 20), (61, 40), (12, 9), (31, 17), (31, 20), (7, 60)])
def test_the_last_of_two_or_four_channels_is_an_opacity(channels: int, size: tuple[int, int]) -> None:
    """As to Pillow, whose LA and RGBA such arrays are to detectron2."""
    rng = np.random.default_rng(4)
    image = rng.integers(0, 256, (31, 17, channels), np.uint8)
    image[3:9, :, -1], image[20:25, 4:, -1] = 0, 255
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(_resize_graph(image, *size), expected)
    np.testing.assert_array_equal(resize_uint8(image, *size), expected)


def test_more_than_four_channels_are_refused() -> None:
    image = np.zeros((4, 5, 5), np.uint8)
    with pytest.raises(TypeError):
        Image.fromarray(image)
    with pytest.raises(ValueError, match="1 to 4 channels, got 5"):
        resize_uint8(image, 7, 7)
    with pytest.raises(tf.errors.InvalidArgumentError, match="too many channels"):
        _resize_graph(image, 7, 7)


def test_resize_uint8_refuses_what_pillow_refuses():
    image = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a side is 0"):
        _resize_graph(image, 0, 7)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a side is 0"):
        resize_uint8(np.zeros((0, 5, 3), np.uint8), 7, 7)
    with pytest.raises(ValueError, match="uint8"):
        resize_uint8(image.astype(np.float32), 7, 7)
    with pytest.raises(ValueError, match=r"\[H,W,C\]"):
        resize_uint8(image[0], 7, 7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_resize_float_has_no_antialiasing(dtype):
    ramp = np.arange(8, dtype=dtype).reshape(1, 8, 1)
    resized = resize_float(ramp, 1, 2)
    assert resized.dtype == dtype
    np.testing.assert_array_equal(np.ravel(resized), [1.5, 5.5])  # two taps each, not a mean over 4
    with pytest.raises(TypeError, match="int32"):
        resize_float(np.zeros((2, 2, 1), np.int32), 4, 4)
