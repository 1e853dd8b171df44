"""Published LazyConfig models by name: the same model as the dump that the real detectron2 wrote of each."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tf_d2.config import ConfigError, load_config, load_config_text
from tf_d2.config.load import resolve_yaml
from tf_d2.config.zoo import unsupported_reason, weights_url, zoo_name
from tf_d2.config.zoo_lazy import LAZY
from tf_d2.config.zoo_table import zoo_models

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


# What the constructors of detectron2.modeling insist on (their signatures, and those of their base classes): a program
# with detectron2 builds the published model from what its name stands for.
INSISTED = {
    "SimpleFeaturePyramid": "net in_feature out_channels scale_factors",
    "FPN": "bottom_up in_features out_channels",
    "backbone.ResNet": "stem stages",
    "backbone.ResNet.make_default_stages": "depth",
    "backbone.fpn.LastLevelP6P7": "in_channels out_channels",
    "proposal_generator.RPN": "in_features head anchor_generator anchor_matcher box2box_transform batch_size_per_image "
    "positive_fraction pre_nms_topk post_nms_topk",
    "proposal_generator.StandardRPNHead": "in_channels num_anchors",
    "anchor_generator.DefaultAnchorGenerator": "sizes aspect_ratios strides",
    "box_regression.Box2BoxTransform": "weights",
    "matcher.Matcher": "thresholds labels",
    "poolers.ROIPooler": "output_size scales sampling_ratio pooler_type",
    "StandardROIHeads": "num_classes batch_size_per_image positive_fraction proposal_matcher box_in_features "
    "box_pooler box_head box_predictor",
    "roi_heads.CascadeROIHeads": "num_classes batch_size_per_image positive_fraction proposal_matchers box_in_features "
    "box_pooler box_heads box_predictors",
    "roi_heads.FastRCNNConvFCHead": "input_shape conv_dims fc_dims",
    "roi_heads.MaskRCNNConvUpsampleHead": "input_shape num_classes conv_dims",
    "FastRCNNOutputLayers": "input_shape box2box_transform num_classes",
    "GeneralizedRCNN": "backbone proposal_generator roi_heads pixel_mean pixel_std",
    "meta_arch.fcos.FCOS": "backbone head num_classes pixel_mean pixel_std",
    "meta_arch.fcos.FCOSHead": "input_shape num_classes conv_dims",
}
WITHOUT = {"ViT", "MViT", "SwinTransformer", "backbone.BasicStem", "backbone.fpn.LastLevelMaxPool"}


def parts(data):
    """Every mapping with a class, at any depth."""
    if isinstance(data, dict):
        if "_target_" in data:
            yield data
        for value in data.values():
            yield from parts(value)
    elif isinstance(data, list):
        for value in data:
            yield from parts(value)


@pytest.mark.parametrize("name", LAZY)
def test_detectron2_can_build_what_a_name_stands_for(name):
    model = yaml.safe_load(resolve_yaml(name))["model"]
    missing = []
    for part in parts(model):
        target = part["_target_"].removeprefix("detectron2.modeling.")
        if target not in WITHOUT:
            missing += [f"{target}.{word}" for word in INSISTED[target].split() if word not in part]
    assert missing == []
