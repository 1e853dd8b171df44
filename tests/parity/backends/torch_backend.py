"""The PyTorch workers: from a job file to a trace, and what they say when a job cannot be done."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import weights
from parity.backends import detectron2, torch_backend, torch_environment
from parity.backends import torch as torch_worker
from parity.core import job as jobs
from parity.core.job import JobError, tensor_hash
from parity.core.trace import Trace
from parity.core.units import forced_name, stages

# Found without importing tf_d2, which imports TensorFlow.
_PACKAGE = importlib.util.find_spec("tf_d2")
assert _PACKAGE is not None and _PACKAGE.submodule_search_locations
DEMO = Path(_PACKAGE.submodule_search_locations[0]) / "data" / "demo"


@pytest.fixture(autouse=True)
def torch_as_it_was():
    """Workers set flags for their whole process."""
    threads, precise = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(precise)
    torch.backends.cudnn.deterministic = False


@pytest.fixture(scope="module")
def state_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "shapes.npz"
    np.savez(path, **weights.read_checkpoint(DEMO / "shapes.pkl").state)
    return path


@pytest.fixture
def job(tmp_path, state_file):
    """The entries of a small job on the embedded model: two pictures."""
    config = yaml.safe_load((DEMO / "shapes.yaml").read_text())
    config["INPUT"] |= {"MIN_SIZE_TEST": 96, "MAX_SIZE_TEST": 128}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    image = jobs.read_image(DEMO / "shapes.png")
    np.save(tmp_path / "left.npy", image[:, :240])
    np.save(tmp_path / "right.npy", image[:, 200:])
    return {
        "config_yaml": str(tmp_path / "c.yaml"),
        "weights": str(state_file),
        "images": [str(tmp_path / "left.npy"), str(tmp_path / "right.npy")],
        "output": str(tmp_path / "out.h5"),
        "threads": 1,
    }


def run(main, job, tmp_path, capsys):
    """(exit status, last line that the worker said)."""
    (tmp_path / "job.json").write_text(json.dumps(job))
    status = main(["--job", str(tmp_path / "job.json")])
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_trace_of_two_images_with_modules_and_repeats(job, tmp_path, capsys):
    job |= {"repeat": 2, "modules": ["backbone.bottom_up.res2"], "roi_rows": 5, "weights_sha256": "ab"}
    assert run(torch_worker.main, job, tmp_path, capsys) == (0, {"event": "done", "output": job["output"]})
    with Trace(job["output"]) as trace:
        manifest, (left, right) = trace.manifest, trace.images
        table = stages(yaml.safe_load(trace.config))
        assert {stage.name for stage in table} <= set(left) and set(left) == set(right)
        assert left.shape("input/image") == (360, 240, 3) and right.shape("input/image") == (360, 280, 3)
        assert "steps/backbone.bottom_up.res2.0.conv1" in left
        res2 = left["steps/backbone.bottom_up.res2"]
        np.testing.assert_array_equal(res2, left["steps/backbone.bottom_up/res2"])
        assert left.shape("steps/roi_heads.box_pooler")[0] == 5
        assert left.rows("steps/roi_heads.box_pooler") == left.shape("steps/roi_heads.box_head")[0] > 5
    assert manifest["backend"] == "torch" and manifest["profile"] == "strict" and manifest["scope"] == "all"
    assert manifest["repeat"] == {"runs": 2, "nondeterministic": []}
    assert [len(times) for times in manifest["seconds"]["runs"]] == [2, 2]
    assert manifest["flags"]["deterministic"] is True and manifest["threads"] == 1
    assert manifest["canaries"]["reduced_precision"] is False
    assert manifest["versions"]["torch"] == torch.__version__ and manifest["weights_sha256"] == "ab"
    key = "backbone.bottom_up.stem.conv1.weight"
    state = weights.read_checkpoint(DEMO / "shapes.pkl").state
    assert manifest["tensors"][key] == tensor_hash(state[key]) == jobs.tensor_hash(state[key])


def test_semantic_profile_and_teacher_forcing(job, tmp_path, capsys):
    job["images"] = job["images"][:1]
    assert run(torch_worker.main, job, tmp_path, capsys)[0] == 0
    second = job | {"profile": "semantic", "feed": job["output"], "output": str(tmp_path / "exact.h5")}
    assert run(torch_worker.main, second, tmp_path, capsys)[0] == 0
    with Trace(job["output"]) as single, Trace(second["output"]) as exact:
        assert exact.manifest["dtype"] == "float64" and exact.manifest["forced"]["derived"] == [{}]
        fed, image = single.images[0], exact.images[0]
        for stage in stages(yaml.safe_load(exact.config)):
            forced, want = image[forced_name(stage.name)], fed[stage.name]
            wide = stage.kind == "continuous"
            assert image.dtype(stage.name) == (np.float64 if wide else want.dtype), stage.name
            if wide:
                limit = 2e-6 * np.linalg.norm(want)
                assert np.linalg.norm(forced - want) <= limit, stage.name
            else:
                np.testing.assert_array_equal(forced, want, err_msg=stage.name)


def test_feed_of_a_recording_uses_complete_arrays_only(job, tmp_path, capsys):
    job |= {"images": [str(DEMO / "shapes.png")], "config_yaml": str(DEMO / "shapes.yaml")}
    job["feed"] = str(DEMO / "shapes_detectron2.h5")
    assert run(torch_worker.main, job, tmp_path, capsys)[0] == 0
    with Trace(job["output"]) as trace, Trace(DEMO / "shapes_detectron2.h5") as recording:
        image, recorded = trace.images[0], recording.images[0]
        derived = trace.manifest["forced"]["derived"][0]
        # the recording holds 20 of 1000 pooled boxes, so they are pooled again from its features
        assert derived["steps/roi_heads.box_head"] == ["steps/roi_heads.box_pooler"]
        for name in ("steps/roi_heads.box_head", "output/instances/scores", "input/resized"):
            assert image.shape(forced_name(name)) == recorded.shape(name)
        got, want = image["forced/roi_heads.box_head"], recorded["steps/roi_heads.box_head"]
        assert np.linalg.norm(got - want) <= 2e-6 * np.linalg.norm(want)
        np.testing.assert_array_equal(image["forced/resized"], recorded["input/resized"])


def test_runs_that_differ_are_named():
    first = {"a": np.zeros(2), "b": np.array([np.nan]), "c": np.zeros(1)}
    second = {"a": np.array([0.0, -0.0]), "b": np.array([np.nan]), "d": np.zeros(1)}
    assert jobs.differing(first, second) == ["a", "c", "d"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "nothing.npz"}, "cannot read weights nothing.npz"),
        ({"weights": "model.pkl"}, "needed .npz or .h5"),
        ({"config_yaml": "nothing.yaml"}, "cannot read configuration"),
        ({"images": ["nothing.npy"]}, "cannot read image"),
        ({"images": []}, "at least one image"),
        ({"profile": "fast"}, "profile 'fast'"),
        ({"device": "tpu"}, "device 'tpu'"),
        ({"repeat": 0}, "repeat must be"),
        ({"typo": 1}, "unknown entries: typo"),
        ({"modules": ["backbone.res9"]}, "no module backbone.res9"),
        ({"feed": "nothing.h5"}, "cannot open nothing.h5"),
        ({"proposals": ["p.npy"]}, "1 proposal files for 2 images"),
        ({"mode": "resolve"}, "writes traces only"),
    ],
)
def test_jobs_that_cannot_be_done(job, tmp_path, capsys, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    status, said = run(torch_worker.main, job | changes, tmp_path, capsys)
    assert status == 2 and said["event"] == "error" and message in said["message"]
    assert not Path(job["output"]).exists() and not list(tmp_path.glob("*.partial"))


def test_a_state_that_does_not_fit(job, tmp_path, capsys):
    config = yaml.safe_load(Path(job["config_yaml"]).read_text())
    config["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] = 4
    Path(job["config_yaml"]).write_text(yaml.safe_dump(config))
    status, said = run(torch_worker.main, job, tmp_path, capsys)
    assert status == 2 and "shape of roi_heads.box_predictor.cls_score.weight" in said["message"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(job, tmp_path, capsys):
    status, said = run(torch_worker.main, job | {"device": "gpu"}, tmp_path, capsys)
    assert status == 2 and "sees no usable GPU" in said["message"]


def test_canaries_see_rounded_products(monkeypatch):
    good = torch_environment.canaries(torch.device("cpu"))
    assert good["matmul_error"] == 0 and not good["reduced_precision"]
    product = torch.nn.functional.conv2d

    def rounded(image, kernel):
        """What a TF32 convolution does: 10 bits of mantissa."""
        bits = image.view(torch.int32) & ~0x1FFF
        return product(bits.view(torch.float32), kernel)

    monkeypatch.setattr(torch.nn.functional, "conv2d", rounded)
    seen = torch_environment.canaries(torch.device("cpu"))
    assert seen["reduced_precision"] and seen["matmul_error"] == 0
    strict = jobs.Job("c", "w", ("i",), "o")
    with pytest.raises(JobError, match="lose bits"):
        torch_environment.check_canaries(strict, {"canaries": seen})
    torch_environment.check_canaries(
        jobs.Job("c", "w", ("i",), "o", profile="production"), {"canaries": seen}
    )


def test_detectron2_worker_says_that_detectron2_is_missing(job, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    status, said = run(detectron2.main, job, tmp_path, capsys)
    assert status == 2 and "detectron2 cannot be imported by" in said["message"]


def test_images_are_read_upright_as_bgr(tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    got = jobs.read_image(tmp_path / "turned.png")
    np.testing.assert_array_equal(got, np.rot90(pixels, -1)[:, :, ::-1])
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "grey.png")
    assert jobs.read_image(tmp_path / "grey.png").shape == (2, 4, 3)
    grey = jobs.read_image(tmp_path / "grey.png", 1)
    np.testing.assert_array_equal(grey, pixels[:, :, :1])
    picture.save(tmp_path / "colours.png")
    assert jobs.read_image(tmp_path / "colours.png", 1).tolist() == (
        np.asarray(picture.convert("L"))[:, :, None].tolist()
    )
    np.save(tmp_path / "four.npy", np.zeros((2, 4, 4), np.uint8))
    assert jobs.read_image(tmp_path / "four.npy", 4).shape == (2, 4, 4)
    with pytest.raises(JobError, match=r"needed: uint8 \(H, W, 4\).*no image file holds 4 channels"):
        jobs.read_image(tmp_path / "grey.png", 4)
    np.save(tmp_path / "bad.npy", np.zeros((2, 4), np.uint8))
    with pytest.raises(JobError, match=r"uint8 \(2, 4\); needed"):
        jobs.read_image(tmp_path / "bad.npy")


def test_hooks_copy_and_count(tmp_path):
    module = torch.nn.Sequential(torch.nn.Identity())
    seen = {}
    with torch_backend.record_modules(module, ["0"], seen):
        x = torch.ones(2)
        module(x)
        x += 1  # what was recorded does not change with it
        module(x)
    module(x)
    assert set(seen) == {"steps/0", "steps/0#1"} and seen["steps/0"].tolist() == [1, 1]


def test_detectron2_structures_are_flattened():
    class Boxes:
        def __init__(self):
            self.tensor = torch.ones(1, 4)

    class Instances:
        def get_fields(self):
            return {"pred_boxes": Boxes(), "scores": torch.ones(1)}

    names = [name for name, _ in torch_backend.flatten(([Instances()], {}))]
    assert names == ["/0/0/pred_boxes", "/0/0/scores"]
