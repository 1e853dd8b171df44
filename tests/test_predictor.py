"""The user's door on the embedded model, against what detectron2 recorded on the embedded picture."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import yaml
from PIL import Image
from support.recordings import eagerly

import tf_d2
import weights
from parity.core.units import units
from tf_d2.config import ConfigError, DownloadError
from tf_d2.loading import load_model, resolve_model
from weights.writers import write_safetensors

# Pixels, probability, relative L2 of a stage on recorded inputs and of one behind all others.
BOX_PIXELS, SCORE, FED, END_TO_END = 1e-3, 1e-5, 2e-6, 1e-5


def relative_l2(got, expected):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def arrays(demo_reference):
    return demo_reference.arrays


@pytest.fixture(scope="module")
def image(arrays):
    return arrays["input/image"]


@pytest.fixture(scope="module")
def result(demo_predictor, image):
    return demo_predictor(image)


@pytest.fixture(scope="module")
def trace(demo_predictor, image):
    return demo_predictor.trace(image)


@pytest.fixture(scope="module")
def small_rgb(demo_files):
    """Another model from the same files: RGB, no resizing."""
    opts = ["INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TEST", 0, "TEST.DETECTIONS_PER_IMAGE", 5]
    return tf_d2.Predictor(demo_files / "shapes.yaml", demo_files / "shapes.pkl", opts=opts)


# === The same answer ===


def test_the_picture_in_the_package_is_the_recorded_one(image, demo_files):
    np.testing.assert_array_equal(
        np.asarray(Image.open(demo_files / "shapes.png").convert("RGB"))[:, :, ::-1], image
    )
    np.testing.assert_array_equal(tf_d2.read_image(demo_files / "shapes.png"), image)


def test_detections_are_detectron2s_one_to_one(result, arrays):
    instances = result["instances"]
    expected = {k.rsplit("/", 1)[1]: v for k, v in arrays.items() if k.startswith("output/instances/")}
    assert instances.get_fields().keys() == expected.keys()
    assert len(instances) == 30
    assert instances.image_size == (360, 480)
    for name, value in expected.items():
        got = getattr(instances, name)
        assert (got.dtype, got.shape) == (value.dtype, value.shape), name
    np.testing.assert_allclose(instances.pred_boxes, expected["pred_boxes"], rtol=0, atol=BOX_PIXELS)
    np.testing.assert_allclose(instances.scores, expected["scores"], rtol=0, atol=SCORE)
    np.testing.assert_array_equal(instances.pred_classes, expected["pred_classes"])
    np.testing.assert_array_equal(instances.pred_masks, expected["pred_masks"])


def test_resized_image_is_bit_equal(trace, arrays):
    np.testing.assert_array_equal(trace["input/resized"], arrays["input/resized"])


def test_every_stage_end_to_end(trace, arrays):
    steps = [name for name in arrays if name.startswith("steps/")]
    assert len(steps) > 25
    for name in steps:
        expected = arrays[name]
        got = trace[name][: len(expected)]  # of regions the recording keeps the first 20
        assert got.dtype == expected.dtype and got.shape == expected.shape, name
        if name.endswith("boxes"):
            np.testing.assert_allclose(got, expected, rtol=0, atol=BOX_PIXELS)
        else:
            assert relative_l2(got, expected) < END_TO_END, name


def test_every_stage_fed_with_detectron2s_input(demo_predictor, demo_reference):
    """One computation at a time on recorded inputs: no error can hide in, or come from, another stage."""
    arrays, compared = demo_reference.arrays, []
    for unit in units(yaml.safe_load(demo_reference.config)):
        if not (set(unit.inputs) | set(unit.outputs)) <= arrays.keys():
            continue
        outputs = demo_predictor.run_op(unit.op, unit.args, [arrays[name] for name in unit.inputs])
        assert len(outputs) == len(unit.outputs)
        for name, got in zip(unit.outputs, outputs, strict=True):
            rows = min(len(got), len(arrays[name]))
            expected = arrays[name][:rows]
            if unit.kind == "continuous":
                assert relative_l2(got[:rows], expected) < FED, name
            elif name.endswith("boxes"):
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4, err_msg=name)
            else:  # selection by itself is exact
                np.testing.assert_array_equal(got, expected, err_msg=name)
        compared.append(unit.op)
    assert {"resize", "res", "fpn", "module_of_list", "rpn_proposals", "roi_pool", "module"} <= set(compared)
    assert "mask_logits" in compared


# === One graph for everything ===


def test_no_retracing_across_image_sizes(demo_predictor, image):
    demo_predictor(image)
    function = demo_predictor._predict[next(iter(demo_predictor._predict))]
    before = function.experimental_get_tracing_count()
    for view in (image[:50, :100], image[:333, :77], image[::2, ::2], image[:1, :1]):
        found = demo_predictor(np.ascontiguousarray(view))["instances"]
        assert found.image_size == view.shape[:2]
        assert found.pred_masks.shape[1:] == view.shape[:2]
    assert before == function.experimental_get_tracing_count() == 1


def test_repeated_calls_give_the_same_bits(demo_predictor, image, result):
    again = demo_predictor(image)["instances"]
    for name, value in result["instances"].get_fields().items():
        np.testing.assert_array_equal(getattr(again, name), value)


def test_noncontiguous_views_are_fine(demo_predictor, image, result):
    padded = np.zeros((image.shape[0] * 2, image.shape[1], 3), np.uint8)
    padded[::2] = image
    again = demo_predictor(padded[::2])["instances"]
    np.testing.assert_array_equal(again.pred_boxes, result["instances"].pred_boxes)


# === Options ===


@pytest.mark.parametrize("dtype", ["float16", "int8", None, np.float32])
def test_other_dtypes_are_refused(demo_files, dtype):
    with pytest.raises(ValueError, match="dtype must be one of float32, float64, bfloat16, got"):
        load_model(demo_files / "shapes.yaml", demo_files / "shapes.pkl", dtype=dtype)


def test_rgb_models_reverse_the_channels_and_zero_means_no_resize(small_rgb, image):
    crop = image[:70, 100:190]
    with eagerly():
        trace = small_rgb.trace(crop)
    np.testing.assert_array_equal(trace["input/resized"], crop[:, :, ::-1])
    mean, std = (
        np.array(x, np.float32) for x in (small_rgb.config.input.pixel_mean, small_rgb.config.input.pixel_std)
    )
    first = (crop[:, :, ::-1] - mean) / std
    np.testing.assert_allclose(trace["input"][0, :, :70, :90], np.moveaxis(first, -1, 0), rtol=1e-6)
    assert trace["input"].shape == (1, 3, 96, 96) and not trace["input"][0, :, 70:].any()
    with eagerly():
        assert len(small_rgb(crop)["instances"]) <= 5  # from opts


def test_float_images_are_detected_as_they_are(small_rgb, image):
    crop = image[:64, 100:196]
    with eagerly():
        as_bytes, as_float = small_rgb(crop)["instances"], small_rgb(crop.astype(np.float64))["instances"]
    np.testing.assert_allclose(as_float.pred_boxes, as_bytes.pred_boxes, atol=1e-4)


def test_network_size(demo_predictor):
    assert demo_predictor.network_size(360, 480) == (192, 256)
    assert demo_predictor.network_size(480, 360) == (256, 192)


@pytest.fixture
def yaml_with_weights(demo_files, tmp_path):
    """``write(name)``: the demo's YAML with MODEL.WEIGHTS."""

    def write(weights_name):
        path = tmp_path / "config.yaml"
        config = yaml.safe_load((demo_files / "shapes.yaml").read_text())
        config["MODEL"]["WEIGHTS"] = str(weights_name)
        path.write_text(yaml.safe_dump(config))
        return path

    return write


def test_weights_are_those_the_configuration_names(demo_files, yaml_with_weights):
    checkpoint = demo_files / "shapes.pkl"
    named = ["MODEL.WEIGHTS", str(checkpoint)]
    config = yaml_with_weights(checkpoint)
    assert resolve_model(config, None)[1] == checkpoint
    assert resolve_model(demo_files / "shapes.yaml", None, named)[1] == checkpoint
    assert resolve_model(yaml_with_weights("elsewhere.pkl"), None, named)[1] == checkpoint
    assert resolve_model(config, demo_files / "shapes.png")[1] == demo_files / "shapes.png"
    assert resolve_model("COCO-Detection/retinanet_R_50_FPN_3x", None, named)[1] == checkpoint


def test_a_configuration_must_name_its_weights_once(demo_files, yaml_with_weights):
    with pytest.raises(
        ConfigError, match=r"shapes.yaml: names no checkpoint .MODEL.WEIGHTS is empty.; give one"
    ):
        resolve_model(demo_files / "shapes.yaml", None)
    with pytest.raises(
        DownloadError, match=r"config.yaml: its MODEL.WEIGHTS cannot be used.*gone.pkl: no such file"
    ):
        resolve_model(yaml_with_weights("gone.pkl"), None)
    with pytest.raises(
        ConfigError, match=r"two checkpoints are given: one.pkl, and two.pkl as MODEL.WEIGHTS"
    ):
        resolve_model(demo_files / "shapes.yaml", "one.pkl", ["MODEL.WEIGHTS", "two.pkl"])


def test_load_model_is_the_predictors_model(demo_files, demo_predictor):
    files = demo_files / "shapes.yaml", demo_files / "shapes.pkl"
    model, plain = load_model(*files), tf_d2.Predictor(*files, fold_norms=False)
    assert model.variable_specs() == demo_predictor.model.variable_specs() == plain.model.variable_specs()
    for mine, other in zip(model.variables, plain.model.variables, strict=True):
        np.testing.assert_array_equal(mine.value.numpy(), other.value.numpy())


def test_a_predictor_keeps_no_second_copy_of_its_weights(demo_predictor):
    used = demo_predictor._predict[tf.uint8].get_concrete_function().graph.variables
    own = {id(v.value) for v in demo_predictor.model.variables}
    added = [v for v in used if id(v) not in own]
    assert added
    assert all(len(v.shape) == 1 for v in added)  # biases that norms became, but no kernels


def test_merged_weights_are_not_saved_or_replaced(demo_files, demo_predictor, tmp_path):
    """A file of the same name must survive, and the function that was traced must not see half of the new weights."""
    model = load_model(demo_files / "shapes.yaml", demo_files / "shapes.pkl")
    good, other = tmp_path / "good.weights.h5", tmp_path / "model.weights.h5"
    model.save_weights(good)
    other.write_bytes(b"precious")
    merged = demo_predictor.model
    for refused in (
        lambda: merged.save_weights(other, overwrite=True),
        lambda: merged.save(tmp_path / "model.keras"),
        lambda: merged.load_weights(good),
        lambda: merged.assign({v.path: v.value.numpy() for v in model.variables}),
        lambda: merged.set_weights(model.get_weights()),
        merged.get_weights,
        merged.fold_norms,
        merged.unfold_norms,
    ):
        before = [v.value.numpy() for v in merged.variables]
        with pytest.raises(ValueError, match=r"/kernel: .*merged .*load_model"):
            refused()
        assert all((v.value.numpy() == b).all() for v, b in zip(merged.variables, before, strict=True))
    assert other.read_bytes() == b"precious"
    assert len(list(tmp_path.iterdir())) == 2


def test_other_weights_unfold(demo_files):
    """set_weights of Keras knows nothing of merged kernels."""
    model = load_model(demo_files / "shapes.yaml", demo_files / "shapes.pkl")
    loaded = model.get_weights()
    model.fold_norms()
    model.set_weights([np.zeros_like(array) for array in loaded])
    assert not model.backbone.bottom_up(tf.ones([1, 64, 64, 3]))["res2"].numpy().any()


def test_stock_keras_weights_file_and_back(demo_files, tmp_path):
    """save_weights and load_weights of Keras itself."""
    model = load_model(demo_files / "shapes.yaml", demo_files / "shapes.pkl")
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    before = [v.value.numpy() for v in model.variables]
    for variable in model.variables:
        variable.assign(np.ones(variable.shape))
    model.load_weights(path)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.value.numpy(), value)


# === What cannot be detected on ===


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.zeros((4, 4), np.uint8), r"grey image \(shape \(4, 4\)\); expected a BGR image"),
        (np.zeros((4, 4, 4), np.uint8), r"4 channels \(shape \(4, 4, 4\)\).*drop the opacity"),
        (np.zeros((4, 4, 1), np.uint8), r"1 channels \(shape \(4, 4, 1\)\).*read_image"),
        (np.zeros((3, 4, 5), np.uint8), r"channels first; .*transpose\(1, 2, 0\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"a batch \(shape \(2, 4, 4, 3\)\)"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        ([np.zeros((4, 4, 3), np.uint8)] * 2, "a list of 2; pass one image at a time"),
        (None, "the image is None, which cv2.imread gives for a file it cannot read"),
        ("street.jpg", r"got a path \(street.jpg\) .*read_image"),
        (Path("street.jpg"), r"got a path \(street.jpg\) .*read_image"),
        (b"\xff\xd8", "got the bytes of a file .*read_image"),
        (Image.new("RGB", (5, 4)), "Pillow picture, whose channels are in RGB order"),
        ({"image": 1}, r"a dict with keys \['image'\]"),
        (7, "got a int; expected"),
        (np.array([[[None]]]), "array of Python objects"),
        (np.zeros((0, 4, 3), np.uint8), r"the image is empty: shape \(0, 4, 3\)"),
        (np.zeros((4, 0, 3), np.uint8), "the image is empty"),
        (np.zeros((4, 4, 3), np.uint16), "uint8 .* got uint16; scale it"),
        (np.zeros((4, 4, 3), np.longdouble), "got (float128|longdouble)"),
        (np.zeros((4, 4, 3), bool), "got bool"),
        (np.full((4, 4, 3), np.nan, np.float32), "NaN or infinite values"),
        (np.full((4, 4, 3), np.inf), "NaN or infinite values"),
        (np.zeros((4, 4, 3), complex), "got complex128"),
        (np.array([[["a"] * 3]]), "got <U1"),
        (np.zeros((1, 5000, 3), np.uint8), "1x5000 image would become 0x288 .* too elongated"),
        (np.zeros((5000, 1, 3), np.uint8), "5000x1 image would become 288x0"),
    ],
)
def test_unusable_images_are_refused(demo_predictor, bad, message):
    with pytest.raises(tf_d2.ImageError, match=message):
        demo_predictor(bad)
    with pytest.raises(tf_d2.ImageError, match=message):
        demo_predictor.trace(bad)


def test_one_pixel_is_an_image(demo_predictor):
    """detectron2 enlarges it to the shortest edge like any other."""
    found = demo_predictor(np.full((1, 1, 3), 128, np.uint8))["instances"]
    assert found.image_size == (1, 1) and found.pred_masks.shape == (len(found), 1, 1)


def test_proposals_are_for_fast_rcnn_only(demo_predictor, image):
    with pytest.raises(ValueError, match="makes its own proposals"):
        demo_predictor(image, proposals=np.zeros((1, 4)))


def test_another_models_checkpoint_is_refused(demo_files):
    with pytest.raises(tf_d2.WeightsError, match=r"does not match the model[\s\S]*missing"):
        tf_d2.Predictor("COCO-Detection/rpn_R_50_C4_1x", demo_files / "shapes.pkl")


def test_another_class_count_is_named(demo_files):
    with pytest.raises(tf_d2.WeightsError, match=r"NUM_CLASSES is 5 in the config; .* trained with 3"):
        tf_d2.Predictor(
            demo_files / "shapes.yaml", demo_files / "shapes.pkl", opts=["MODEL.ROI_HEADS.NUM_CLASSES", 5]
        )


# === Fast R-CNN ===


@pytest.fixture(scope="module")
def fast_rcnn(demo_files):
    """The embedded model without its region proposal network."""
    import weights

    opts = ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.LOAD_PROPOSALS", True]
    state = weights.read_checkpoint(demo_files / "shapes.pkl").state
    config = tf_d2.load_config(demo_files / "shapes.yaml", opts)
    assert config.rpn is None
    return opts, {k: v for k, v in state.items() if not k.startswith("proposal_generator.")}


def test_precomputed_proposals_give_the_same_detections(
    fast_rcnn, demo_files, tmp_path, image, arrays, result
):
    import weights

    opts, state = fast_rcnn
    weights.write_detectron2_pkl(tmp_path / "fast.pkl", state)
    predictor = tf_d2.Predictor(demo_files / "shapes.yaml", tmp_path / "fast.pkl", opts=opts)
    proposals = arrays["steps/proposal_generator/0/0/proposal_boxes"]
    found = predictor(image, proposals=proposals)["instances"]
    np.testing.assert_allclose(found.pred_boxes, result["instances"].pred_boxes, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(found.pred_classes, result["instances"].pred_classes)
    # Nothing to classify, nothing to segment: TensorFlow's fused convolutions get that wrong by themselves.
    nothing = predictor(image, proposals=np.zeros((0, 4)))["instances"]
    assert len(nothing) == 0 and nothing.pred_masks.shape == (0, *image.shape[:2])
    with pytest.raises(ValueError, match=r"no proposal generator .*: pass proposals="):
        predictor(image)
    with pytest.raises(ValueError, match=r"\(N, 4\) xyxy boxes, got shape \(4,\)"):
        predictor(image, proposals=np.zeros(4))
    with pytest.raises(ValueError, match=r"proposal_logits must be \(2,\), got shape \(3,\)"):
        predictor(image, proposals=np.ones((2, 4)), proposal_logits=np.zeros(3))


@pytest.fixture(scope="module")
def proposal_network(demo_files, tmp_path_factory):
    """The first half of the embedded model, alone."""
    state = weights.read_checkpoint(demo_files / "shapes.pkl").state
    path = tmp_path_factory.mktemp("rpn") / "rpn.safetensors"
    write_safetensors(path, {k: v for k, v in state.items() if not k.startswith("roi_heads")})
    opts = ["MODEL.META_ARCHITECTURE", "ProposalNetwork"]
    return tf_d2.Predictor(demo_files / "shapes.yaml", path, opts=opts)


def test_trace_of_a_proposal_network_holds_proposals_rescaled_in_place(proposal_network, image):
    name = "proposal_generator/0/0/proposal_boxes"
    with eagerly():
        network = proposal_network.trace(image, rescaled=False)[name]
        proposals = proposal_network(image)["proposals"]
        np.testing.assert_array_equal(proposal_network.trace(image)[name], proposals.proposal_boxes)
    height, width = proposal_network.network_size(*image.shape[:2])
    factor = np.array([image.shape[1] / width, image.shape[0] / height] * 2)
    assert not np.allclose(factor, 1)
    np.testing.assert_allclose(network * factor, proposals.proposal_boxes, atol=1e-3)


def test_the_configuration_of_a_training_run_names_what_it_started_from(demo_files, tmp_path):
    config = yaml.safe_load((demo_files / "shapes.yaml").read_text())
    config["MODEL"]["WEIGHTS"] = str(demo_files / "shapes.pkl")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert resolve_model(tmp_path / "config.yaml", None)[1].name == "shapes.pkl"  # without a word
    (tmp_path / "model_0004999.pth").touch()
    (tmp_path / "last_checkpoint").write_text("model_0004999.pth")
    with pytest.warns(UserWarning, match="what the training started from.*model_0004999.pth"):
        resolve_model(tmp_path / "config.yaml", None)
    (tmp_path / "model_final.pth").touch()
    with pytest.warns(UserWarning, match="--weights.*model_final.pth"):
        assert resolve_model(tmp_path / "config.yaml", None)[1].name == "shapes.pkl"
    resolve_model(tmp_path / "config.yaml", tmp_path / "model_final.pth")


@pytest.mark.parametrize("start", ["", "nowhere/R-50.pkl"])
def test_a_training_run_without_its_start_names_its_end(demo_files, tmp_path, start):
    config = yaml.safe_load((demo_files / "shapes.yaml").read_text())
    config["MODEL"]["WEIGHTS"] = start
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "model_final.pth").touch()
    with pytest.raises(tf_d2.UserError, match=r"give .*\(--weights\) .*model_final\.pth, with which"):
        resolve_model(tmp_path / "config.yaml", None)


def test_many_predictors_of_a_process_are_no_repeated_tracing(caplog: pytest.LogCaptureFixture) -> None:
    from tf_d2.predictor import _graph

    class Made:
        def run(self, x: tf.Tensor) -> tf.Tensor:
            return x + 1

    def traced(make: Any) -> str:
        caplog.clear()
        with caplog.at_level("WARNING", logger="tensorflow"):
            for _ in range(8):
                make(Made().run)(tf.zeros([2]))
        return caplog.text

    logger = logging.getLogger("tensorflow")
    propagates, logger.propagate = logger.propagate, True
    try:
        assert "retracing" in traced(tf.function)  # TensorFlow's warning still works that way
        assert "retracing" not in traced(lambda run: _graph(run, [tf.TensorSpec([None], tf.float32)]))
    finally:
        logger.propagate = propagates
