"""The PyTorch reference of Detectron's conventions: its functions against what Detectron's own returned
(``functions.h5``), and its models, free and forced, in float32 and float64."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from support.variants import picture, tiny_config

from parity.backends import torch_reference
from parity.backends.torch_reference import older
from parity.core.units import units

FILE = Path(__file__).parents[2] / "data" / "detectron1" / "functions.h5"
EPS = float(np.finfo(np.float32).eps)


def cases(group: str) -> list[str]:
    with h5py.File(FILE) as file:
        return sorted(file[group])


def recorded(name: str) -> dict[str, Any]:
    with h5py.File(FILE) as file:
        group: Any = file[name]
        return {key: group[key][()] for key in group}


def tensors(found: dict[str, Any], *names: str) -> list[torch.Tensor]:
    return [torch.from_numpy(found[name]) for name in names]


@pytest.mark.parametrize("case", cases("generate_anchors"))
def test_anchors(case: str) -> None:
    r = recorded(f"generate_anchors/{case}")
    got = older.cell_anchors(int(r["stride"]), list(r["sizes"]), list(r["aspect_ratios"]), False)
    np.testing.assert_array_equal(got.astype(np.float32), r["out"].astype(np.float32))
    other = older.cell_anchors(int(r["stride"]), list(r["sizes"]), list(r["aspect_ratios"]), True)
    assert sorted(map(tuple, other)) == sorted(map(tuple, got))


@pytest.mark.parametrize("case", cases("bbox_transform"))
def test_decode_and_clip(case: str) -> None:
    r = recorded(f"bbox_transform/{case}")
    got = older.decode(*tensors(r, "deltas", "boxes"), list(r["weights"])).numpy()
    size = np.abs(r["out"]).max(axis=1, keepdims=True)
    assert (np.abs(got - r["out"]) <= 8 * EPS * (size + 1)).all()
    clipped = older.clip(torch.from_numpy(r["out"]).reshape(-1, 4), tuple(int(v) for v in r["hw"]))
    np.testing.assert_array_equal(clipped.reshape(-1, 12), r["clipped"])


def test_levels() -> None:
    r = recorded("map_rois_to_fpn_levels")
    got = older.assign_levels(torch.from_numpy(r["rois"]), 2, 5, 224.0, 4).numpy() + 2
    np.testing.assert_array_equal(got, r["out"])


@pytest.mark.parametrize("case", cases("nms"))
def test_nms(case: str) -> None:
    r = recorded(f"nms/{case}")
    dets = torch.from_numpy(r["dets"])
    np.testing.assert_array_equal(older.nms(dets[:, :4], dets[:, 4], float(r["thresh"])), r["out"])


@pytest.mark.parametrize("case", cases("box_results"))
def test_ties_at_the_limit(case: str) -> None:
    r = recorded(f"box_results/{case}")
    scores, boxes = tensors(r, "scores", "boxes")
    row, label = torch.nonzero(scores[:, 1:] > 0.05, as_tuple=True)
    chosen, values = boxes.reshape(len(boxes), -1, 4)[row, label + 1], scores[row, label + 1]
    kept = older.per_group(label, lambda rows: rows[older.nms(chosen[rows], values[rows], 0.5)])
    kept = kept[older.by_score(values[kept])]
    kept = kept[older.with_ties(values[kept], int(r["limit"]))]
    kept = kept[torch.argsort(label[kept] * len(row) + kept)]
    np.testing.assert_array_equal(chosen[kept], r["out_boxes"])
    np.testing.assert_array_equal(label[kept] + 1, r["out_classes"])


@pytest.mark.parametrize("case", cases("get_image_blob"))
def test_network_input(case: str) -> None:
    r = recorded(f"get_image_blob/{case}")
    factor = older.resize_factor(r["image"].shape[:2], int(r["target"]), int(r["max_size"]))
    assert factor == r["im_scale"]
    got = older.resize_by_factor(r["image"], factor) - np.float32([102.9801, 115.9465, 122.7717])
    wanted = r["out"][0].transpose(1, 2, 0)[: got.shape[0], : got.shape[1]]
    # OpenCV interpolates in float32: weights of the last place of positions below 256, times 255 levels
    np.testing.assert_allclose(got, wanted, rtol=0, atol=255 * 256 * EPS / 4)


@pytest.mark.parametrize("case", cases("heatmaps_to_keypoints"))
def test_keypoints(case: str) -> None:
    r = recorded(f"heatmaps_to_keypoints/{case}")
    got = older.keypoints(*tensors(r, "maps", "rois"), int(case)).numpy()
    wanted = r["out"].transpose(0, 2, 1)
    largest = np.abs(r["maps"]).max()
    np.testing.assert_allclose(got[..., :2], wanted[..., :2], rtol=4 * EPS, atol=1e-4)
    np.testing.assert_allclose(got[..., 2], wanted[..., 2], rtol=0, atol=32 * EPS * largest)
    np.testing.assert_allclose(got[..., 3], wanted[..., 3], rtol=64 * EPS * largest)


@pytest.mark.parametrize("case", cases("segm_results"))
def test_masks(case: str) -> None:
    r = recorded(f"segm_results/{case}")
    chosen = torch.from_numpy(r["masks"][np.arange(len(r["labels"])), r["labels"]])
    size = (int(r["hw"][0]), int(r["hw"][1]))
    got = older.paste_masks(chosen, torch.from_numpy(r["boxes"]), size, float(r["threshold"]))
    np.testing.assert_array_equal(got, r["out"])


def test_sizes_of_maskrcnn_benchmark() -> None:
    assert older.truncated_size((149, 197), 160, 250) == (160, 211)  # 211.54 is cut
    assert older.truncated_size((197, 149), 160, 250) == (211, 160)
    assert older.truncated_size((160, 170), 160, 250) == (160, 170)


# ---- models -----------------------------------------------------------------------------------------------

_POOLED = {"POOLER_SAMPLING_RATIO": 2, "POOLER_TYPE": "ROIAlign"}
CHANGES = {  # what makes the smallest of the variants a model of that time
    "CONVENTIONS": "detectron",
    "SIZE_DIVISIBILITY": 32,
    "KEYPOINT_ON": True,
    "PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
    "PIXEL_STD": [1.0, 1.0, 1.0],
    "ANCHOR_GENERATOR": {"SIZES": [[16], [32], [64], [128], [256]], "ASPECT_RATIOS": [[0.5, 1.0, 2.0]]},
    "RPN.POST_NMS_TOPK_PER_LEVEL": 20,
    "ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "ROI_BOX_HEAD.NUM_FC": 1,
    "ROI_MASK_HEAD.DILATION": 2,
    "ROI_KEYPOINT_HEAD.CONV_DIMS": [8],
    "ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 2,
} | {
    f"{head}.{key}": value
    for head, side in (("ROI_BOX_HEAD", 7), ("ROI_MASK_HEAD", 14), ("ROI_KEYPOINT_HEAD", 14))
    for key, value in {**_POOLED, "POOLER_RESOLUTION": side}.items()
}


def model_of(conventions: str) -> torch_reference.Model:
    torch.manual_seed(0)
    return torch_reference.build(tiny_config({**CHANGES, "CONVENTIONS": conventions}))


@pytest.mark.parametrize("conventions", ["detectron", "maskrcnn-benchmark"])
def test_a_model_runs_and_its_units_give_the_same_alone(conventions: str) -> None:
    model = model_of(conventions)
    free, _ = torch_reference.run_free(model, picture())
    assert set(free) == {"input/image", *(name for unit in model.units for name in unit.outputs)}
    fed = {name: value.numpy() for name, value in free.items()}
    forced, derived = torch_reference.run_forced(model, fed)
    assert not derived
    for name, value in forced.items():
        np.testing.assert_array_equal(value, free[name], err_msg=name)
    assert len(free["output/instances/scores"])
    resized = free["input/resized"]
    assert resized.dtype == (torch.float32 if conventions == "detectron" else torch.uint8)
    assert tuple(free["steps/input"].shape[2:]) == (64, 96)


def test_where_the_boxes_are() -> None:
    detectron, benchmark = model_of("detectron"), model_of("maskrcnn-benchmark")
    names = {unit.name for unit in units(detectron.config)} - {unit.name for unit in units(benchmark.config)}
    assert names == {"network_boxes"}
    free, _ = torch_reference.run_free(detectron, picture())
    found = "steps/roi_heads/0/0/pred_boxes"
    np.testing.assert_array_equal(free[found], free["output/instances/pred_boxes"])  # in the picture already
    factor = older.resize_factor(picture().shape[:2], 64, 96)
    np.testing.assert_allclose(free["steps/roi_heads/network_boxes"], free[found] * factor, rtol=2 * EPS)
    free, _ = torch_reference.run_free(benchmark, picture())
    ratio = picture().shape[1] / free["input/resized"].shape[1]
    np.testing.assert_allclose(
        free["output/instances/pred_boxes"][:, 0], free[found][:, 0] * ratio, rtol=2 * EPS
    )


def test_float64_is_near_float32() -> None:
    model = model_of("detectron")
    single, _ = torch_reference.run_free(model, picture())
    double, _ = torch_reference.run_free(model.double(), picture())
    for name in ("steps/backbone/p2", "steps/proposal_generator.rpn_head/1/2"):
        assert double[name].dtype == torch.float64
        error = np.linalg.norm(single[name].double() - double[name]) / np.linalg.norm(double[name])
        assert 0 < error < 1e-5


def test_frozen_norms_have_no_epsilon() -> None:
    norm = model_of("detectron").get_submodule("backbone.bottom_up.stem.conv1.norm")
    x = torch.ones(1, 4, 1, 1, dtype=torch.float64)
    assert (norm.double()(x) == 1).all()  # weight 1, variance 1
    config = tiny_config({k: v for k, v in CHANGES.items() if k not in ("CONVENTIONS", "ANCHOR_GENERATOR")})
    norm = torch_reference.build(config).get_submodule("backbone.bottom_up.stem.conv1.norm")
    assert (norm.double()(x) < 1).all()
