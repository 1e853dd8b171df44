"""What DensePose's heads need to know. Source: projects/DensePose/densepose/config.py."""

from __future__ import annotations

from dataclasses import dataclass

from tf_d2.config.parts.poolers import PoolerConfig
from tf_d2.config.parts.sem_seg import SemSegHeadConfig


@dataclass(frozen=True)
class DensePosePredictorConfig:
    """The last layers: what is predicted for each cell of a box."""

    embed_size: int | None  # None: charts; a number: embeddings of that size (CSE)
    num_coarse_segm_channels: int
    num_patches: int
    deconv_kernel: int
    up_scale: int
    uv_confidence: str | None  # "iid_iso", "indep_aniso"
    segm_confidence_epsilon: float | None

    @property
    def fields(self) -> dict[str, tuple[str, int]]:
        """Field of the answer -> the layer that predicts it, and its channels."""
        coarse, parts = self.num_coarse_segm_channels, self.num_patches + 1
        if self.embed_size is not None:
            found = {
                "embedding": ("embed_lowres", self.embed_size),
                "coarse_segm": ("coarse_segm_lowres", coarse),
            }
        else:
            found = {
                "coarse_segm": ("ann_index_lowres", coarse),
                "fine_segm": ("index_uv_lowres", parts),
                "u": ("u_lowres", parts),
                "v": ("v_lowres", parts),
            }
            extra = {"iid_iso": ("sigma_2",), "indep_aniso": ("sigma_2", "kappa_u", "kappa_v")}
            for field in extra[self.uv_confidence] if self.uv_confidence else ():
                found[field] = (f"{field}_lowres", parts)
        if self.segm_confidence_epsilon is not None:
            for field in [f for f in ("fine_segm", "coarse_segm") if f in found]:
                found[f"{field}_confidence"] = (f"{field}_confidence_lowres", 1)
        return found


@dataclass(frozen=True)
class EmbedderConfig:
    """A mesh and the sizes of the tensors that embed its vertices (CSE)."""

    mesh: str
    num_vertices: int
    feature_dim: int | None  # None: the vertices are embedded directly


@dataclass(frozen=True)
class DensePoseHeadConfig:
    """MODEL.ROI_DENSEPOSE_HEAD."""

    name: str  # DensePoseV1ConvXHead, DensePoseDeepLabHead
    pooler: PoolerConfig
    num_stacked_convs: int
    conv_head_dim: int
    conv_head_kernel: int
    deeplab_norm: str
    nonlocal_on: bool
    decoder: SemSegHeadConfig | None  # sums the levels into one map before pooling
    predictor: DensePosePredictorConfig
    embedders: tuple[EmbedderConfig, ...]
    class_to_mesh: tuple[tuple[int, str], ...]

    @property
    def output_side(self) -> int:
        """Side of the maps that come out."""
        predictor, side = self.predictor, self.pooler.resolution
        if self.conv_head_kernel % 2 == 0:
            side += self.num_stacked_convs
        kernel = predictor.deconv_kernel
        return ((side - 1) * 2 - 2 * int(kernel / 2 - 1) + kernel) * predictor.up_scale
