"""3x3 convolutions by Winograd's way, against the sums that define it and against float64."""

import os
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import tensorflow as tf

from tf_d2 import kernels
from tf_d2.ops import conv, device, onednn, winograd


def exact(matrix):
    """Thirds and fifteenths as they were meant."""
    return [[Fraction(float(v)).limit_denominator(1024) for v in row] for row in matrix]


def test_the_matrices_give_a_convolution_exactly():
    rng = np.random.default_rng(0)
    rows = [Fraction(int(v)) for v in rng.integers(-99, 99, 6)]
    kernel = [Fraction(int(v)) for v in rng.integers(-99, 99, 3)]

    def product(matrix, vector) -> list[Fraction]:
        return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction()) for row in matrix]

    parts = product(exact(winograd.OF_DIFFERENCES), [b - a for a, b in pairwise(rows)])
    parts[winograd.POINT_ONE] += rows[winograd.BASE]
    of_kernel = product(exact(winograd.OF_KERNEL), kernel)
    result = product(exact(winograd.SUMS), [a * b for a, b in zip(parts, of_kernel, strict=True)])
    assert result == [sum(rows[i + j] * kernel[j] for j in range(3)) for i in range(4)]


def test_tiles_lie_behind_products():
    of_differences, sums = winograd._of_tiles(2)
    assert np.array_equal(of_differences[1::2, 4:], of_differences[::2, :5])
    assert np.array_equal(of_differences[::2, :5], winograd.OF_DIFFERENCES)
    assert np.array_equal(sums[4:, 1::2], winograd.SUMS)
    assert not sums[:4, 1::2].any()


@pytest.fixture(params=[False, True], ids=["plain", "kept"])
def keep(request) -> bool:
    """Whether weights are kept: a Predictor's graph of oneDNN's operations, or an export's."""
    if request.param and not onednn.available(tf.float32):
        pytest.skip("no x86-64 CPU alone, a build without oneDNN, or TF_ENABLE_ONEDNN_OPTS=0")
    return request.param


def traced(function, weights, bias, keep):
    """``function(x, weights, bias)`` in a graph for answers, for maps of any size."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, weights.shape[2]])], autograph=False)
    def call(x):
        with onednn.keep_weights(keep), winograd.for_answers():
            return function(x, tf.constant(weights), None if bias is None else tf.constant(bias))

    return call


def layer(channels_in, channels, seed=1):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((3, 3, channels_in, channels)) * np.sqrt(2 / (9 * channels_in))
    return weights.astype(np.float32), rng.standard_normal(channels).astype(np.float32)


def direct64(x, weights, bias, relu):
    y = tf.nn.conv2d(tf.constant(x, tf.float64), tf.constant(weights, tf.float64), 1, "SAME").numpy()
    y = y if bias is None else y + bias
    return np.maximum(y, 0) if relu else y


# Heights around the multiples of a tile's and a step's rows, more than one image, one column.
SHAPES = [(1, h, 5) for h in (1, 2, 3, 4, 5, 7, 8, 9, 11, 15, 16, 17, 40)] + [
    (3, 10, 6),
    (2, 16, 3),
    (1, 9, 1),
]


@pytest.mark.parametrize(("with_bias", "relu"), [(True, True), (True, False), (False, True), (False, False)])
def test_conv3x3_against_float64(keep, with_bias, relu):
    weights, bias = layer(48, 32)
    bias = bias if with_bias else None
    call = traced(lambda x, w, b: winograd.conv3x3(x, w, b, relu), weights, bias, keep)
    for shape in SHAPES:
        x = np.random.default_rng(2).standard_normal((*shape, 48)).astype(np.float32)
        expected = direct64(x, weights, bias, relu)
        found = call(tf.constant(x)).numpy()
        assert found.shape == expected.shape, shape
        # Sums of 144 and of 6 terms, the latter of numbers up to four times as large as the result.
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < 4 * np.sqrt(144 + 6) * np.finfo(np.float32).eps / 2, (shape, error)


_TWO_PICTURES = """
import sys
import numpy as np
import tensorflow as tf
from tf_d2.ops import onednn, winograd
rng = np.random.default_rng(0)
draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
weights, bias = tf.Variable(draw(3, 3, 32, 16)), tf.Variable(draw(16))

@tf.function(input_signature=[tf.TensorSpec([1, None, None, 32])], autograph=False)
def call(x):
    with onednn.keep_weights(sys.argv[1] == "True"):
        return winograd.conv3x3(x, weights.read_value(), bias.read_value(), relu=True)

for x in (draw(1, 30, 9, 32), draw(1, 30, 9, 32), draw(1, 21, 11, 32)):
    y = tf.nn.conv2d(tf.cast(x, tf.float64), tf.cast(weights, tf.float64), 1, "SAME") + tf.cast(bias, tf.float64)
    print(np.abs(call(x).numpy() - tf.nn.relu(y).numpy()).max() / np.abs(y).max())
"""


@pytest.mark.parametrize("frozen", [pytest.param("0", marks=pytest.mark.wide), "1"])
def test_only_the_weights_are_kept(keep, frozen):
    """TF_ONEDNN_ASSUME_FROZEN_WEIGHTS, which tf-d2 sets, has some operations keep any second factor: every step and
    picture after the first would get the first one's sums."""
    done = subprocess.run(
        [sys.executable, "-c", _TWO_PICTURES, str(keep)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env=os.environ | {kernels.FROZEN_WEIGHTS: frozen},
    )
    errors = [float(text) for text in done.stdout.split()]
    assert len(errors) == 3
    assert max(errors) < 1e-5


def test_the_error_is_of_the_size_of_the_direct_ones(keep):
    weights, bias = layer(256, 128)
    x = np.maximum(np.random.default_rng(3).standard_normal((1, 40, 24, 256)), 0).astype(np.float32)
    truth = direct64(x, weights, bias, relu=False)
    fast, direct = (
        np.linalg.norm(traced(f, weights, bias, keep)(tf.constant(x)).numpy() - truth) / np.linalg.norm(truth)
        for f in (
            lambda x, w, b: winograd.conv3x3(x, w, b, relu=False),
            lambda x, w, b: conv.conv2d(x, w, b, padding=1),
        )
    )
    if keep:  # both add term after term
        assert fast < 2.5 * direct
    # Without oneDNN TensorFlow adds the direct convolution in short sums, at a third of a long one's error.
    assert fast < np.sqrt(3 * 256) * np.finfo(np.float32).eps / 2


@pytest.mark.parametrize(
    ("channels", "height", "width"), [(128, 50, 9), (128, 40, 160), (256, 24, 76), (256, 24, 152)]
)
def test_what_is_constant_stays_constant(keep, monkeypatch, channels, height, width):
    """Cells that see the same are equal bit for bit, as they are in detectron2, where they tie: by this way, or, where
    TensorFlow's convolutions are not even, because the plain one is taken."""
    monkeypatch.setattr(winograd, "_CELLS", 100)
    monkeypatch.setattr(winograd, "_columns", lambda kernel: 0.0)
    weights, bias = layer(channels, 128)
    cell = np.random.default_rng(4).standard_normal(channels).astype(np.float32)
    x = np.broadcast_to(cell, (1, height, width, channels))
    y = traced(lambda x, w, b: conv.conv2d(x, w, b, padding=1, large_maps=True), weights, bias, keep)
    # All cells but those that see the zeros around the map: there a tile of four rows has its own rounding.
    inside = y(tf.constant(x)).numpy()[0, 4 : (height - 1) // 4 * 4, 1:-1]
    assert (inside == inside[:1, :1]).all()


def test_convolutions_that_are_not_even_are_noticed(monkeypatch):
    kernel, bias = (tf.constant(a) for a in layer(32, 16))
    assert winograd.even(tf.constant(9), kernel, bias)

    def uneven(x, kernel, bias):
        y = tf.nn.conv2d(x, kernel, 1, "SAME").numpy()
        y[1, 0, 7, 3] = np.nextafter(y[1, 0, 7, 3], np.float32(9))
        return tf.constant(y)

    monkeypatch.setattr(winograd, "_along", uneven)
    assert not winograd.even(tf.constant(9), kernel, bias)


def operations(function):
    graph = function.get_concrete_function().graph.as_graph_def()
    return {node.op for node in [*graph.node, *(n for f in graph.library.function for n in f.node_def)]}


def test_conv2d_looks_at_the_size(keep, monkeypatch):
    monkeypatch.setattr(kernels, "onednn_isa", lambda: "AVX2")
    monkeypatch.setattr(winograd, "_CELLS", 100)
    monkeypatch.setattr(winograd, "_WORK", {"AVX2": 1})
    monkeypatch.setattr(winograd, "_WORK_ANYWHERE", 1)
    monkeypatch.setattr(winograd, "even", lambda *_: tf.constant(True))
    weights, bias = layer(128, 128)
    plain, both, fast = (
        traced(function, weights, bias, keep)
        for function in (
            lambda x, w, b: conv.conv2d(x, w, b, padding=1, relu=True),
            lambda x, w, b: conv.conv2d(x, w, b, padding=1, relu=True, large_maps=True),
            lambda x, w, b: winograd.conv3x3(x, w, b, relu=True),
        )
    )
    for shape, same in (((1, 9, 11, 128), plain), ((1, 10, 10, 128), fast), ((2, 5, 10, 128), plain)):
        x = tf.constant(np.random.default_rng(5).standard_normal(shape).astype(np.float32))
        assert np.array_equal(both(x).numpy(), same(x).numpy())
    assert operations(both) & {"If", "StatelessIf"}
    assert not operations(plain) & {"If", "StatelessIf"}


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({}, True),
        ({"channels": (96, 128)}, False),
        ({"channels": (2048, 2048)}, False),
        ({"isa": "AVX512_CORE"}, True),
        ({"dtype": tf.bfloat16}, False),
        ({"kernel": 5}, False),
        ({"groups": 2}, False),
    ],
)
def test_where_it_pays(keep, monkeypatch, change, asked):
    monkeypatch.setattr(kernels, "onednn_isa", lambda: change.get("isa", "AVX2"))
    first, last = change.get("channels", (256, 256))
    size, dtype = change.get("kernel", 3), change.get("dtype", tf.float32)

    @tf.function(autograph=False)
    def call():
        x = tf.zeros([1, 8, 8, first], dtype)
        kernel = tf.zeros([size, size, first // change.get("groups", 1), last], dtype)
        with onednn.keep_weights(keep):
            assert not winograd.pays(x, kernel)  # its gradient may be asked for
            with winograd.for_answers():
                assert winograd.pays(x, kernel) == asked
            with winograd.for_answers(on_cpu=False):
                assert not winograd.pays(x, kernel)
        return x

    call.get_concrete_function()
    with winograd.for_answers():
        assert not winograd.pays(tf.zeros([1, 8, 8, 256]), tf.zeros([3, 3, 256, 256]))  # computed at once


def test_kept_weights_ask_for_a_known_processor(keep, monkeypatch):
    """An export is for any: it asks as much of a map wherever it is made."""
    monkeypatch.setattr(kernels, "onednn_isa", lambda: None)

    @tf.function(autograph=False)
    def call():
        x, kernel = tf.zeros([1, 8, 8, 256]), tf.zeros([3, 3, 256, 256])
        with onednn.keep_weights(keep), winograd.for_answers():
            assert winograd.pays(x, kernel) != keep
        return x

    call.get_concrete_function()


def test_not_on_a_gpu(monkeypatch):
    monkeypatch.setattr(device, "on_gpu", lambda: tf.constant(True))
    x, kernel = tf.zeros([1, 200, 304, 1]), tf.zeros([3, 3, 256, 256])
    assert not winograd.large(x, kernel, None)
    monkeypatch.setattr(device, "on_gpu", lambda: False)
    assert winograd.large(x, kernel, None)


WIDE = "avx avx2 fma avx512f avx512dq avx512bw avx512vl"


@pytest.mark.parametrize(
    ("flags", "limit", "found"),
    [
        ("avx avx2 fma", "", "AVX2"),
        (WIDE, "", "AVX512_CORE"),
        ("avx avx2 fma avx512f avx512cd", "", "AVX2"),  # oneDNN asks for more of AVX-512
        (WIDE, "AVX2", "AVX2"),
        (WIDE, "avx2_vnni", "AVX2"),
        (WIDE, "AVX512_CORE", "AVX512_CORE"),
        ("avx", "", None),
        (WIDE, "SSE41", None),
        (None, "", None),
    ],
)
def test_the_instruction_set_is_the_one_onednn_takes(flags, limit, found, monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"processor : 0\nmodel name : x\nflags\t\t: {flags}\nbugs :\n")
    monkeypatch.setattr(kernels, "_CPUINFO", cpuinfo)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    assert kernels.onednn_isa.__wrapped__() == found


@pytest.mark.parametrize(
    ("found", "threads", "columns"),
    # 8 rows of 256 channels: 9.4 million operations a column.
    [
        ("AVX2", 2, 22),
        ("AVX2", 16, 170),
        ("AVX512_CORE", 2, 64),
        ("AVX512_CORE", 8, 255),
        ("anywhere", 8, 64),
    ],
)
def test_more_threads_ask_for_wider_maps(found, threads, columns, monkeypatch):
    monkeypatch.setattr(kernels, "onednn_isa", lambda: found)
    monkeypatch.setattr(kernels, "threads", lambda: threads)
    monkeypatch.setattr(onednn, "active", lambda dtype: found != "anywhere")
    kernel = tf.zeros([3, 3, 256, 256])
    for width, large in ((columns, True), (columns - 1, False)):
        assert bool(winograd.large(tf.zeros([1, 3000, width, 1]), kernel, None)) == large
    assert not winograd.large(tf.zeros([1, 4, 700, 1]), kernel, None)


def test_threads_are_those_asked_for(monkeypatch):
    monkeypatch.setattr(tf.config.threading, "get_intra_op_parallelism_threads", lambda: 0)
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    cores = kernels.threads()
    assert 1 <= cores <= (os.cpu_count() or 1)
    for asked, found in (("3", 3), ("0", cores), ("many", cores), ("", cores)):
        monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", asked)
        assert kernels.threads() == found
    monkeypatch.setattr(tf.config.threading, "get_intra_op_parallelism_threads", lambda: 5)
    assert kernels.threads() == 5
