"""TridentNet: at the branch that ``TEST_BRANCH_IDX`` names ("fast"), or at all of them (-1).

Source: projects/TridentNet/tridentnet/.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.parts.resnet import ResNetConfig
from tf_d2.config.parts.roi_heads import Res5ROIHeadsConfig, StandardROIHeadsConfig
from tf_d2.config.parts.rpn import RPNConfig

_TRIDENT = "MODEL.TRIDENT."
_BRANCHES, _DILATIONS = _TRIDENT + "NUM_BRANCH", _TRIDENT + "BRANCH_DILATIONS"
_STAGE, _TESTED = _TRIDENT + "TRIDENT_STAGE", _TRIDENT + "TEST_BRANCH_IDX"
_STAGES = ("res2", "res3", "res4", "res5")

# Keys and defaults of ``add_tridentnet_config``.
_NEW_KEYS: Flat = {_BRANCHES: 3, _DILATIONS: (1, 2, 3), _STAGE: "res4", _TESTED: 1}


_PARTS = ("MODEL.PROPOSAL_GENERATOR.NAME", "MODEL.ROI_HEADS.NAME")


def _merged(keys: Keys, backbone: Any) -> int:
    """Branches whose detections are merged: 1 if only one is computed."""
    if keys.fields({"branch": _TESTED}).integer("branch", -1) != -1:
        return 1
    if not isinstance(backbone, TridentResNetConfig):
        raise keys.fail(_TESTED, "all branches need MODEL.BACKBONE.NAME build_trident_resnet_backbone")
    return backbone.num_branch


@dataclass(frozen=True)
class TridentResNetConfig(ResNetConfig):
    """``build_trident_resnet_backbone``: in one stage all 3x3 convolutions have the dilation of a branch.

    The branches share their weights, so that a checkpoint has the tensors of the plain ResNet.
    """

    NEW_KEYS: ClassVar[Flat] = _NEW_KEYS

    num_branch: int
    branch_dilations: tuple[int, ...]
    trident_stage: str
    test_branch_idx: int

    @property
    def _trident_index(self) -> int:
        return _STAGES.index(self.trident_stage)

    @property
    def merged_dilations(self) -> tuple[int, ...]:
        """Dilations of the branches that are all computed; empty if one is."""
        return self.branch_dilations if self.test_branch_idx == -1 else ()

    def dilations(self, index: int, blocks: int) -> tuple[int, ...]:
        if index == self._trident_index:  # RES5_DILATION says the stride of res5 only
            return (self.branch_dilations[self.test_branch_idx],) * blocks
        return super().dilations(index, blocks)

    @classmethod
    def from_keys(cls, keys: Keys, name: str) -> TridentResNetConfig:
        resnet = ResNetConfig.from_keys(keys, name)
        if resnet.depth < 50:
            raise keys.fail(cls.KEYS["depth"], f"{name} needs one of 50, 101, 152")
        fields = keys.fields({"branches": _BRANCHES, "dilations": _DILATIONS, "stage": _STAGE})
        branches, dilations = fields.integer("branches", 1), fields["dilations"]
        if not (
            isinstance(dilations, tuple)
            and len(dilations) == branches
            and all(type(d) is int and d > 0 for d in dilations)
        ):
            raise fields.fail("dilations", f"expected as many numbers above 0 as {_BRANCHES}, {branches}")
        branch = keys.fields({"branch": _TESTED}).integer("branch", -1)
        if branch >= branches:
            raise keys.fail(_TESTED, f"expected -1, for all, or one of the branches 0 to {branches - 1}")
        config = cls(
            **{field.name: getattr(resnet, field.name) for field in dataclasses.fields(resnet)},
            num_branch=branches,
            branch_dilations=dilations,
            trident_stage=fields.choice("stage", _STAGES),
            test_branch_idx=branch,
        )
        if config.deform_on_per_stage[config._trident_index]:
            raise keys.fail(
                cls.KEYS["deform_on_per_stage"], f"{name} has no deformable {config.trident_stage}"
            )
        for key in _PARTS if branch == -1 else ():
            if not str(keys[key]).startswith("Trident"):
                raise keys.fail(key, f"with all branches ({_TESTED} -1) expected that of TridentNet")
        early = [f for f in config.out_features if f == "stem" or f < config.trident_stage]
        if branch == -1 and branches > 1 and early:
            raise keys.fail(
                cls.KEYS["out_features"],
                f"with all branches ({_TESTED} -1) only features from {config.trident_stage} on have them",
            )
        return config

    def to_keys(self) -> Flat:
        return {
            **super().to_keys(),
            "MODEL.BACKBONE.NAME": "build_trident_resnet_backbone",
            _BRANCHES: self.num_branch,
            _DILATIONS: self.branch_dilations,
            _STAGE: self.trident_stage,
            _TESTED: self.test_branch_idx,
        }


@dataclass(frozen=True)
class TridentRPNConfig(RPNConfig):
    """``TridentRPN``: an RPN on the features of every branch that is computed."""

    @classmethod
    def from_keys(cls, keys: Keys, name: str, backbone: Any) -> RPNConfig:
        _merged(keys, backbone)
        return super().from_keys(keys, name, backbone)


@dataclass(frozen=True)
class TridentRes5ROIHeadsConfig(Res5ROIHeadsConfig):
    """``TridentRes5ROIHeads``: the C4 heads; the detections of several branches are merged."""

    name: ClassVar[str] = "TridentRes5ROIHeads"

    merged_branches: int = 1

    @classmethod
    def _from_keys(cls, keys: Keys, name: str, backbone: Any, generator: Any) -> dict[str, Any]:
        arguments = super()._from_keys(keys, name, backbone, generator)
        return {**arguments, "merged_branches": _merged(keys, backbone)}


@dataclass(frozen=True)
class TridentStandardROIHeadsConfig(StandardROIHeadsConfig):
    """``TridentStandardROIHeads``: the heads of dilated C5 models; the detections of several branches are merged."""

    name: ClassVar[str] = "TridentStandardROIHeads"

    merged_branches: int = 1

    @classmethod
    def _from_keys(cls, keys: Keys, name: str, backbone: Any, generator: Any) -> dict[str, Any]:
        arguments = super()._from_keys(keys, name, backbone, generator)
        return {**arguments, "merged_branches": _merged(keys, backbone)}
