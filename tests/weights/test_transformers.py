"""Names of transformers, from the tensors of the published models and from files that are none of these."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from weights._transformers import transformer_name
from weights.summary import guess_architecture

DATA = Path(__file__).parents[1] / "data" / "new_baselines" / "state_dicts.json.gz"
PUBLISHED = {
    name: {key: np.broadcast_to(np.float32(0), shape) for key, shape in tensors.items()}
    for name, tensors in json.loads(gzip.decompress(DATA.read_bytes())).items()
    if name.startswith("projects/")
}
KINDS = {"vitdet": "ViT", "mvitv2": "MViTv2", "swin": "Swin"}


def test_there_are_29():
    assert len(PUBLISHED) == 29


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_is_named(name):
    match = re.search(r"(vitdet|mvitv2|swin)_([a-z])_", name)
    assert match
    kind, size = match.groups()
    text = guess_architecture(PUBLISHED[name])
    expected = f"{KINDS[kind]}-{size.upper()}"
    assert transformer_name(PUBLISHED[name]) == expected
    neck = " with SimpleFeaturePyramid" if kind == "vitdet" else " FPN"
    classes = 1203 if "/LVIS/" in name else 80
    family = "Cascade Mask R-CNN" if "cascade" in name else "Mask R-CNN"
    assert text == f"{family}, {expected}{neck}, MODEL.ROI_HEADS.NUM_CLASSES {classes}"


def state(**shapes):
    return {key.replace("__", "."): np.zeros(shape, np.float32) for key, shape in shapes.items()}


PATCHES = {"net__patch_embed__proj__weight": (40, 3, 16, 16)}


def test_other_sizes_tell_theirs():
    blocks = {f"net__blocks__{i}__attn__qkv__weight": (120, 40) for i in range(3)}
    assert transformer_name(state(**PATCHES, **blocks)) == "ViT (width 40, blocks 3)"
    pools = {"net__blocks__0__attn__pool_q__weight": (8, 1, 3, 3)}
    assert transformer_name(state(**PATCHES, **blocks, **pools)) == "MViTv2 (width 40, blocks 3)"
    tables = {
        f"net__layers__{i}__blocks__{j}__attn__relative_position_bias_table": (169, 2)
        for i, j in ((0, 0), (1, 0), (1, 1))
    }
    assert transformer_name(state(**PATCHES, **tables)) == "Swin (width 40, blocks 1-2)"


def test_forks_and_what_has_no_patches_stay_a_transformer():
    block = {"net__blocks__0__attn__qkv__weight": (120, 40)}
    assert transformer_name(state(**block)) == "transformer"
    scaled = {"net__blocks__0__gamma_1": (40,)}  # as in BEiT, DiT and LayoutLMv3
    assert transformer_name(state(**PATCHES, **block, **scaled)) == "transformer"
    assert "transformer backbone" in guess_architecture(state(**PATCHES, **block, **scaled))
    apart = {"net__blocks__0__attn__q__weight": (40, 40)}
    assert transformer_name(state(**PATCHES, **apart)) == "transformer"


def test_a_residual_network_is_none():
    assert transformer_name(state(backbone__res2__0__conv1__weight=(8, 8, 1, 1))) is None
