"""The contract of exports says of every input and output what it is, with the dtype it has, and needs no TensorFlow."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tf_d2.serving.saved_model import read_saved_model
from tf_d2.serving_contract import CHOICES, OPTION_NAMES, TENSORS, ExportOptions


def test_tensors_of_an_export_are_described_with_their_dtypes(demo_export):
    (version,) = (path for path in demo_export.root.iterdir() if path.name.isdigit())
    signatures = read_saved_model(version / "saved_model.pb").meta_graphs[0].signature_def
    seen = set()
    for signature in ("serving_default", "serving_bytes"):
        definition = signatures[signature]
        for name, info in {**definition.inputs, **definition.outputs}.items():
            seen.add(name)
            dtype = tf.as_dtype(info.dtype)
            described = np.dtype(TENSORS[name].dtype or "float32")
            assert dtype == tf.string or dtype.as_numpy_dtype == described, name
    assert {"inputs", "image_bytes", "detection_boxes", "detection_classes", "image_status"} <= seen


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_one_of_those_there_are(name):
    for value in CHOICES[name]:
        assert getattr(replace(ExportOptions(), **{name: value}), name) == value
    with pytest.raises(ValueError, match=f"{name}='other': choose one of {CHOICES[name][0]}, "):
        replace(ExportOptions(), **{name: "other"})
    assert name in OPTION_NAMES


def test_it_is_plain_data():
    code = "import sys, tf_d2.serving_contract; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
