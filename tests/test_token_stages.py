"""Every unit of a transformer and of FCOS on what the whole model gave it: the same arrays, bit for bit or nearly.

So what parity computes on fed inputs is what the model computes, and the table lists all that lies between.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml

import tf_d2
from parity.core.units import units
from parity.selftest.mutation_run import RECORDINGS, recorded_setup
from tf_d2.config import resolve_yaml
from tf_d2.config.load import reference_yaml
from tf_d2.token_stages import TOKEN_OPS

SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def eagerly() -> Iterator[None]:
    """Making a graph of each model for one picture would take longer than all of its computations."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize(
    "name",
    [
        "vitdet_b",
        pytest.param("fcos", marks=SLOW),
        pytest.param("mvitv2_t", marks=SLOW),
        pytest.param("swin_b_cascade", marks=SLOW),
    ],
)
def test_units_compute_what_the_model_computes(name: str, tmp_path: Path) -> None:
    setup = recorded_setup(RECORDINGS / "new_baselines" / f"{name}.h5", tmp_path)
    assert setup.weights is not None
    predictor = tf_d2.Predictor(setup.config, setup.weights, dtype="float64", fold_norms=False)
    picture = np.load(setup.images[0])
    config = yaml.safe_load(reference_yaml(resolve_yaml(setup.config)))
    traced = dict(predictor.trace(picture, rescaled=False))
    known = {n if n.startswith("input/") else f"steps/{n}": value for n, value in traced.items()}
    compared = 0
    for unit in units(config):
        if unit.kind != "continuous" or unit.op == "normalize" or not set(unit.inputs) <= set(known):
            continue
        got = predictor.run_op(unit.op, unit.args, [known[n] for n in unit.inputs])
        assert len(got) == len(unit.outputs), unit.name
        for array, value in zip(unit.outputs, got, strict=True):
            assert value.shape == known[array].shape, array
            np.testing.assert_allclose(value, known[array], rtol=0, atol=1e-11 * abs(known[array]).max())
        compared += unit.op in TOKEN_OPS or unit.op in ("simfp", "tower")
    assert compared >= 10
