"""A model of grouped convolutions under both settings of oneDNN: Predictor, and exported under one, served under the
other. The answers are those that detectron2 gave (tests/parity/variants.py).
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml
from PIL import Image
from tensorflow.python.util import _pywrap_util_port

import weights
from tf_d2.config import load_config_text
from tf_d2.modeling import build_model
from tf_d2.serving import export

TESTS = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("settings_worker.py")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VARIANTS = load(TESTS / "parity" / "variants.py")


def write_model(folder, name):
    """Files of a variant and of its picture."""
    config = yaml.safe_dump(VARIANTS.tiny_config(VARIANTS.VARIANTS[name]) | {"VERSION": 2})
    (folder / "config.yaml").write_text(config)
    with keras.StatelessScope(initialize_variables=False):
        specs = build_model(load_config_text(config)).variable_specs()
    keras.utils.clear_session()
    shapes = {
        weights.path_to_key(p): (s[-1], s[-2], *s[:-2]) if p.endswith("kernel") else s
        for p, s in specs.items()
    }
    weights.write_detectron2_pkl(folder / "model.pkl", VARIANTS.tiny_state(shapes))
    Image.fromarray(VARIANTS.picture()[:, :, ::-1]).save(folder / "picture.png")


def opposite():
    """The environment with oneDNN where it is off here (limited to AVX2), and without it where it is on."""
    if _pywrap_util_port.IsMklEnabled():
        return os.environ | {"TF_ENABLE_ONEDNN_OPTS": "0"}
    return os.environ | {"TF_ENABLE_ONEDNN_OPTS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"}


@pytest.mark.parametrize("name", ["grouped", "regnety"])
def test_models_travel_between_settings(name, tmp_path):
    here, there = load(WORKER), tmp_path / "there"
    there.mkdir()
    write_model(there, name)
    mine = export(there / "config.yaml", there / "model.pkl", tmp_path / "mine").path
    subprocess.run([sys.executable, WORKER, there, mine], check=True, env=opposite())

    found = [here.answers(there), here.served(there / "export" / "1", there / "picture.png")]
    found += [dict(np.load(there / f"{what}.npz")) for what in ("predicted", "served")]
    with np.load(VARIANTS.RECORDING) as recording:
        for instances in found:
            for field, value in instances.items():
                right = recording[f"{name}/output/instances/{field}"]
                if value.dtype.kind == "f":
                    np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-3, err_msg=field)
                else:
                    np.testing.assert_array_equal(value, right, err_msg=field)
