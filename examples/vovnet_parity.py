"""What `tf-d2 parity` needs to know of VoVNet (examples/vovnet.py): its units, and where its PyTorch code is.

TF_D2_EXTEND=examples/vovnet.py PARITY_EXTEND=examples/vovnet_parity.py tf-d2 parity --reference detectron2 ...
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from parity.core.units.backbones import BACKBONES, residual_units

# A stem and stages stage2, stage3, ... of strides 4, 8, ...; their names stand in MODEL.VOVNET.OUT_FEATURES.
BACKBONES["build_vovnet_backbone"] = residual_units("VOVNET", "stage", 2)
BACKBONES["build_vovnet_fpn_backbone"] = residual_units("VOVNET", "stage", 2, extra_levels=1)


def prepare(cfg: Any) -> None:
    """In the detectron2 process: importing the project registers its builders."""
    import_module("vovnet").add_vovnet_config(cfg)
