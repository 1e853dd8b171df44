"""Units of networks that only a LazyConfig can say, from the keys that describe them."""

import pytest

from parity.core.units import units

LEVELS = ["p2", "p3", "p4", "p5", "p6"]


def model(backbone, inner, read):
    return {
        "MODEL": {
            "META_ARCHITECTURE": "ProposalNetwork",
            "BACKBONE": {"NAME": backbone, "OUT_FEATURES": LEVELS, "INNER_FEATURES": inner},
            "FPN": {"IN_FEATURES": read},
            "PROPOSAL_GENERATOR": {"NAME": "RPN"},
            "RPN": {"IN_FEATURES": LEVELS},
        }
    }


def test_a_plain_network_under_a_pyramid():
    found = {unit.name: unit for unit in units(model("SimpleFeaturePyramid", ["last_feat"], ["last_feat"]))}
    net, pyramid = found["net"], found["fpn"]
    assert (net.op, net.args, net.inputs) == ("module", ("backbone.net",), ("steps/input",))
    assert net.outputs == pyramid.inputs == ("steps/backbone.net/last_feat",)
    assert pyramid.op == "fpn" and pyramid.outputs == tuple(f"steps/backbone/{p}" for p in LEVELS)
    assert found["rpn_head"].inputs == pyramid.outputs


def test_a_hierarchical_network_under_an_fpn():
    scales = ["scale2", "scale3", "scale4", "scale5"]
    found = {unit.name: unit for unit in units(model("FPN", scales, scales[1:]))}
    assert found["bottom_up"].outputs == tuple(f"steps/backbone.bottom_up/{s}" for s in scales)
    assert found["fpn"].inputs == tuple(f"steps/backbone.bottom_up/{s}" for s in scales[1:])
    assert found["fpn"].op == "fpn" and found["fpn"].args == tuple(LEVELS)


@pytest.mark.parametrize("name", ["ViT", "MViT", "SwinTransformer"])
def test_a_network_alone(name):
    found = {unit.name: unit for unit in units(model(name, [], []))}
    assert found["backbone"].outputs == tuple(f"steps/backbone/{p}" for p in LEVELS)
