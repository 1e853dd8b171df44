"""Configurations and weights of the bench: shared where only limits differ, made again when the recipe changes."""

from pathlib import Path

import pytest

from parity.bench.bench import Options
from parity.bench.suite import models as bench_models
from parity.bench.suite.models import FAMILIES, MASK_RCNN, families_named, prepare
from tf_d2.config import load_config, resolve_yaml
from weights.errors import UsageError


@pytest.fixture
def made(monkeypatch):
    """Stand-ins for the workers: configurations are real ones, weights an empty file. Lists the weights made."""
    calls = []

    def call_worker(program, job, target):
        for entry in job.get("configs", ()):
            Path(entry["output"]).write_text(resolve_yaml(entry["name"], entry["opts"]))
        if program.module.endswith("suite.weights"):
            calls.append(target.name)
        target.write_text("")

    monkeypatch.setattr(bench_models, "call_worker", call_worker)
    return calls


def test_models_that_differ_in_limits_share_weights(made, tmp_path):
    wanted = [(MASK_RCNN, ["TEST.DETECTIONS_PER_IMAGE", n]) for n in (10, 20)]
    first, second = prepare(wanted, (64, 96), tmp_path, Options(), ["TEST.DETECTIONS_PER_IMAGE", 100])
    assert first.weights == second.weights and len(made) == 1
    assert "DETECTIONS_PER_IMAGE: 10\n" in Path(first.config).read_text()
    assert "DETECTIONS_PER_IMAGE: 20\n" in Path(second.config).read_text()
    assert "MIN_SIZE_TEST: 64\n" in Path(first.config).read_text()


def test_what_is_there_is_taken_unless_the_model_differs(made, tmp_path):
    (first,) = prepare([(MASK_RCNN, ())], (64, 96), tmp_path, Options())
    (again,) = prepare([(MASK_RCNN, ())], (64, 96), tmp_path, Options())
    assert first == again and len(made) == 1
    (other,) = prepare([(MASK_RCNN, ["MODEL.ROI_HEADS.NUM_CLASSES", 3])], (64, 96), tmp_path, Options())
    (larger,) = prepare([(MASK_RCNN, ())], (96, 96), tmp_path, Options())
    assert len({first.weights, other.weights, larger.weights}) == len(made) == 3


def test_families_are_published_models():
    names = [f.name for f in (*FAMILIES, MASK_RCNN)]
    assert len(set(names)) == len(FAMILIES) + 1
    assert all(load_config(name) for name in names)


def test_families_are_chosen_by_words_of_their_name_or_title():
    assert families_named(()) == FAMILIES
    assert [f.title for f in families_named(("tridentnet", "ViTDet-L"))] == ["ViTDet-L", "TridentNet R50-C4"]
    with pytest.raises(UsageError, match=r"--families yolo,ssd: .* RetinaNet"):
        families_named(("retinanet", "yolo", "ssd"))
