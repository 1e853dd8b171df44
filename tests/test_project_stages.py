"""Every unit of the models of detectron2's projects on what the whole model gave it: the same arrays.

So what parity computes on fed inputs is what the model computes, and the table lists all that lies between.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml
from support.recordings import recording

from parity.backends.results import named_outputs
from parity.core.units import units
from tf_d2.config import resolve_yaml
from tf_d2.config.load import reference_yaml
from tf_d2.project_stages import PROJECT_OPS

MODELS = {
    "point_rend_densepose/pointrend_r50": {"mask_look", "mask_points", "mask_refine"},
    "point_rend_densepose/pointrend_semantic": {"sem_seg_coarse", "sem_seg_refine"},
    "deeplab_trident/deeplab_v3": {"enlarge"},
    "deeplab_trident/deeplab_v3_plus": {"decode", "enlarge"},
    "panoptic_deeplab/coco": {"decode", "enlarge", "panoptic_deeplab"},
    "tensor_mask/aligned": {"mask_fuse", "mask_windows", "tensor_mask_out"},
}


@pytest.fixture(autouse=True)
def eagerly() -> Iterator[None]:
    """Making a graph of each model for one picture would take longer than all of its computations."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def test_every_operation_is_in_a_model() -> None:
    assert set().union(*MODELS.values()) == set(PROJECT_OPS)


@pytest.mark.parametrize("name", MODELS)
def test_units_compute_what_the_model_computes(name: str, tmp_path: Path) -> None:
    model = recording(f"{name}.npz")
    predictor = model.predictor(tmp_path, fold_norms=False)
    config = yaml.safe_load(reference_yaml(resolve_yaml(tmp_path / "config.yaml", ["MODEL.WEIGHTS", ""])))
    traced = predictor.trace(model.image, rescaled=False)
    known = {n if n.startswith("input/") else f"steps/{n}": value for n, value in traced.items()}
    known |= {"input/image": model.image} | named_outputs(predictor(model.image))[0]
    used = set()
    for unit in units(config):
        if unit.op not in PROJECT_OPS:
            continue
        got = predictor.run_op(unit.op, unit.args, [known[n] for n in unit.inputs])
        assert len(got) == len(unit.outputs), unit.name
        used.add(unit.op)
        for array, value in zip(unit.outputs, got, strict=True):
            assert value.shape == known[array].shape and value.dtype == known[array].dtype, array
            if value.dtype.kind == "f":  # the same operations on the same inputs, perhaps in another order
                limit = 1e-5 * np.abs(known[array]).max(initial=0)
                np.testing.assert_allclose(value, known[array], rtol=0, atol=limit, err_msg=array)
            else:
                np.testing.assert_array_equal(value, known[array], err_msg=array)
    assert used == MODELS[name]
