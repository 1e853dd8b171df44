"""Random weights for benches: always the same, and lively: activations neither vanish nor explode, and about the
intended number of scores pass."""

import math

import pytest
import torch
import yaml

from parity.backends import torch_reference
from parity.bench.suite.models import bench_picture
from parity.bench.suite.weights import background_shift, calibrate, randomise, sigmoid_shift
from tf_d2.config import resolve_yaml

NARROW = (
    "MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 32 MODEL.RESNETS.WIDTH_PER_GROUP 8 "
    "MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.FC_DIM 64 MODEL.ROI_MASK_HEAD.CONV_DIM 16 "
    "INPUT.MIN_SIZE_TEST 160 INPUT.MAX_SIZE_TEST 280 MODEL.RPN.PRE_NMS_TOPK_TEST 200 "
    "MODEL.RPN.POST_NMS_TOPK_TEST 150"
).split()


def made(name, pairs=200):
    config = yaml.safe_load(resolve_yaml(name, NARROW))
    model = torch_reference.build(config)
    with torch.no_grad():
        randomise(model, 3)
    picture = bench_picture(160, 240)
    calibrate(model, config["MODEL"], lambda: torch_reference.run_free(model, picture, None), pairs=pairs)
    return model, torch_reference.run_free(model, picture, None)[0]


@pytest.fixture(scope="module")
def mask_rcnn():
    return made("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x")


def test_activations_keep_their_scale(mask_rcnn):
    _, stages = mask_rcnn
    maps = {k: float(v.std()) for k, v in stages.items() if k.startswith("steps/backbone") and v.ndim == 4}
    assert len(maps) >= 10
    assert {k: s for k, s in maps.items() if not 0.1 < s < 5} == {}


def test_detections_are_neither_none_nor_alike(mask_rcnn):
    _, stages = mask_rcnn
    scores, classes = stages["output/instances/scores"], stages["output/instances/pred_classes"]
    assert 20 <= len(scores) <= 100 and len(set(classes.tolist())) > 5
    assert float(scores.max() - scores.min()) > 0.1
    share = stages["output/instances/pred_masks"].float().mean()
    assert 0 < float(share) < 0.5


def test_weights_are_always_the_same(mask_rcnn):
    model, _ = mask_rcnn
    again, _ = made("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x")
    pairs = zip(model.state_dict().items(), again.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_the_stages_of_a_cascade_agree_on_classes():
    model, stages = made("Misc/cascade_mask_rcnn_R_50_FPN_3x")
    assert 10 <= len(stages["output/instances/scores"]) <= 100
    first, second = (model.roi_heads.box_predictor[k].cls_score.weight for k in (0, 1))
    scale = second[:, 0] / first[:, 0]
    assert torch.allclose(second, first * scale[:, None], rtol=1e-3)


def test_scores_pass_as_often_as_wanted():
    logits = torch.randn(500, 11, generator=torch.Generator().manual_seed(0)) * 3
    shifted = logits + background_shift(logits, 0.05, 300)
    assert abs(int((shifted.softmax(1)[:, :-1] > 0.05).sum()) - 300) <= 3
    shifted = logits + sigmoid_shift(logits, 0.05, 300)
    assert int((shifted.sigmoid() > 0.05 * (1 - 1e-5)).sum()) == 300
    assert math.isclose(float(sigmoid_shift(logits, 0.5, 10**9)[0]), -float(logits.min()), rel_tol=1e-5)
