"""What a model computes, as data: units, the arrays they write, and the sets of items that arrays follow.

A *unit* is one computation: it reads named arrays and writes named arrays. Both sides of a comparison run the
same units in the same order, so that each array can be judged twice: free-running (inputs from the same
backend) and teacher-forced (inputs from the other backend's trace).

Names are the paths of the arrays inside a trace: `input/image`, `steps/backbone/p2`,
`output/instances/scores`. A name below `steps/` is the path of the detectron2 module that returns the
array, followed by the index or key of the array in what the module returns. The second and third call of
the same module within one image are written `<module>#1`, `<module>#2` (the cascade's pooler, the C4 head's
pooler when it also predicts masks).

Plain data: nothing is imported but the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["continuous", "float32", "discrete"]
Rows = Literal["", "proposals", "detections", "results"]
Judge = Literal["values", "masks", "keypoints", "sem_seg", "panoptic", "numbered", "refined"]

# Arrays that are given, not computed.
GIVEN = ("input/image", "steps/input_proposals")

# Modules and arrays that the judge looks into when it explains a difference.
RPN_HEAD = "steps/proposal_generator.rpn_head"
DENSE_HEAD = "steps/head"
MASK_LOGITS = "steps/roi_heads.mask_head.predictor"
PANOPTIC = "output/panoptic_seg"


@dataclass(frozen=True)
class Array:
    """One array that a unit writes.

    rows: what its first axis counts: "proposals" of the network, its "detections" before they are rescaled to the
    picture, "results" (detections in pixels of the picture), or "" for none of these. Arrays of either side are
    put in the other's order before they are compared.
    judge: how it is compared. "values": floating point by relative L2, all else exactly; "masks" and
    "keypoints" (the decoded ones): pixel by pixel with margins; "sem_seg": values, then the class of every pixel;
    "panoptic": the map with its segments; "numbered": a map whose numbers mean the same on both sides, or masks made
    of it; "refined": values, but for the few cells of which one side refined one and
    the other its equally uncertain neighbour.
    cut: whether a recorded file may hold only the first rows.
    """

    name: str
    rows: Rows = ""
    judge: Judge = "values"
    cut: bool = False


def arrays(*names: str, rows: Rows = "", judge: Judge = "values", cut: bool = False) -> tuple[Array, ...]:
    """Arrays that are alike."""
    return tuple(Array(name, rows, judge, cut) for name in names)


@dataclass(frozen=True)
class Unit:
    """One computation.

    op: what is computed, from the closed vocabulary of `parity.core.units`. arrays: what it writes; a plain name
    stands for an array without rows. args: plain numbers and names the op needs besides its inputs. optional: a
    recorded trace may lack the outputs (the golden files hold module outputs only). module: path of the detectron2
    module that does it, where that is not the one its first array is named after.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    arrays: tuple[Array, ...] | tuple[str, ...]
    kind: Kind
    args: tuple[Any, ...] = ()
    optional: bool = False
    module: str = ""

    def __post_init__(self) -> None:
        made = tuple(Array(a) if isinstance(a, str) else a for a in self.arrays)
        object.__setattr__(self, "arrays", made)
        if not self.module and made and made[0].name.startswith("steps/"):
            object.__setattr__(self, "module", module_of(made[0].name)[0])

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its arrays."""
        return tuple(a if isinstance(a, str) else a.name for a in self.arrays)


@dataclass(frozen=True)
class Stage:
    """One array of a trace with what is known of it. `unit` is the name of the unit that computes it."""

    name: str
    inputs: tuple[str, ...]
    kind: Kind
    unit: str
    optional: bool
    roi_features: bool  # `Array.cut`
    rows: Rows = ""
    judge: Judge = "values"
    module: str = ""

    @property
    def array(self) -> Array:
        """The array as its unit declares it."""
        return Array(self.name, self.rows, self.judge, self.roi_features)


def stages_of(units: Iterable[Unit]) -> tuple[Stage, ...]:
    """The arrays of units, in order."""
    return tuple(
        Stage(
            array.name,
            unit.inputs,
            unit.kind,
            unit.name,
            unit.optional,
            array.cut,
            array.rows,
            array.judge,
            unit.module,
        )
        for unit in units
        for array in unit.arrays
        if isinstance(array, Array)
    )


def module_of(name: str) -> tuple[str, str]:
    """Module path and call ("", "1", "2") of an array below `steps/`."""
    module, _, call = name.removeprefix("steps/").split("/")[0].partition("#")
    return module, call


def forced_name(name: str) -> str:
    """Where a teacher-forced array is stored.

    `steps/backbone/p2` -> `forced/backbone/p2`, `input/resized` -> `forced/resized` (beside `forced/input`,
    which is `steps/input`), `output/sem_seg` -> `forced/output/sem_seg`.
    """
    return "forced/" + name.removeprefix("steps/").removeprefix("input/")


@dataclass(frozen=True)
class SetSpec:
    """The arrays that together are one set of detections or proposals."""

    name: str
    boxes: str
    scores: str
    classes: str | None
    rules: str  # which of the configuration's thresholds made it: "rpn", "detect"

    @property
    def members(self) -> tuple[str, ...]:
        """Names of its arrays."""
        return tuple(n for n in (self.boxes, self.scores, self.classes) if n)


def _set(name: str, boxes: str, scores: str, classes: str | None, rules: str) -> SetSpec:
    return SetSpec(name, f"{name}/{boxes}", f"{name}/{scores}", classes and f"{name}/{classes}", rules)


PROPOSALS = _set("steps/proposal_generator/0/0", "proposal_boxes", "objectness_logits", None, "rpn")
DETECTIONS = _set("steps/roi_heads/0/0", "pred_boxes", "scores", "pred_classes", "detect")
PROPOSAL_RESULTS = _set("output/proposals", "proposal_boxes", "objectness_logits", None, "rpn")
RESULTS = _set("output/instances", "pred_boxes", "scores", "pred_classes", "detect")
SETS = (PROPOSALS, DETECTIONS, PROPOSAL_RESULTS, RESULTS)
SET_MEMBERS = {name: spec for spec in SETS for name in spec.members}

# Detectron's final boxes are in pixels of the picture; what is pooled are these times its factor.
NETWORK_BOXES = "steps/roi_heads/network_boxes"


def conventions_of(model: Mapping[str, Any]) -> str:
    """Whose arithmetic a MODEL node follows: "detectron2", "detectron" or "maskrcnn-benchmark"."""
    return model.get("CONVENTIONS", "detectron2")


# The sets whose order an array's rows follow, the nearest first.
OWNERS: dict[str, tuple[SetSpec, ...]] = {
    "": (),
    "proposals": (PROPOSALS,),
    "detections": (DETECTIONS, RESULTS),
    "results": (RESULTS,),
}
