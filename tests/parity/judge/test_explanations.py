"""Why an item has no partner: a proposal whose logit lies at the cut of its level's best."""

import numpy as np
import pytest

from parity.core.profiles import STRICT
from parity.core.units.table import PROPOSALS
from parity.judge.context import Context
from parity.judge.detections import Noise
from parity.judge.explanations import explain_with_traces

CONFIG = {"MODEL": {"RPN": {"PRE_NMS_TOPK_TEST": 2}}}
NOISE = Noise(0.0, 1e-3)  # pixels, logits


def explained(logits, score, config=CONFIG):
    trace = {
        "steps/proposal_generator.rpn_head/0/0": np.array([[[[9.0, 8.0]]]], np.float32),  # not cut
        "steps/proposal_generator.rpn_head/0/1": np.array([[[logits]]], np.float32),
        PROPOSALS.scores: np.array([9.0, score], np.float32),
    }
    context = Context(trace, {}, STRICT, config=config)
    return explain_with_traces(context, PROPOSALS, NOISE)("reference", 1)


@pytest.mark.parametrize(
    "score, cut, certified",
    [
        (2.0, 1.9995, True),  # the last of the best: the first that is left out is within the noise
        (1.9995, 2.0, True),  # the first that is left out
        (3.0, 1.9995, False),
        (1.0, 2.0, False),
    ],
)
def test_a_logit_at_the_cut_of_its_level_is_a_reason(score, cut, certified):
    proof = explained([1.0, 3.0, 1.9995, 2.0], score)
    assert (proof.reason, proof.side, proof.index) == ("pre-nms-cut", "reference", 1)
    assert proof.threshold == pytest.approx(cut) and proof.certified == certified
    assert "of level 1's 2 best" in proof.text


@pytest.mark.parametrize(
    "logits, config",
    [
        ([2.0, 1.0], CONFIG),  # no more than the best
        ([3.0, 1.5, 1.0], CONFIG),  # no logit of that value
        ([1.0, 3.0, 1.9995, 2.0], None),
        ([1.0, 3.0, 1.9995, 2.0], {"MODEL": {}}),
    ],
)
def test_without_a_cut_there_is_no_reason(logits, config):
    assert explained(logits, 2.0, config) is None
