"""Published LazyConfig models by name: the same model as the dump that the real detectron2 wrote of each."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tf_d2.config import ConfigError, load_config, load_config_text
from tf_d2.config.load import resolve_yaml
from tf_d2.config.zoo import unsupported_reason, weights_url, zoo_models, zoo_name

FILE = Path(__file__).parents[1] / "data" / "new_baselines" / "dumps.json.gz"
DUMPS = json.loads(gzip.decompress(FILE.read_bytes()))
MMDET = "configs/Misc/mmdet_mask_rcnn_R_50_FPN_1x.py"
NAMES = [name for name in DUMPS if name != MMDET]


def test_all_published_python_files_are_here():
    assert len(NAMES) == 50 and sum(name.startswith("projects/") for name in NAMES) == 29


@pytest.mark.parametrize("path", NAMES)
def test_a_name_is_the_dump_of_its_file(path):
    dump = replace(load_config_text(DUMPS[path]), weights="")
    for name in (path, path.removesuffix(".py"), f"/home/user/detectron2/{path}"):
        assert replace(load_config(name), weights="") == dump, name


def test_models_of_mmdetection_are_refused_by_name():
    with pytest.raises(ConfigError, match="MMDetDetector"):
        load_config_text(DUMPS[MMDET])


def test_short_names():
    full = "projects/ViTDet/configs/COCO/cascade_mask_rcnn_vitdet_h_75ep"
    for name in ("ViTDet/COCO/cascade_mask_rcnn_vitdet_h", "ViTDet/COCO/cascade_mask_rcnn_vitdet_h_75ep.py"):
        assert zoo_name(name) == full
        assert weights_url(name) == zoo_models()[full].url
    assert zoo_name("cascade_mask_rcnn_vitdet_h_75ep.py") == full
    assert zoo_name("mask_rcnn_vitdet_b_100ep") is None  # COCO's or LVIS's?
    assert (
        zoo_name("MViTv2/cascade_mask_rcnn_mvitv2_b")
        == "projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_b_3x"
    )


def test_the_29_run():
    families = ("(ViTDet)", "(MViTv2)", "(Swin)")
    rows = [row for row in zoo_models().values() if row.family.endswith(families)]
    assert len(rows) == 29 and not any(map(unsupported_reason, rows))


def test_a_python_file_is_never_run(tmp_path):
    path = tmp_path / "cascade_mask_rcnn_vitdet_h_75ep.py"  # the name of a published file, but not its text
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigError, match=r"LazyConfig\.save\(LazyConfig\.load\(.*vitdet_h_75ep\.yaml"):
        load_config(path)
    assert not (tmp_path / "ran").exists()


def test_an_unchanged_copy_of_a_published_file_is_known(tmp_path, monkeypatch):
    import hashlib

    from tf_d2.config import zoo

    path = tmp_path / "fcos_R_50_FPN_1x.py"
    path.write_bytes(b"from ..common.models.fcos import model\r\n")
    digest = hashlib.sha256(b"from ..common.models.fcos import model\n").hexdigest()[:16]
    monkeypatch.setattr(zoo, "DIGESTS", {"COCO-Detection/fcos_R_50_FPN_1x.py": digest})
    assert load_config(path) == load_config("COCO-Detection/fcos_R_50_FPN_1x")


def test_resolved_it_reads_back():
    name = "ViTDet/LVIS/cascade_mask_rcnn_vitdet_l"
    opts = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3]
    assert load_config_text(resolve_yaml(name, opts)) == load_config(name, opts)
    assert load_config(name, opts).model.roi_heads.box_predictor.score_thresh_test == 0.3
    assert load_config(name, ["model.backbone.square_pad", 512]).model.backbone.square_pad == 512
