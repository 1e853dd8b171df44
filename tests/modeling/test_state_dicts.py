"""Every published model has exactly the variables of detectron2's state dict, names and shapes.

tests/data/zoo_state_dicts.json.gz lists names and shapes of `model.state_dict()` of the real detectron2
for its 64 core models and those of its projects (`{config path: {"keys": {name: shape}}}`).
Models are built here without allocating their variables.
"""

import gzip
import json
import re
from pathlib import Path

import keras
import pytest

from tf_d2.config import load_config
from tf_d2.modeling import build_model
from weights import harmless_reason, path_to_key

FILE = Path(__file__).parents[1] / "data" / "zoo_state_dicts.json.gz"
MODELS = {
    name.removeprefix("configs/").rsplit(".", 1)[0]: {key: tuple(shape) for key, shape in row["keys"].items()}
    for name, row in json.loads(gzip.decompress(FILE.read_bytes())).items()
}
# What an inference model has no variable for.
LEFT_OUT = re.compile(r"\.num_batches_tracked$|^roi_heads\.embedder\.")


def alike(name):
    """Whether a model before this one has the same tensors, this one has a ResNet-101 or ResNeXt in the place of the
    ResNet-50 that another has, or it is one of DensePose's many combinations of two heads and six outputs."""
    earlier = list(MODELS)[: list(MODELS).index(name)]
    if re.search(r"DensePose/.*(DL_WC|WC2|_CA_|_I0_)|X_101", name):
        return True
    smaller = name.replace("R_101", "R_50")
    others = {smaller, smaller.replace("_3x", "_1x")}
    return any(MODELS[m] == MODELS[name] for m in earlier) or (
        "R_101" in name and bool(others & MODELS.keys())
    )


def variable_specs(name, opts=()):
    """Paths and shapes; variables stay uninitialised, so that the largest model takes no memory."""
    with keras.StatelessScope(initialize_variables=False):
        specs = build_model(load_config(name, opts)).variable_specs()
    keras.utils.clear_session()  # forgets the variables that wait for their initial value
    return specs


def keras_shape(torch_shape, spec):
    """The layout rule on shapes alone. ``spec`` only tells a linear layer after a flatten from any other."""
    if len(torch_shape) == 4:
        out_channels, in_channels, height, width = torch_shape
        return height, width, in_channels, out_channels
    if len(torch_shape) == 2 and len(spec) == 4:
        height, width, channels, _ = spec
        assert channels * height * width == torch_shape[1]
        return height, width, channels, torch_shape[0]
    return torch_shape[::-1]


def test_all_models_are_listed():
    projects = {"PointRend": 6, "DensePose": 41, "DeepLab": 2, "Panoptic-DeepLab": 3}
    projects |= {"TridentNet": 3, "TensorMask": 2}
    counts = {name: sum(m.startswith(f"projects/{name}/") for m in MODELS) for name in projects}
    assert counts == projects
    assert sum(not m.startswith("projects/") for m in MODELS) == 64


@pytest.mark.parametrize("name", [m for m in MODELS if "/cse/" in m])
def test_embedders_are_those_of_the_configuration(name):
    head = load_config(name).roi_heads.densepose
    shapes = {}
    for one in head.embedders:
        shapes |= one.shapes(head.predictor.embed_size)
    assert shapes == {k: v for k, v in MODELS[name].items() if k.startswith("roi_heads.embedder.")}
    assert {mesh for _, mesh in head.class_to_mesh} <= {one.mesh for one in head.embedders}


@pytest.mark.parametrize(
    "name", [pytest.param(m, marks=pytest.mark.wide if alike(m) else ()) for m in MODELS]
)
def test_variables_are_the_state_dict(name):
    specs = variable_specs(name)
    expected = {k: v for k, v in MODELS[name].items() if not LEFT_OUT.search(k)}
    by_key = {path_to_key(path): shape for path, shape in specs.items()}
    assert len(by_key) == len(specs)
    assert sorted(by_key) == sorted(expected)
    wrong = {k: (v, by_key[k]) for k, v in expected.items() if keras_shape(v, by_key[k]) != by_key[k]}
    assert not wrong
    assert all(harmless_reason(key) for key in MODELS[name].keys() - expected.keys())
    assert not any(harmless_reason(key) for key in expected)


def test_rpn_convolutions_without_a_width_keep_that_of_their_input():
    specs = variable_specs("COCO-Detection/faster_rcnn_R_50_FPN_1x", ["MODEL.RPN.CONV_DIMS", [12, -1, 20]])
    head = "proposal_generator/rpn_head/"
    kernels = {p.removeprefix(head): s for p, s in specs.items() if p.startswith(head) and len(s) == 4}
    assert kernels == {  # detectron2's
        "conv/conv0/kernel": (3, 3, 256, 12),
        "conv/conv1/kernel": (3, 3, 12, 12),
        "conv/conv2/kernel": (3, 3, 12, 20),
        "objectness_logits/kernel": (1, 1, 20, 3),
        "anchor_deltas/kernel": (1, 1, 20, 12),
    }


def test_the_res5_head_has_bottlenecks_behind_any_backbone():
    opts = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    specs = variable_specs("COCO-Detection/faster_rcnn_R_50_C4_1x", opts)
    kernels = {
        p.removeprefix("roi_heads/res5/"): s for p, s in specs.items() if "/res5/" in p and len(s) == 4
    }
    assert kernels == {  # detectron2's
        "0/shortcut/kernel": (1, 1, 256, 512),
        "0/conv1/kernel": (1, 1, 256, 512),
        **{f"{i}/conv1/kernel": (1, 1, 512, 512) for i in (1, 2)},
        **{f"{i}/conv2/kernel": (3, 3, 512, 512) for i in range(3)},
        **{f"{i}/conv3/kernel": (1, 1, 512, 512) for i in range(3)},
    }
