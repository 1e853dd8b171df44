"""One array, one set, one origin at a time: what the comparator makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from parity.core.feed import Fed, hashes
from parity.core.profiles import STRICT
from parity.core.results import StageResult
from parity.core.status import Status, Verdict
from parity.core.units import Stage
from parity.core.units.table import DETECTIONS, RESULTS
from parity.judge.comparator import compare_image
from parity.judge.context import Context, rung_of
from parity.judge.limits import set_floor

IMAGE, P2, P3 = "input/image", "steps/backbone/p2", "steps/backbone/p3"
BOXES, SCORES, CLASSES, MASKS = (
    f"output/instances/{n}" for n in ("pred_boxes", "scores", "pred_classes", "pred_masks")
)
LOGITS = "steps/roi_heads.mask_head.predictor"
FED = Fed(hashes({IMAGE: np.zeros((28, 28, 3), np.uint8)}))


def table(*edges: tuple[str, str]) -> dict[str, Stage]:
    """Stages that are each computed from one array."""
    return {name: Stage(name, (source,), "continuous", name, False, False) for name, source in edges}


def maps(**scales: float) -> dict[str, np.ndarray]:
    """A picture, and feature maps that are off by a factor."""
    rng = np.random.default_rng(0)
    out: dict[str, np.ndarray] = {IMAGE: np.zeros((28, 28, 3), np.uint8)}
    for name in (P2, P3):
        key = name.rsplit("/", 1)[1]
        out[name] = (rng.normal(size=(1, 4, 5, 6)) * scales.get(key, 1.0)).astype(np.float32)
    return out


def found(candidate: dict[str, np.ndarray], **options: Any) -> dict[str, StageResult]:
    context = Context(maps(), candidate, STRICT, table=table((P2, IMAGE), (P3, P2)), fed=FED, **options)
    return {s.name: s for s in compare_image(context)}


@pytest.mark.parametrize(
    ("name", "rung"),
    [
        (IMAGE, "preprocessing"),
        ("steps/input", "preprocessing"),
        (P2, "backbone"),
        (LOGITS, "heads"),
        (BOXES, "detections"),
    ],
)
def test_rungs(name: str, rung: str) -> None:
    assert rung_of(name) == rung


def test_arrays_come_in_the_order_of_computation_and_members_of_a_set_once() -> None:
    reference = {BOXES: np.zeros((1, 4), np.float32), "steps/other": np.ones(3), **maps()}
    reference |= {SCORES: np.ones(1, np.float32), CLASSES: np.zeros(1, int)}
    context = Context(reference, reference, STRICT, table=table((P3, IMAGE), (P2, P3)))
    names = [s.name for s in compare_image(context)]
    assert names == [IMAGE, P3, P2, "steps/other", "output/instances"]
    assert [s.name for s in compare_image(context, only=[P2])] == [P2]


@pytest.mark.parametrize(
    ("free", "forced", "verdict"),
    [
        ({"p2": 2.0}, {"p2": 2.0, "p3": 1.0}, {P2: Verdict.LOCAL}),
        ({"p2": 2.0, "p3": 2.0}, {"p2": 2.0, "p3": 1.0}, {P2: Verdict.LOCAL, P3: Verdict.INHERITED}),
        ({"p2": 1 + 3e-6, "p3": 2.0}, {"p2": 1.0, "p3": 1.0}, {P3: Verdict.AMPLIFIED}),
        ({"p3": 2.0}, {"p2": 1.0, "p3": 1.0}, {P3: Verdict.LOCAL}),  # nothing came in, and yet it differs
        ({"p3": 2.0}, {}, {P3: Verdict.LOCAL}),
        ({"p2": 2.0, "p3": 2.0}, {}, {P3: Verdict.INHERITED}),
    ],
)
def test_where_a_difference_was_made(
    free: dict[str, float], forced: dict[str, float], verdict: dict[str, Verdict]
) -> None:
    candidate = maps(**free)
    candidate |= {
        f"forced/backbone/{key}": maps(**{key: s})[f"steps/backbone/{key}"] for key, s in forced.items()
    }
    # p3 was fed the reference's p2
    context = Context(maps(), candidate, STRICT, table=table((P2, IMAGE), (P3, P2)))
    context.fed = Fed(hashes({n: maps()[n] for n in (IMAGE, P2)}))
    stages = {s.name: s for s in compare_image(context)}
    assert {n: stages[n].verdict for n in verdict} == verdict
    assert all(stages[n].verdict is Verdict.NONE for n in (P2, P3) if n not in verdict and not stages[n].bad)


def test_the_factor_is_the_growth_of_the_error() -> None:
    stages = found(maps(p2=1 + 1e-6, p3=1 + 4e-6))
    assert stages[P3].factor == pytest.approx(4, rel=0.1) and stages[P3].inputs == (P2,)


def test_rows_follow_the_match_of_their_set() -> None:
    rng = np.random.default_rng(1)
    corners = np.array([[0, 0], [40, 0], [0, 40]], np.float32)
    reference: dict[str, np.ndarray] = {
        BOXES: np.concatenate([corners, corners + 20], axis=1),
        SCORES: np.array([0.9, 0.8, 0.8], np.float32),
        CLASSES: np.zeros(3, int),
        "output/instances/extra": rng.normal(size=(3, 5)).astype(np.float32),
    }
    order = [0, 2, 1]
    candidate = {n: a[order] for n, a in reference.items()}
    stages = {s.name: s for s in compare_image(Context(reference, candidate, STRICT))}
    extra = stages["output/instances/extra"]
    assert extra.status is Status.PASS and extra.metrics is not None and extra.metrics.max_abs == 0
    candidate["output/instances/extra"] = reference["output/instances/extra"]
    stages = {s.name: s for s in compare_image(Context(reference, candidate, STRICT))}
    assert stages["output/instances/extra"].status is Status.FAIL


def test_rows_that_do_not_belong_to_the_set_are_no_match() -> None:
    arrays = {
        BOXES: np.array([[0, 0, 9, 9]], np.float32),
        SCORES: np.ones(1, np.float32),
        CLASSES: np.zeros(1, int),
        "output/instances/extra": np.ones((2, 5), np.float32),
    }
    stages = {s.name: s for s in compare_image(Context(arrays, arrays, STRICT))}
    assert stages["output/instances/extra"].status is Status.FAIL
    assert "do not belong" in stages["output/instances/extra"].message


# ---- discrete steps on the same input --------------------------------------------------------------------


def pasted(probability: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A mask, and the same pasted once more with one pixel the other way, whose probability is given."""
    logits = np.full((1, 1, 28, 28), 8.0, np.float32)
    logits[0, 0, 14, 14] = np.log(probability / (1 - probability))
    reference: dict[str, np.ndarray] = {
        IMAGE: np.zeros((28, 28, 3), np.uint8),
        BOXES: np.array([[0, 0, 28, 28]], np.float32),
        SCORES: np.ones(1, np.float32),
        CLASSES: np.zeros(1, int),
        MASKS: np.ones((1, 28, 28), bool),
        LOGITS: logits,
    }
    again = reference[MASKS].copy()
    again[0, 14, 14] = False
    return reference, reference | {"forced/output/instances/pred_masks": again}


@pytest.mark.parametrize(("distance", "status"), [(2e-7, Status.BORDERLINE), (5e-6, Status.FAIL)])
def test_a_mask_pasted_from_the_same_probabilities_differs_only_at_the_threshold(
    distance: float, status: Status
) -> None:
    """5e-6 is within what is allowed end to end."""
    reference, candidate = pasted(0.5 + distance)
    context = Context(reference, candidate, STRICT, fed=FED)
    result = next(s for s in compare_image(context) if s.name == MASKS)
    assert result.status is Status.PASS and result.forced_status is status


NMS = {
    "MODEL": {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "ROI_HEADS": {"SCORE_THRESH_TEST": 0.05, "NMS_THRESH_TEST": 0.5},
    },
    "TEST": {"DETECTIONS_PER_IMAGE": 100},
}


@pytest.mark.parametrize(("overlap", "status"), [(1e-6, Status.BORDERLINE), (1e-3, Status.FAIL)])
def test_a_replay_may_keep_another_box_only_where_its_overlap_is_a_rounding_from_the_threshold(
    overlap: float, status: Status
) -> None:
    """Two boxes of 40x10 that overlap by half of their union, and a bit more."""
    width = 40.0
    shift = width * (1 - (0.5 + overlap)) / (1 + (0.5 + overlap))
    boxes = np.array([[0, 0, width, 10], [shift, 0, width + shift, 10], [90, 90, 120, 120]], np.float32)
    reference: dict[str, np.ndarray] = {
        IMAGE: np.zeros((28, 28, 3), np.uint8),
        BOXES: boxes,
        SCORES: np.array([0.9, 0.8, 0.7], np.float32),
        CLASSES: np.zeros(3, int),
    }
    kept = {n.replace("output", "forced/output"): reference[n][[0, 2]] for n in (BOXES, SCORES, CLASSES)}
    context = Context(reference, reference | kept, STRICT, config=NMS, fed=FED)
    result = next(s for s in compare_image(context) if s.name == "output/instances")
    assert result.status is Status.PASS and result.forced_status is status
    assert "3 items against 2" in result.forced_message


def test_a_replay_that_loses_an_item_without_a_reason_fails() -> None:
    reference, _ = pasted(0.7)
    reference |= {BOXES: np.array([[0, 0, 9, 9], [50, 50, 70, 70]], np.float32)}
    reference |= {SCORES: np.array([0.9, 0.8], np.float32), CLASSES: np.zeros(2, int)}
    del reference[MASKS]
    lost = {n.replace("output", "forced/output"): reference[n][:1] for n in (BOXES, SCORES, CLASSES)}
    result = next(
        s for s in compare_image(Context(reference, reference | lost, STRICT, fed=FED)) if s.kind == "set"
    )
    assert result.forced_status is Status.FAIL


def written_together(*units: str) -> dict[str, Stage]:
    """Boxes, scores, classes and masks of results, each by its unit."""
    kinds = ("values", "values", "values", "masks")
    return {
        name: Stage(name, (IMAGE,), "discrete", unit, False, False, "results", judge)  # type: ignore[arg-type]
        for name, unit, judge in zip((BOXES, SCORES, CLASSES, MASKS), units, kinds, strict=True)
    }


def tied() -> dict[str, np.ndarray]:
    """Three results, the first two with one score, and a mask each."""
    masks = np.zeros((3, 28, 28), bool)
    masks[0, :9, :9] = masks[1, 10:20, 10:20] = masks[2, 20:, 20:] = True
    return {
        IMAGE: np.zeros((28, 28, 3), np.uint8),
        BOXES: np.array([[0, 0, 9, 9], [10, 10, 20, 20], [20, 20, 28, 28]], np.float32),
        SCORES: np.array([1.0, 1.0, 0.5], np.float32),
        CLASSES: np.zeros(3, int),
        MASKS: masks,
    }


@pytest.mark.parametrize(
    ("set_order", "mask_order", "units", "status"),
    [
        ([1, 0, 2], [1, 0, 2], ("all",) * 4, Status.PASS),
        ([1, 0, 2], [0, 1, 2], ("all",) * 4, Status.FAIL),  # masks of other boxes
        ([0, 1, 2], [1, 0, 2], ("all",) * 4, Status.FAIL),
        (
            [1, 0, 2],
            [1, 0, 2],
            (*("select",) * 3, "masks"),
            Status.FAIL,
        ),  # was given boxes in the reference's order
        ([1, 0, 2], [0, 1, 2], (*("select",) * 3, "masks"), Status.PASS),
    ],
)
def test_masks_follow_their_replayed_boxes_where_one_unit_makes_both(
    set_order: list[int], mask_order: list[int], units: tuple[str, ...], status: Status
) -> None:
    reference = tied()
    again = {n.replace("output", "forced/output"): reference[n][set_order] for n in (BOXES, SCORES, CLASSES)}
    again["forced/" + MASKS] = reference[MASKS][mask_order]
    context = Context(reference, reference | again, STRICT, table=written_together(*units), fed=FED)
    results = {s.name: s for s in compare_image(context)}
    assert results["output/instances"].forced_status is Status.PASS
    assert results[MASKS].status is Status.PASS and results[MASKS].forced_status is status


def test_limits_of_a_large_picture_grow_with_its_coordinates() -> None:
    """A unit in the last place of 5000 pixels is 4.9e-4: a static 1e-3 would be two of them."""
    arrays = {BOXES: np.array([[0, 0, 5000, 5000]], np.float32), SCORES: np.ones(1, np.float32)}
    floor = set_floor(Context(arrays, arrays, STRICT), RESULTS)
    assert floor.box_px == pytest.approx(8 * 2.0**-11) and floor.score == pytest.approx(8 * 2.0**-23)


PANOPTIC_DEEPLAB = {
    "MODEL": {
        "META_ARCHITECTURE": "PanopticDeepLab",
        "BACKBONE": {"NAME": "build_resnet_deeplab_backbone"},
        "RESNETS": {"OUT_FEATURES": ["res2", "res3", "res5"]},
        "SEM_SEG_HEAD": {"NAME": "PanopticDeepLabSemSegHead"},
    }
}


def numbered(*flipped: tuple[int, int]) -> dict[str, np.ndarray]:
    """Logits of two classes, nearly alike in the first row, and a map of numbers, some of which are others."""
    logits = np.zeros((2, 6, 8), np.float32)
    logits[0, 1:], logits[0, 0] = 2.0, 1e-6
    segments = np.where(logits[0] > logits[1], 0, 11001)
    for at in flipped:
        segments[at] = 11001
        if at[0] == 0:
            logits[0, at[0], at[1]] = -1e-6
    picture = np.zeros((6, 8, 3), np.uint8)
    return {IMAGE: picture, "output/sem_seg": logits, "output/panoptic_seg": segments}


@pytest.mark.parametrize(
    ("flipped", "status"),
    [((), Status.PASS), (((0, 3),), Status.BORDERLINE), (((0, 3), (4, 4)), Status.FAIL)],
)
def test_numbers_of_segments_differ_only_where_the_class_may(
    flipped: tuple[tuple[int, int], ...], status: Status
) -> None:
    context = Context(numbered(), numbered(*flipped), STRICT, PANOPTIC_DEEPLAB)
    only = ["output/sem_seg", "output/panoptic_seg"]
    result = {s.name: s for s in compare_image(context, only)}["output/panoptic_seg"]
    assert result.kind == "pixels" and result.status is status
    assert result.details["flipped"] == len(flipped)


def _nothing_found(**changes: np.ndarray) -> dict[str, StageResult]:
    """A picture in which neither side finds anything: what detections come of, they, and what is computed on them."""
    scores, boxes = "steps/roi_heads.box_predictor/0", DETECTIONS.boxes
    masks, answer = f"{DETECTIONS.name}/pred_masks", RESULTS.boxes
    arrays = {
        scores: np.full((20, 4), -9.0, np.float32),
        masks: np.zeros((0, 1, 28, 28), np.float32),
        **{n: np.zeros((0, 4), np.float32) for n in (boxes, answer)},
        **{s.scores: np.zeros(0, np.float32) for s in (DETECTIONS, RESULTS)},
        **{s.classes: np.zeros(0, np.int64) for s in (DETECTIONS, RESULTS) if s.classes},
    }
    inputs = {scores: (), boxes: (scores,), masks: (boxes,), answer: (boxes, masks)}
    table = {n: Stage(n, i, "continuous", "unit", False, False) for n, i in inputs.items()}
    context = Context(arrays, arrays | changes, STRICT, table=table)
    return {s.name: s for s in compare_image(context)}


def test_nothing_on_either_side_is_the_same_where_what_it_comes_of_was_compared() -> None:
    found = _nothing_found()
    assert all(s.overall is Status.PASS for s in found.values()), found
    assert found[RESULTS.name].message == "nothing on either side" and found[RESULTS.name].nothing


def test_nothing_on_either_side_is_not_compared_where_what_it_comes_of_differs() -> None:
    scores = "steps/roi_heads.box_predictor/0"
    found = _nothing_found(**{scores: np.full((20, 4), -9.01, np.float32)})
    assert found[scores].status is Status.FAIL
    for name in (DETECTIONS.name, RESULTS.name, f"{DETECTIONS.name}/pred_masks"):
        assert found[name].overall is Status.NOT_COMPARED, name
