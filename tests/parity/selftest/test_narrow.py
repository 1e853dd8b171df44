"""Published models made small: what shrinks, and that what a model is stays."""

import re

import pytest

from parity.selftest.matrix import zoo_models
from parity.selftest.narrow import narrow
from tf_d2.config import load_config

VITDET = "projects/ViTDet/configs/COCO/cascade_mask_rcnn_vitdet_l_100ep"
SWIN = "projects/ViTDet/configs/LVIS/cascade_mask_rcnn_swin_b_in21k_50ep"
MVIT = "projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_h_in21k_lsj_3x"
EMBEDDING = "projects/DensePose/configs/cse/densepose_rcnn_R_50_FPN_soft_animals_finetune_4k"


def small(model):
    """The overrides by key."""
    return dict(zip(*[iter(narrow(model))] * 2, strict=True))


def test_models_keep_their_groups():
    words = narrow("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x")
    assert words[-2:] == ["MODEL.RESNETS.WIDTH_PER_GROUP", "1"]
    assert "MODEL.RESNETS.NUM_GROUPS" not in words
    regnet = narrow("new_baselines/mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ")
    assert not any("RESNETS" in word for word in regnet)


@pytest.mark.parametrize(
    "model", ["Misc/mask_rcnn_R_50_FPN_3x_gn", "Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv"]
)
def test_models_have_whole_groups_of_channels_to_normalise(model):
    words = small(model)
    groups = 32 if "X_152" in model else 1
    for width in (
        int(words["MODEL.RESNETS.STEM_OUT_CHANNELS"]),
        groups * int(words["MODEL.RESNETS.WIDTH_PER_GROUP"]),
        int(words["MODEL.RESNETS.RES2_OUT_CHANNELS"]),
        int(words["MODEL.FPN.OUT_CHANNELS"]),
    ):
        assert width % 32 == 0


@pytest.mark.parametrize("model", [VITDET, SWIN, MVIT])
def test_transformers_keep_depth_windows_and_heads(model):
    backbones = (load_config(model, opts).model.backbone for opts in ((), narrow(model)))
    whole, narrowed = (getattr(b, "net", None) or b.bottom_up for b in backbones)
    for name in ("depth", "depths", "num_heads", "window_size", "window_block_indexes", "last_block_indexes"):
        assert getattr(whole, name, None) == getattr(narrowed, name, None)
    assert narrowed.embed_dim * 4 <= whole.embed_dim


def test_fewer_vertices_of_every_mesh():
    words = small(EMBEDDING)
    start = "MODEL.ROI_DENSEPOSE_HEAD.CSE.EMBEDDERS."
    meshes = [key.removeprefix(start).split(".")[0] for key in words if key.endswith("NUM_VERTICES")]
    assert len(meshes) == 9 and set(words[f"{start}{mesh}.NUM_VERTICES"] for mesh in meshes) == {"200"}


def test_every_published_model_has_a_configuration_when_it_is_small():
    names = zoo_models()
    kinds = {re.sub(r"_(\d+|[blhts])(?=_)|R_\d+", "", name): name for name in names}  # one of each kind
    for name in kinds.values():
        load_config(name, narrow(name))
