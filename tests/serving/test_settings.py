"""A model of grouped convolutions under both settings of oneDNN: Predictor, and exported under one, served under the
other. The answers are those that detectron2 gave (tests/support/variants.py).
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import variants
from support.variant_files import write_model
from tensorflow.python.util import _pywrap_util_port

from tf_d2.serving import export

WORKER = Path(__file__).with_name("settings_worker.py")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_files(folder, name):
    """Files of a variant and of its picture."""
    write_model(folder, name)
    Image.fromarray(variants.picture()[:, :, ::-1]).save(folder / "picture.png")


def opposite():
    """The environment with oneDNN where it is off here (limited to AVX2), and without it where it is on."""
    if _pywrap_util_port.IsMklEnabled():
        return os.environ | {"TF_ENABLE_ONEDNN_OPTS": "0"}
    return os.environ | {"TF_ENABLE_ONEDNN_OPTS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"}


@pytest.mark.wide
@pytest.mark.parametrize("name", ["grouped", "regnety"])
def test_models_travel_between_settings(name, tmp_path, pixels_only):
    here, there = load(WORKER), tmp_path / "there"
    there.mkdir()
    write_files(there, name)
    mine = export(there / "config.yaml", there / "model.pkl", tmp_path / "mine").path
    subprocess.run([sys.executable, WORKER, there, mine], check=True, env=opposite())

    found = [here.answers(there), here.served(there / "export" / "1", there / "picture.png")]
    found += [dict(np.load(there / f"{what}.npz")) for what in ("predicted", "served")]
    with np.load(variants.RECORDING) as recording:
        for instances in found:
            for field, value in instances.items():
                right = recording[f"{name}/output/instances/{field}"]
                if value.dtype.kind == "f":
                    np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-3, err_msg=field)
                else:
                    np.testing.assert_array_equal(value, right, err_msg=field)
