"""Small models of every family, with weights that any machine makes alike, and what detectron2 computes for
them.

`python tests/support/variants.py` under an interpreter that has detectron2 (with the repository on
PYTHONPATH) records `tests/data/parity/variants.npz` anew: the final results of each model, and of every
other stage a fingerprint.
"""

import copy
import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import yaml

RECORDING = Path(__file__).parents[1] / "data" / "parity" / "variants.npz"

TINY = """
INPUT: {FORMAT: BGR, MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 96}
DATASETS: {PRECOMPUTED_PROPOSAL_TOPK_TEST: 20}
TEST: {DETECTIONS_PER_IMAGE: 8}
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  MASK_ON: true
  KEYPOINT_ON: false
  PIXEL_MEAN: [103.53, 116.28, 123.675]
  PIXEL_STD: [57.0, 57.0, 58.0]
  BACKBONE: {NAME: build_resnet_fpn_backbone}
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 8, NORM: "", FUSE_TYPE: sum}
  RESNETS:
    DEPTH: 50
    OUT_FEATURES: [res2, res3, res4, res5]
    NORM: FrozenBN
    NUM_GROUPS: 1
    WIDTH_PER_GROUP: 2
    STRIDE_IN_1X1: true
    RES5_DILATION: 1
    RES2_OUT_CHANNELS: 8
    STEM_OUT_CHANNELS: 4
    DEFORM_ON_PER_STAGE: [false, false, false, false]
    DEFORM_MODULATED: false
    DEFORM_NUM_GROUPS: 1
  ANCHOR_GENERATOR:
    NAME: DefaultAnchorGenerator
    SIZES: [[16], [32], [64], [128], [256]]
    ASPECT_RATIOS: [[0.5, 1.0, 2.0]]
    OFFSET: 0.0
  PROPOSAL_GENERATOR: {NAME: RPN, MIN_SIZE: 0}
  RPN:
    HEAD_NAME: StandardRPNHead
    IN_FEATURES: [p2, p3, p4, p5, p6]
    CONV_DIMS: [-1]
    BBOX_REG_WEIGHTS: [1.0, 1.0, 1.0, 1.0]
    PRE_NMS_TOPK_TEST: 30
    POST_NMS_TOPK_TEST: 20
    NMS_THRESH: 0.7
  ROI_HEADS:
    NAME: StandardROIHeads
    NUM_CLASSES: 3
    IN_FEATURES: [p2, p3, p4, p5]
    SCORE_THRESH_TEST: 0.05
    NMS_THRESH_TEST: 0.5
  ROI_BOX_HEAD:
    NAME: FastRCNNConvFCHead
    NUM_CONV: 0
    CONV_DIM: 8
    NUM_FC: 2
    FC_DIM: 16
    NORM: ""
    POOLER_RESOLUTION: 4
    POOLER_SAMPLING_RATIO: 0
    POOLER_TYPE: ROIAlignV2
    BBOX_REG_WEIGHTS: [10.0, 10.0, 5.0, 5.0]
    CLS_AGNOSTIC_BBOX_REG: false
    USE_SIGMOID_CE: false
  ROI_BOX_CASCADE_HEAD:
    BBOX_REG_WEIGHTS: [[10.0, 10.0, 5.0, 5.0], [20.0, 20.0, 10.0, 10.0], [30.0, 30.0, 15.0, 15.0]]
  ROI_MASK_HEAD:
    NAME: MaskRCNNConvUpsampleHead
    NUM_CONV: 1
    CONV_DIM: 8
    NORM: ""
    CLS_AGNOSTIC_MASK: false
    POOLER_RESOLUTION: 6
    POOLER_SAMPLING_RATIO: 0
    POOLER_TYPE: ROIAlignV2
  ROI_KEYPOINT_HEAD:
    NAME: KRCNNConvDeconvUpsampleHead
    CONV_DIMS: [8, 8]
    NUM_KEYPOINTS: 2
    POOLER_RESOLUTION: 6
    POOLER_SAMPLING_RATIO: 0
    POOLER_TYPE: ROIAlignV2
  SEM_SEG_HEAD:
    NAME: SemSegFPNHead
    IN_FEATURES: [p2, p3, p4, p5]
    NUM_CLASSES: 4
    CONVS_DIM: 32
    COMMON_STRIDE: 4
    NORM: GN
  PANOPTIC_FPN:
    COMBINE: {OVERLAP_THRESH: 0.5, STUFF_AREA_LIMIT: 50, INSTANCES_CONFIDENCE_THRESH: 0.2}
  RETINANET:
    NUM_CLASSES: 3
    IN_FEATURES: [p3, p4, p5, p6, p7]
    NUM_CONVS: 2
    NORM: ""
    SCORE_THRESH_TEST: 0.05
    TOPK_CANDIDATES_TEST: 50
    NMS_THRESH_TEST: 0.5
    BBOX_REG_WEIGHTS: [1.0, 1.0, 1.0, 1.0]
"""

C4 = {
    "BACKBONE.NAME": "build_resnet_backbone",
    "RESNETS.OUT_FEATURES": ["res4"],
    "RPN.IN_FEATURES": ["res4"],
    "ANCHOR_GENERATOR.SIZES": [[16, 32]],
    "ROI_HEADS.NAME": "Res5ROIHeads",
    "ROI_HEADS.IN_FEATURES": ["res4"],
    "ROI_MASK_HEAD.NUM_CONV": 0,
}
RETINA = {
    "META_ARCHITECTURE": "RetinaNet",
    "BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
    "FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
}
CASCADE = {"ROI_HEADS.NAME": "CascadeROIHeads", "ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True}
REGNET = {
    **{"DEPTH": 10, "W_A": 5.0, "W_0": 8, "W_M": 2.1, "GROUP_WIDTH": 24, "STEM_WIDTH": 4, "SE_RATIO": 0.25},
    **{"NORM": "SyncBN", "OUT_FEATURES": ["s1", "s2", "s3", "s4"]},
}
REGNET_FPN = {
    "BACKBONE.NAME": "build_regnet_fpn_backbone",
    "FPN.IN_FEATURES": ["s1", "s2", "s3", "s4"],
    "FPN.NORM": "SyncBN",
}
VARIANTS = {
    "mask": {},
    "resnet18": {
        "RESNETS.DEPTH": 18,
        "RESNETS.RES2_OUT_CHANNELS": 64,
        "RESNETS.STEM_OUT_CHANNELS": 8,
        "FPN.FUSE_TYPE": "avg",
    },
    "grouped": {"RESNETS.NUM_GROUPS": 2, "RESNETS.STRIDE_IN_1X1": False, "FPN.NORM": "LN"},
    "dilated": {
        "BACKBONE.NAME": "build_resnet_backbone",
        "RESNETS.OUT_FEATURES": ["res5"],
        "RESNETS.RES5_DILATION": 2,
        "RPN.IN_FEATURES": ["res5"],
        "ROI_HEADS.IN_FEATURES": ["res5"],
        "ANCHOR_GENERATOR.SIZES": [[16, 32]],
    },
    "deform": {"RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True]},
    "deform2": {
        "RESNETS.DEFORM_ON_PER_STAGE": [False, False, True, True],
        "RESNETS.DEFORM_MODULATED": True,
        "RESNETS.DEFORM_NUM_GROUPS": 2,
    },
    "c4": C4,
    "cascade": {**CASCADE, "ROI_BOX_HEAD.NUM_CONV": 2, "ROI_BOX_HEAD.NUM_FC": 1, "RPN.CONV_DIMS": [-1, 12]},
    "agnostic": {
        "ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
        "ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
        "ROI_BOX_HEAD.USE_SIGMOID_CE": True,
        "ROI_BOX_HEAD.POOLER_TYPE": "ROIPool",
        "ROI_MASK_HEAD.POOLER_TYPE": "ROIAlign",
        "ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 2,
    },
    "keypoint": {"MASK_ON": False, "KEYPOINT_ON": True},
    "fast": {"MASK_ON": False, "PROPOSAL_GENERATOR.NAME": "PrecomputedProposals"},
    "rpn": {"META_ARCHITECTURE": "ProposalNetwork"},
    "square": {"META_ARCHITECTURE": "ProposalNetwork", "FPN.SQUARE_PAD": 96},
    "retinanet": RETINA,
    "retinanet_bn": {**RETINA, "RETINANET.NORM": "SyncBN"},
    "semantic": {"META_ARCHITECTURE": "SemanticSegmentor"},
    "panoptic": {"META_ARCHITECTURE": "PanopticFPN"},
    "regnetx": {**REGNET_FPN, "REGNETS": {**REGNET, "SE_RATIO": 0.0}},
    "regnety": {**REGNET_FPN, "REGNETS": REGNET},
}


# Recorded too. What detectron2 cannot run (two deformable groups, masked deformable convolution on the CPU)
# is not.
NOT_RECORDED = ("deform2", "square")
PROPOSALS = np.array([[3, 4, 60, 40], [10, 10, 50, 60], [0, 0, 20, 20]], np.float32)


def tiny_config(changes):
    """The configuration of a variant, as a nested dict."""
    config = yaml.safe_load(TINY)
    if "REGNETS" in changes:  # a model has one of the two
        del config["MODEL"]["RESNETS"]
    for key, value in changes.items():
        *path, leaf = key.split(".")
        node = config["MODEL"]
        for part in path:
            node = node[part]
        node[leaf] = copy.deepcopy(value)
    return config


def tiny_state(shapes):
    """Weights by key, each drawn from a generator seeded by its key; loud enough to give detections."""
    return {key: _values(key, shape) for key, shape in shapes.items() if "num_batches_tracked" not in key}


def _values(key, shape):
    generator = np.random.RandomState(zlib.crc32(key.encode()))
    unit, noise = generator.uniform(size=shape), generator.standard_normal(shape)
    if key.endswith("running_var"):
        values = 0.5 + unit
    elif key.endswith(("norm.weight", "bn.weight")):
        values = 0.8 + 0.4 * unit
    elif len(shape) == 1:
        values = 0.1 * noise
    else:
        values = noise * (0.05 if "offset" in key else np.prod(shape[1:]) ** -0.5)
    return values.astype(np.float32)


def picture():
    """A noise picture, BGR uint8."""
    return np.random.RandomState(3).randint(0, 256, (50, 71, 3)).astype(np.uint8)


def fingerprint(array):
    """Length of an array as a vector, and its product with a fixed vector."""
    values = array.astype(np.float64).ravel()
    return np.array([np.linalg.norm(values), values @ np.random.RandomState(0).standard_normal(values.size)])


def record(path):
    """Run detectron2 on every variant and store what it computes."""
    from parity.backends import detectron2, driver
    from parity.core.job import Job
    from parity.core.trace import Trace

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        np.save(base / "image.npy", picture())
        np.save(base / "proposals.npy", PROPOSALS)
        for name, changes in VARIANTS.items():
            if name in NOT_RECORDED:
                continue
            (base / "c.yaml").write_text(yaml.safe_dump(tiny_config(changes) | {"VERSION": 2}))
            shapes = _shapes(detectron2, base)
            np.savez(base / "w.npz", **tiny_state(shapes))
            given = (str(base / "proposals.npy"),) if name == "fast" else ()
            files = (
                str(base / "c.yaml"),
                str(base / "w.npz"),
                (str(base / "image.npy"),),
                str(base / "t.h5"),
            )
            job = Job(*files, threads=1, proposals=given)
            driver.run_job(job, detectron2.Detectron2)
            with Trace(base / "t.h5") as trace:
                image = trace.images[0]
                for stage in image:
                    whole = stage.startswith("output/") and "sem_seg" not in stage and "heatmaps" not in stage
                    found[f"{name}/{stage}"] = image[stage] if whole else fingerprint(image[stage])
                found[f"{name}/segments_info"] = np.array(json.dumps(image.segments_info()))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **found)


def _shapes(worker, base):
    """Names and shapes of a variant's weights, from detectron2."""
    library = worker.library()
    cfg = worker.read_config(library, str(base / "c.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    state = library.modeling.build_model(cfg).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if key not in ("pixel_mean", "pixel_std")}


if __name__ == "__main__":
    record(RECORDING)
    print(f"{RECORDING}: {RECORDING.stat().st_size} bytes", file=sys.stderr)
