"""oneDNN's operations asked for directly, against TensorFlow's own kernels in float64."""

import platform

import numpy as np
import pytest
import tensorflow as tf

import tf_d2
from tf_d2.ops import conv, onednn


@pytest.fixture(autouse=True, scope="module")
def there():
    if not onednn.available(tf.float32):
        pytest.skip("no x86-64 CPU alone, a build without oneDNN, or TF_ENABLE_ONEDNN_OPTS=0")


def kinds(graph):
    return [node.op for node in graph.as_graph_def().node]


CASES = [
    # kernel, stride, padding, dilation, groups
    (1, 1, 0, 1, 1),
    (1, 2, 0, 1, 1),
    (3, 1, 1, 1, 1),
    (3, 2, 1, 1, 1),
    (3, 1, 2, 2, 1),
    (3, 2, 1, 1, 4),
    (7, 2, 3, 1, 1),
    (3, 1, 0, 1, 1),
]


@pytest.mark.parametrize("shape", [(1, 13, 18, 8), (2, 7, 7, 8)])
@pytest.mark.parametrize(
    ("bias", "add", "relu"), [(0, 0, 0), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1), (0, 1, 1)]
)
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "groups"), CASES)
def test_conv2d(shape, bias, add, relu, kernel, stride, padding, dilation, groups):
    rng = np.random.default_rng(3)
    settings = {"stride": stride, "padding": padding, "dilation": dilation}
    x = rng.standard_normal(shape).astype(np.float32)
    weights = rng.standard_normal((kernel, kernel, 8 // groups, 16)).astype(np.float32)
    b = rng.standard_normal(16).astype(np.float32) if bias else None
    more = None
    if add:
        like = conv.conv2d(tf.constant(x), tf.constant(weights), **settings)
        more = rng.standard_normal(like.numpy().shape).astype(np.float32)

    def run(dtype, change=lambda v: v):
        given: list = [None if v is None else tf.constant(change(v), dtype) for v in (x, weights, b, more)]
        return conv.conv2d(*given[:3], **settings, add=given[3], relu=bool(relu))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 8])], autograph=False)
    def direct(image):
        with onednn.keep_weights():
            given: list = [None if v is None else tf.constant(v) for v in (weights, b, more)]
            return conv.conv2d(image, *given[:2], **settings, add=given[2], relu=bool(relu))

    graph = direct.get_concrete_function().graph
    assert any(kind.startswith("_MklNative") for kind in kinds(graph)) and "Conv2D" not in kinds(graph)
    got, exact = direct(x).numpy(), run(tf.float64).numpy()
    sizes = run(tf.float64, np.abs).numpy()  # of the absolute terms
    assert got.shape == exact.shape
    assert (np.abs(got - exact) <= 4 * np.finfo(np.float32).eps * sizes).all()


def test_static_shape():
    weights, b = tf.ones([3, 3, 4, 6]), tf.ones([6])
    for size, stride, padding, dilation in (
        (9, 2, 1, 1),
        (10, 2, 1, 1),
        (10, 1, 1, 1),
        (10, 1, 0, 2),
        (11, 2, 0, 1),
    ):

        @tf.function(autograph=False)
        def direct(x, weights=weights, b=b, stride=stride, padding=padding, dilation=dilation):
            with onednn.keep_weights():
                return conv.conv2d(x, weights, b, stride=stride, padding=padding, dilation=dilation)

        x = tf.ones([2, size, size + 1, 4])
        inferred = direct.get_concrete_function(x).outputs[0].shape
        assert inferred == direct(x).shape


@pytest.mark.parametrize("transpose", [False, True])
def test_matmul(transpose):
    rng = np.random.default_rng(4)
    a = rng.standard_normal((5, 1, 3, 11)).astype(np.float32)
    b = rng.standard_normal((5, 7, *((4, 11) if transpose else (11, 4)))).astype(np.float32)

    @tf.function(autograph=False)
    def direct(a, b):
        with onednn.keep_weights():
            return onednn.matmul(a, b, transpose)

    second = b.swapaxes(-1, -2) if transpose else b
    exact = a.astype(np.float64) @ second
    got = direct(a, b).numpy()
    assert got.shape == exact.shape
    assert (np.abs(got - exact) <= 4 * np.finfo(np.float32).eps * (np.abs(a) @ np.abs(second))).all()
    assert "_MklBatchMatMulV2" in kinds(direct.get_concrete_function(a, b).graph)


def test_only_where_asked_and_only_in_a_graph():
    @tf.function(autograph=False)
    def plain(x, weights):
        return conv.conv2d(x, weights)

    x, weights = tf.ones([1, 4, 4, 1]), tf.ones([3, 3, 1, 1])
    assert "Conv2D" in kinds(plain.get_concrete_function(x, weights).graph)
    with onednn.keep_weights():
        assert not onednn.active(tf.float32)  # eagerly there is no graph to keep anything in
        conv.conv2d(x, weights)


def test_float64_and_a_wish_for_computation_without(monkeypatch):
    assert not onednn.available(tf.float64)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert not onednn.available.__wrapped__(tf.float32)
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not onednn.available.__wrapped__(tf.float32)


def test_the_predictor_uses_them_and_the_models_weights_are_fixed(demo_files):
    files = demo_files / "shapes.yaml", demo_files / "shapes.pkl"
    kept, plain = tf_d2.Predictor(*files), tf_d2.Predictor(*files, constant_weights=False)
    graphs = [p._predict[tf.uint8].get_concrete_function().graph.as_graph_def() for p in (kept, plain)]
    every = [{n.op for n in g.node} | {n.op for f in g.library.function for n in f.node_def} for g in graphs]
    assert "_MklNativeFusedConv2D" in every[0] and "Conv2D" not in every[0]
    assert not any(kind.startswith("_Mkl") for kind in every[1])
    unfolded = tf_d2.Predictor(*files, fold_norms=False, constant_weights=True)
    with pytest.raises(ValueError, match=r"constant_weights=False, or use tf_d2.load_model"):
        unfolded.model.set_weights([v.numpy() for v in unfolded.model.variables])


def test_availability_does_not_depend_on_eager_functions():
    expected = onednn.available(tf.float32)
    onednn.available.cache_clear()
    tf.config.run_functions_eagerly(True)
    try:
        assert onednn.available(tf.float32) == expected
    finally:
        tf.config.run_functions_eagerly(False)
