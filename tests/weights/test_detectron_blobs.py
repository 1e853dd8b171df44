"""Every blob of Detectron's 13 models in detectron2's catalogue has its place in ours, and nothing lacks one.

``zoo_blobs.json.gz``: names and shapes that Detectron's own model builder makes for its configurations
(``tests/support/detectron_blobs.py`` on a checkout).
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import weights
from tf_d2.config import load_config
from tf_d2.modeling import build_model
from weights import Checkpoint
from weights.legacy import from_caffe2
from weights.mapping import torch_shape

FILE = Path(__file__).parents[1] / "data" / "detectron1" / "zoo_blobs.json.gz"
MODELS: dict[str, dict[str, list[int]]] = json.loads(gzip.decompress(FILE.read_bytes()))
_BILINEAR = np.array([0.25, 0.75, 0.75, 0.25], np.float32)


def blob(name: str, shape: list[int]) -> np.ndarray:
    """Zeros that take no memory; the one blob whose values are looked at has them."""
    if name == "kps_score_w":
        return np.eye(shape[0], dtype=np.float32)[:, :, None, None] * np.outer(_BILINEAR, _BILINEAR)
    return np.broadcast_to(np.float32(0), shape)


def test_the_catalogue_is_covered() -> None:
    assert len(MODELS) == 13
    counts = [len(MODELS[name]) for name in ("e2e_faster_rcnn_R-50-C4_1x", "e2e_mask_rcnn_R-101-FPN_1x")]
    assert counts == [169, 354]
    assert all(any(re.match("conv_rpn", b) for b in blobs) for n, blobs in MODELS.items() if "fast_" not in n)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.wide if "R-101" in n or "X-101" in n else ()) for n in MODELS]
)
def test_blobs_are_the_variables(name: str) -> None:
    with keras.StatelessScope(initialize_variables=False):
        model = build_model(load_config(f"Detectron/{name}"))
        specs, frozen = model.variable_specs(), model.frozen_statistics()
    keras.utils.clear_session()  # forgets the variables that wait for their initial value
    blobs = {key: blob(key, shape) for key, shape in MODELS[name].items()}
    checkpoint = Checkpoint(from_caffe2(blobs), "caffe2-pkl", author="Caffe2", matching_heuristics=True)
    state = weights.matched_state(checkpoint, specs)
    wanted = {weights.path_to_key(path) for path in specs.keys() - frozen}
    assert sorted(state) == sorted(wanted)
    for path in sorted(specs.keys() - frozen):
        shape = torch_shape(tuple(specs[path]), path.rsplit("/", 1)[-1])
        flattened = (*shape[:1], int(np.prod(shape[1:])))  # of a linear layer behind a map
        assert state[weights.path_to_key(path)].shape in (shape, flattened), path
