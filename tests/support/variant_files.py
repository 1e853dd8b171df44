"""Files of the models of `support.variants`, as a user has them."""

from __future__ import annotations

from pathlib import Path

import keras
import yaml
from support import variants

import weights
from tf_d2.config import load_config_text
from tf_d2.modeling import build_model


def write_model(folder: Path, name: str) -> None:
    """config.yaml and model.pkl of a variant.

    Linear layers after a flatten show as convolutions here: the same numbers in the same order.
    """
    config = yaml.safe_dump(variants.tiny_config(variants.VARIANTS[name]) | {"VERSION": 2})
    (folder / "config.yaml").write_text(config)
    with keras.StatelessScope(initialize_variables=False):
        specs = build_model(load_config_text(config)).variable_specs()
    keras.utils.clear_session()
    shapes = {
        weights.path_to_key(p): (s[-1], s[-2], *s[:-2]) if p.endswith("kernel") else s
        for p, s in specs.items()
    }
    weights.write_detectron2_pkl(folder / "model.pkl", variants.tiny_state(shapes))
