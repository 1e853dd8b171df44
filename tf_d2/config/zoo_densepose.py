"""Configuration values of the published models of PointRend and DensePose, as in `zoo_configs`.

The values are facts of the YAML files under ``projects/PointRend/configs`` and ``projects/DensePose/configs``.
"""

from __future__ import annotations

from collections.abc import Mapping

from tf_d2.config.defaults import Flat

_HOST = "https://dl.fbaipublicfiles.com/densepose/"
_HEAD = "MODEL.ROI_DENSEPOSE_HEAD."
Rows = dict[str, tuple[Flat, ...]]
_Bases = Mapping[str, Flat]

# === PointRend ===

_POINT_REND: Flat = {
    "MODEL.MASK_ON": True,
    "MODEL.ROI_MASK_HEAD.NAME": "PointRendMaskHead",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "",
    "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON": True,
}
_IMPLICIT: Flat = {
    "MODEL.MASK_ON": True,
    "MODEL.ROI_MASK_HEAD.NAME": "ImplicitPointRendMaskHead",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "",
    "MODEL.POINT_HEAD.NAME": "ImplicitPointHead",
    "MODEL.POINT_HEAD.SUBDIVISION_STEPS": 3,
}
_CITYSCAPES_SIZE: Flat = {"INPUT.MIN_SIZE_TEST": 1024, "INPUT.MAX_SIZE_TEST": 2048}
_CITYSCAPES_INSTANCES: Flat = {
    **_CITYSCAPES_SIZE,
    "MODEL.ROI_HEADS.NUM_CLASSES": 8,
    "MODEL.POINT_HEAD.NUM_CLASSES": 8,
    "DATASETS.TRAIN": ("cityscapes_fine_instance_seg_train",),
    "DATASETS.TEST": ("cityscapes_fine_instance_seg_val",),
}
_CITYSCAPES_SEMANTIC: Flat = {
    **_CITYSCAPES_SIZE,
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.SEM_SEG_HEAD.NAME": "PointRendSemSegHead",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 19,
    "MODEL.POINT_HEAD.NUM_CLASSES": 19,
    "MODEL.POINT_HEAD.SUBDIVISION_STEPS": 2,
    "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS": 8192,
    "MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER": False,
    "DATASETS.TRAIN": ("cityscapes_fine_sem_seg_train",),
    "DATASETS.TEST": ("cityscapes_fine_sem_seg_val",),
}


def point_rend_rows(bases: _Bases) -> Rows:
    """``bases``: values by "FPN" and backbone ("R_50", "R_101", "X_101_32x8d")."""
    fpn, r50 = bases["FPN"], bases["R_50"]
    folder = "projects/PointRend/configs/InstanceSegmentation"
    return {
        f"{folder}/pointrend_rcnn_R_50_FPN_1x_cityscapes": (fpn, r50, _POINT_REND, _CITYSCAPES_INSTANCES),
        **{
            f"{folder}/pointrend_rcnn_{name}_FPN_{schedule}_coco": (fpn, bases[name], _POINT_REND)
            for name, schedule in (("R_50", "1x"), ("R_50", "3x"), ("R_101", "3x"), ("X_101_32x8d", "3x"))
        },
        **{  # without published weights
            f"{folder}/implicit_pointrend_R_50_FPN_{schedule}_coco": (fpn, r50, _IMPLICIT)
            for schedule in ("1x", "3x")
        },
        "projects/PointRend/configs/SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes": (
            fpn,
            bases["R_101"],
            _CITYSCAPES_SEMANTIC,
        ),
    }


# === DensePose ===

_ROIS: Flat = {"MODEL.ROI_HEADS.NAME": "DensePoseROIHeads", "MODEL.ROI_HEADS.NUM_CLASSES": 1}
_OLD_ALIGN: Flat = {
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
}
_V1: Flat = {_HEAD + "NAME": "DensePoseV1ConvXHead", _HEAD + "POOLER_TYPE": "ROIAlign"}
_DEEPLAB: Flat = {**_V1, _HEAD + "NAME": "DensePoseDeepLabHead"}
_HEADS = {"": _V1, "_DL": _DEEPLAB}
_COCO: Flat = {
    "DATASETS.TRAIN": ("densepose_coco_2014_train", "densepose_coco_2014_valminusminival"),
    "DATASETS.TEST": ("densepose_coco_2014_minival",),
}
_CHARTS: Flat = {**_ROIS, **_OLD_ALIGN, **_COCO}
_LEGACY: Flat = {
    _HEAD + "NUM_COARSE_SEGM_CHANNELS": 15,
    _HEAD + "POOLER_RESOLUTION": 14,
    _HEAD + "DECODER_ON": False,
}
_WC1: Flat = {_HEAD + "UV_CONFIDENCE.ENABLED": True}
_WC2: Flat = {**_WC1, _HEAD + "UV_CONFIDENCE.TYPE": "indep_aniso"}
_MASK_CONFIDENCE: Flat = {_HEAD + "SEGM_CONFIDENCE.ENABLED": True}
_CONFIDENCES: dict[str, Flat] = {
    "": {},
    "_WC1": _WC1,
    "_WC2": _WC2,
    "_WC1M": {**_WC1, **_MASK_CONFIDENCE},
    "_WC2M": {**_WC2, **_MASK_CONFIDENCE},
}
_EVOLUTION: Flat = {
    **_ROIS,
    **_DEEPLAB,
    **_WC1,
    **_MASK_CONFIDENCE,
    "DATASETS.TRAIN": ("base_coco_2017_train", "densepose_coco_2014_train"),
    "DATASETS.TEST": ("densepose_chimps",),
}


def _weights(path: str) -> Flat:
    return {"MODEL.WEIGHTS": _HOST + path}


def _embedders(*meshes: str) -> Flat:
    """The number of vertices is the end of a mesh's name."""
    values = {
        mesh: {
            "TYPE": "vertex_feature",
            "NUM_VERTICES": int(mesh.rpartition("_")[2]),
            "FEATURE_DIM": 256,
            # What detectron2 needs to build it, too.
            **{"FEATURES_TRAINABLE": False, "IS_TRAINABLE": True, "INIT_FILE": ""},
        }
        for mesh in meshes
    }
    return {_HEAD + "CSE.EMBEDDERS": values}


def _meshes(*meshes: str) -> Flat:
    """Meshes by class."""
    names = {str(label): mesh for label, mesh in enumerate(meshes)}
    return {"DATASETS.CLASS_TO_MESH_NAME_MAPPING": names}


_EMBEDDINGS: Flat = {
    **_ROIS,
    **_OLD_ALIGN,
    _HEAD + "PREDICTOR_NAME": "DensePoseEmbeddingPredictor",
}
_HUMAN: Flat = {
    **_embedders("smpl_27554"),
    **_meshes("smpl_27554"),
    "DATASETS.TRAIN": ("densepose_coco_2014_train_cse", "densepose_coco_2014_valminusminival_cse"),
    "DATASETS.TEST": ("densepose_coco_2014_minival_cse",),
}
_CHIMP: Flat = {
    **_embedders("chimp_5029"),
    **_meshes("chimp_5029"),
    "DATASETS.TRAIN": ("densepose_chimps_cse_train",),
    "DATASETS.TEST": ("densepose_chimps_cse_val",),
}
_WILD = ("sheep_5004", "horse_5004", "zebra_5002", "giraffe_5002", "elephant_5002", "cow_5002", "bear_4936")
_SMALL = ("cat_5001", "dog_5002", *_WILD)  # of the first data set of animals
_LARGE = ("cat_7466", "dog_7466", *_WILD)  # of the second


def _animals(meshes: tuple[str, ...], dataset: str, *more: str) -> Flat:
    by_animal = {mesh.partition("_")[0]: mesh for mesh in meshes}
    order = ("bear", "cow", "cat", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
    return {
        **_embedders(*meshes, *more),
        **_meshes(*(by_animal[animal] for animal in order)),
        "MODEL.ROI_HEADS.NUM_CLASSES": 9,
        "DATASETS.TRAIN": (f"densepose_lvis_v1_{dataset}_train_v1",),
        "DATASETS.TEST": (f"densepose_lvis_v1_{dataset}_val_v1",),
    }


def _any_animal(values: Flat) -> Flat:
    """One class for all animals, which detectron2's files give one mesh."""
    return {**values, "MODEL.ROI_HEADS.NUM_CLASSES": 1, **_meshes(_ONE_MESH)}


_ONE_MESH = "sheep_5004"
_SOFT = _weights("cse/densepose_rcnn_R_50_FPN_soft_s1x/250533982/model_final_2c4512.pkl")
_MASK_ONLY = _weights(
    "cse/densepose_rcnn_R_50_FPN_soft_animals_finetune_maskonly_24k/270668502/model_final_21b1d2.pkl"
)
_FIRST_MASK_ONLY = _weights(
    "cse/densepose_rcnn_R_50_FPN_soft_animals_finetune_maskonly_24k/267687159/model_final_354e61.pkl"
)
_ANIMALS: dict[str, tuple[Flat, Flat]] = {
    "chimps_finetune_4k": (_SOFT, _CHIMP),
    "animals_finetune_4k": (_SOFT, _animals(_SMALL, "ds1")),
    "animals_finetune_16k": (_SOFT, _animals(_LARGE, "ds2")),
    "animals_finetune_maskonly_24k": (_SOFT, _animals(_LARGE, "ds2")),
    "animals_CA_finetune_4k": (_SOFT, _any_animal(_animals(_SMALL, "ds1"))),
    "animals_CA_finetune_16k": (_SOFT, _any_animal(_animals(_LARGE, "ds2"))),
    "animals_I0_finetune_16k": (_MASK_ONLY, _animals(_LARGE, "ds2")),
    "animals_I0_finetune_i2m_16k": (_MASK_ONLY, _animals(_LARGE, "ds2")),
    "animals_I0_finetune_m2m_16k": (_FIRST_MASK_ONLY, _animals(_LARGE, "ds2", "smpl_27554")),
}


def densepose_rows(bases: _Bases) -> Rows:
    """``bases`` as for `point_rend_rows`."""
    fpn, folder = bases["FPN"], "projects/DensePose/configs"
    backbones = {name: bases[name] for name in ("R_50", "R_101")}
    evolved = f"{folder}/evolution/densepose_R_50_FPN_DL_WC1M_3x_Atop10P_CA"
    first = _weights("evolution/densepose_R_50_FPN_DL_WC1M_3x_Atop10P_CA/217578784/model_final_9fe1cc.pkl")
    return {
        **{
            f"{folder}/densepose_rcnn_{name}_FPN_s1x_legacy": (fpn, backbone, _CHARTS, _V1, _LEGACY)
            for name, backbone in backbones.items()
        },
        **{
            f"{folder}/densepose_rcnn_{name}_FPN{head}{confidence}_s1x": (
                fpn,
                backbone,
                _CHARTS,
                values,
                more,
            )
            for name, backbone in backbones.items()
            for head, values in _HEADS.items()
            for confidence, more in _CONFIDENCES.items()
        },
        evolved: (fpn, bases["R_50"], _EVOLUTION),
        **{
            f"{evolved}_B_{kind}": (fpn, first, _EVOLUTION)
            for kind in ("coarsesegm", "finesegm", "uniform", "uv")
        },
        **{
            f"{folder}/cse/densepose_rcnn_{name}_FPN{head}{soft}_s1x": (
                fpn,
                backbone,
                _EMBEDDINGS,
                values,
                _HUMAN,
            )
            for name, backbone in backbones.items()
            for head, values in _HEADS.items()
            for soft in ("", "_soft")
        },
        **{
            f"{folder}/cse/densepose_rcnn_R_50_FPN_soft_{name}": (fpn, weights, _EMBEDDINGS, _V1, values)
            for name, (weights, values) in _ANIMALS.items()
        },
    }
