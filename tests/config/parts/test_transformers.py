"""ViT, its pyramid, MViTv2, Swin and FCOS as LazyConfig says them."""

import gzip
import json
import re
from pathlib import Path

import pytest
import yaml

from tf_d2.config import ConfigError, load_config, load_config_text
from tf_d2.config.parts.mvit import MViTConfig
from tf_d2.config.zoo_lazy import LAZY

VIT = "projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep"
MVIT = "projects/MViTv2/configs/mask_rcnn_mvitv2_t_3x"
SWIN = "projects/ViTDet/configs/COCO/cascade_mask_rcnn_swin_b_in21k_50ep"
FCOS = "COCO-Detection/fcos_R_50_FPN_1x"
DATA = Path(__file__).parents[2] / "data" / "new_baselines" / "dumps.json.gz"
DUMPS = json.loads(gzip.decompress(DATA.read_bytes()))

PARTIAL = """
functools.partial
  args: [&norm1 !!python/name:torch.nn.modules.normalization.LayerNorm '']
  state: !!python/tuple
  - *norm1
  - !!python/tuple []
  - {eps: 1.0e-03}
  - null
"""


def with_norm(text):
    """The dump of a ViT with ``norm_layer`` written as ``text``."""
    data = LAZY[VIT]()
    data["model"]["backbone"]["net"]["norm_layer"] = "NORM"
    dump = yaml.safe_dump(data, default_flow_style=False)
    indent = re.search(r"^( *)norm_layer: NORM", dump, re.M)[1]
    lines = text.strip().split("\n")
    return dump.replace("NORM", "\n".join([lines[0], *(indent + line for line in lines[1:])]))


def test_the_epsilon_of_a_partial_norm():
    for text, eps in (
        ("!!python/object/apply:" + PARTIAL.strip(), 1e-3),
        ("!!python/name:torch.nn.modules.normalization.LayerNorm ''", 1e-5),
        ("null", 1e-5),
    ):
        assert load_config_text(with_norm(text)).model.backbone.net.norm_eps == eps, text


@pytest.mark.parametrize(
    "text",
    [
        "!!python/name:torch.nn.BatchNorm2d ''",
        "!!python/object/apply:" + PARTIAL.strip().replace("eps: 1.0e-03", "elementwise_affine: false"),
        "!!python/object/apply:" + PARTIAL.strip().replace("[&norm1 ", "[1, &norm1 "),
    ],
)
def test_another_norm_is_refused(text):
    with pytest.raises(ConfigError, match="norm_layer"):
        load_config_text(with_norm(text))


def test_missing_arguments_are_the_constructors_defaults():
    vit = load_config(VIT).model.backbone.net
    assert (vit.img_size, vit.pretrain_img_size, vit.pretrain_use_cls_token) == (1024, 224, True)
    assert [i for i in range(12) if i not in vit.window_block_indexes] == [2, 5, 8, 11]
    mvit = load_config(MVIT).model.backbone.bottom_up
    assert (mvit.img_size, mvit.adaptive_window_size, mvit.norm_eps) == (224, 56, 1e-6)
    swin = load_config(SWIN).model.backbone.bottom_up
    assert (swin.window_size, swin.norm_eps, swin.ape) == (7, 1e-5, False)
    fcos = load_config(FCOS).model
    assert (fcos.score_thresh_test, fcos.nms_thresh_test, fcos.anchors.offset) == (0.2, 0.6, 0.5)
    assert fcos.anchors.sizes == ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))


def test_strides():
    assert load_config(VIT).model.backbone.strides == {f"p{i}": 2**i for i in range(2, 7)}
    assert load_config(MVIT).model.backbone.strides == {f"p{i}": 2**i for i in range(2, 7)}
    assert load_config(FCOS).model.backbone.strides == {f"p{i}": 2**i for i in range(3, 8)}


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        (VIT, "model.backbone.net.num_heads", 7, "a divisor of embed_dim, 768"),
        (VIT, "model.backbone.net.in_chans", 4, "in_chans = 4"),
        (VIT, "model.backbone.net.act_layer", "python:torch.nn.ReLU", "act_layer"),
        (VIT, "model.backbone.net.mlp_norm", True, "argument 'mlp_norm' of ViT"),
        (VIT, "model.backbone.scale_factors", [8.0, 4.0], "scale_factors"),
        (VIT, "model.backbone.scale_factors", [4.0, 1.0], "in a row"),
        (VIT, "model.backbone.norm", "", "needs one"),
        (VIT, "model.backbone.in_feature", "feat", "makes only last_feat"),
        (MVIT, "model.backbone.bottom_up.last_block_indexes", [0, 2], "at least three"),
        (MVIT, "model.backbone.bottom_up.out_features", ["scale2", "scale9"], "scale2, scale3, scale4"),
        (SWIN, "model.backbone.bottom_up.num_heads", [4, 8, 16, 33], "stage 3 has 1024 channels"),
        (SWIN, "model.backbone.bottom_up.out_indices", [1, 4], "from 0 to 3"),
        (FCOS, "model.head.num_classes", 3, "num_classes = 3"),
        (FCOS, "model.head.conv_dims", [128, "x"], "expected a list of channel numbers"),
    ],
)
def test_refused(name, path, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(name, [path, value])


def test_schedule_of_mvitv2_t():
    blocks = MViTConfig(depth=10, last_block_indexes=(0, 2, 7, 9)).blocks
    got = [
        (b.dim // 96, b.dim_out // 96, b.num_heads, b.stride_q, b.stride_kv, b.window, b.table_length)
        for b in blocks
    ]
    assert got == [
        (1, 1, 1, 1, 4, 56, 111),
        (1, 2, 2, 2, 2, 56, 55),
        (2, 2, 2, 1, 4, 0, 55),
        (2, 4, 4, 2, 1, 28, 55),
        *[(4, 4, 4, 1, 1, 14, 27)] * 3,
        (4, 4, 4, 1, 2, 0, 27),
        (4, 8, 8, 2, 1, 14, 27),
        (8, 8, 8, 1, 1, 0, 13),
    ]


def test_windows_of_mvitv2_b():
    blocks = MViTConfig(depth=24, last_block_indexes=(1, 4, 20, 23)).blocks
    assert [b.window for b in blocks] == [56, 56, 56, 28, 0, 28, *[14] * 14, 0, 14, 7, 0]


def test_a_dense_head_of_its_own_widths():
    """() says that all are as wide as the pyramid, so that a name and the dump of its file stay one configuration."""
    assert load_config(FCOS).model.conv_dims == ()
    config = load_config(FCOS, ["model.head.conv_dims", [64, 128]])
    assert (config.model.conv_dims, config.model.num_convs) == ((64, 128), 2)
    retinanet = DUMPS["configs/COCO-Detection/retinanet_R_50_FPN_1x.py"]
    options = ["model.head.conv_dims", [64, 128]]
    assert load_config_text(retinanet).model.conv_dims == ()
    assert load_config_text(retinanet, options).model.conv_dims == (64, 128)
    with pytest.raises(ConfigError, match="expected 2, the number of the head's conv_dims"):
        load_config_text(retinanet, [*options, "MODEL.RETINANET.NUM_CONVS", 3])
