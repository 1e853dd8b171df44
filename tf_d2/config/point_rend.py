"""What PointRend's heads need to know. Source: projects/PointRend/point_rend/config.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PointHeadConfig:
    """The head that classifies single points, and how a map is refined with it."""

    in_features: tuple[str, ...]  # levels it samples
    num_classes: int
    fc_dim: int
    num_fc: int  # hidden layers
    cls_agnostic_mask: bool
    coarse_pred_each_layer: bool  # the coarse logits go into every layer, not only the first
    subdivision_steps: int
    subdivision_num_points: int

    @property
    def out_channels(self) -> int:
        return 1 if self.cls_agnostic_mask else self.num_classes


@dataclass(frozen=True)
class ImplicitPointHeadConfig(PointHeadConfig):
    """A point head whose weights another head predicts for each object."""

    image_feature_enabled: bool
    pos_enc_enabled: bool

    @property
    def start_resolution(self) -> int:
        """Side of the first grid: its square is the number of points."""
        return int(self.subdivision_num_points**0.5)


@dataclass(frozen=True)
class PointRendMaskHeadConfig:
    """PointRendMaskHead, or ImplicitPointRendMaskHead if its point head is implicit."""

    in_features: tuple[str, ...]  # levels the coarse head samples
    pooler_resolution: int  # side of the grid it samples
    conv_dim: int
    fc_dim: int
    num_fc: int
    output_side_resolution: int  # side of the coarse mask
    point_head: PointHeadConfig

    @property
    def start_and_steps(self) -> tuple[int, int]:
        """Side of the first grid of points, and the doublings after it.

        A doubling after which every cell would be computed anew is left out.
        """
        head = self.point_head
        if isinstance(head, ImplicitPointHeadConfig):
            return head.start_resolution, head.subdivision_steps
        side, steps = self.output_side_resolution, head.subdivision_steps
        while 4 * side**2 <= head.subdivision_num_points:
            side, steps = side * 2, steps - 1
        return side, steps

    @property
    def mask_side(self) -> int:
        """Side of the masks that come out."""
        side, steps = self.start_and_steps
        return side * 2 ** max(steps, 0)
