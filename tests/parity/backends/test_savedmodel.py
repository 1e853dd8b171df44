"""An export made for a comparison has what the model computes, and no option that its model must do without."""

import pytest

import tf_d2.serving.exporter
from parity.backends.savedmodel import export_beside, export_for_comparison
from parity.core.job import Job
from tf_d2.config import load_config
from tf_d2.serving.exporter import _options


@pytest.fixture
def exports(monkeypatch):
    """What was exported: options as the exporter takes them, checked by it for the model."""
    made = []

    def export(config, weights, output, *, opts, **given):
        made.append((str(output), _options(load_config(config, opts), given)))

    monkeypatch.setattr(tf_d2.serving.exporter, "export", export)
    return made


def job(name, tmp_path):
    return Job(name, "weights.pkl", ("picture.png",), str(tmp_path / "trace.h5"))


@pytest.mark.parametrize(
    "name",
    [
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
        "COCO-Detection/retinanet_R_50_FPN_1x",
        "COCO-Detection/rpn_R_50_FPN_1x",
        "projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep",
    ],
)
def test_a_model_without_semantic_segmentation(name, tmp_path, exports):
    export_beside(job(name, tmp_path))
    assert exports[0][0] == str(tmp_path / "trace.export")
    assert exports[0][1].sem_seg != "logits"


def test_logits_of_a_semantic_segmentation(tmp_path, exports):
    export_for_comparison(job("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x", tmp_path), tmp_path / "model")
    assert exports == [(str(tmp_path / "model"), exports[0][1])]
    assert exports[0][1].sem_seg == "logits"
