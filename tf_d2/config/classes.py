"""Names and category numbers of the data sets the published models were trained on: facts, as tuples.

A model numbers its classes 0, 1, ...; COCO result files use the numbers of the data set (1 to 90 with gaps).
Source: ``detectron2/data/datasets/builtin_meta.py`` and the evaluators.
"""

from __future__ import annotations

from tf_d2.config.schema import ModelConfig

COCO = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,
stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,
backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,
baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,
knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,
chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,
cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,
hair drier,toothbrush""".replace("\n", "").split(",")
)
_COCO_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_COCO_IDS = tuple(i for i in range(1, 91) if i not in _COCO_UNUSED)

# Class 0 stands for all things; 1 to 53 are the stuff classes of panoptic COCO.
COCO_STUFF = tuple(
    """things,banner,blanket,bridge,cardboard,counter,curtain,door-stuff,floor-wood,flower,fruit,gravel,house,
light,mirror-stuff,net,pillow,platform,playingfield,railroad,river,road,roof,sand,sea,shelf,snow,stairs,tent,
towel,wall-brick,wall-stone,wall-tile,wall-wood,water,window-blind,window,tree,fence,ceiling,sky,cabinet,table,
floor,pavement,mountain,grass,dirt,paper,food,building,rock,wall,rug""".replace("\n", "").split(",")
)
COCO_STUFF_IDS = (
    *(
        0,
        92,
        93,
        95,
        100,
        107,
        109,
        112,
        118,
        119,
        122,
        125,
        128,
        130,
        133,
        138,
        141,
        144,
        145,
        147,
        148,
        149,
    ),
    *(
        151,
        154,
        155,
        156,
        159,
        161,
        166,
        168,
        171,
        175,
        176,
        177,
        178,
        180,
        181,
        184,
        185,
        186,
        187,
        188,
        189,
    ),
    *range(190, 201),
)

# Classes 80 to 132 where things and stuff are numbered together (Panoptic-DeepLab).
_COCO_PANOPTIC_STUFF = tuple(
    """banner,blanket,bridge,cardboard,counter,curtain,door-stuff,floor-wood,flower,fruit,gravel,house,light,
mirror-stuff,net,pillow,platform,playingfield,railroad,river,road,roof,sand,sea,shelf,snow,stairs,tent,towel,
wall-brick,wall-stone,wall-tile,wall-wood,water-other,window-blind,window-other,tree-merged,fence-merged,
ceiling-merged,sky-other-merged,cabinet-merged,table-merged,floor-other-merged,pavement-merged,mountain-merged,
grass-merged,dirt-merged,paper-merged,food-other-merged,building-other-merged,rock-merged,wall-other-merged,
rug-merged""".replace("\n", "").split(",")
)

_COCO_KEYPOINTS = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
    *("left_knee", "right_knee", "left_ankle", "right_ankle"),
)

_CITYSCAPES_THINGS = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
_CITYSCAPES_THING_IDS = (24, 25, 26, 27, 28, 31, 32, 33)
_CITYSCAPES_STUFF = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky"),
    *_CITYSCAPES_THINGS,
)

_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, *_CITYSCAPES_THING_IDS)

_VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable"),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# Prefix of a data set's name in detectron2 -> (things, their category numbers, stuff).
_DATASETS: tuple[tuple[str, tuple[str, ...], tuple[int, ...], tuple[str, ...]], ...] = (
    ("keypoints_coco_", ("person",), (1,), ()),
    ("densepose_coco_", ("person",), (1,), ()),
    ("coco_", COCO, _COCO_IDS, COCO_STUFF),
    ("cityscapes_", _CITYSCAPES_THINGS, _CITYSCAPES_THING_IDS, _CITYSCAPES_STUFF),
    ("voc_", _VOC, tuple(range(20)), ()),
)


def _dataset(name: str) -> tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]]:
    if name.startswith("coco_") and name.endswith("_panoptic"):
        together = COCO + _COCO_PANOPTIC_STUFF
        return together, _COCO_IDS + COCO_STUFF_IDS[1:], together
    if name.startswith("cityscapes_fine_panoptic_"):
        return _CITYSCAPES_STUFF, _CITYSCAPES_IDS, _CITYSCAPES_STUFF
    return next((row[1:] for row in _DATASETS if name.startswith(row[0])), ((), (), ()))


def _animals(config: ModelConfig) -> tuple[str, ...]:
    """What the meshes of a DensePose model are of; "smpl" is the mesh of a person."""
    meshes = getattr(getattr(config.roi_heads, "densepose", None), "class_to_mesh", ())
    names = [mesh.partition("_")[0] for _, mesh in meshes]
    return tuple("person" if name == "smpl" else name for name in names)


def num_classes(config: ModelConfig) -> int:
    """Number of foreground classes of the detector; 0 for models without one."""
    head = config.detector
    return head.num_classes if head else 0


def class_names(source: ModelConfig | str) -> tuple[str, ...]:
    """Names of classes 0, 1, ... of a model, or of a data set by its detectron2 name.

    For a model whose data set is unknown here, or has another number of classes: ``"class 0"``, ...
    For an unknown data set: an empty tuple.
    """
    if isinstance(source, str):
        return _dataset(source)[0]
    names, count = _dataset(source.dataset)[0] or _animals(source), num_classes(source)
    return names if len(names) == count else tuple(f"class {i}" for i in range(count))


def stuff_names(source: ModelConfig | str) -> tuple[str, ...]:
    """Names of the semantic classes of a model, or of a data set; for COCO class 0 is ``"things"``."""
    if isinstance(source, str):
        return _dataset(source)[2]
    names = _dataset(source.dataset)[2]
    count = source.sem_seg_head.num_classes if source.sem_seg_head else 0
    return names if len(names) == count else tuple(f"stuff {i}" for i in range(count))


def category_ids(config: ModelConfig) -> tuple[int, ...]:
    """Category number of class 0, 1, ... in COCO result files, as detectron2's evaluators write it.

    COCO counts 1 to 90 with gaps, LVIS from 1; where the data set is unknown the class number itself is used.
    """
    count = num_classes(config)
    if config.dataset.startswith("lvis_"):
        return tuple(range(1, count + 1))
    ids = _dataset(config.dataset)[1]
    return ids if len(ids) == count else tuple(range(count))


def stuff_category_ids(config: ModelConfig) -> tuple[int, ...]:
    """Category number of semantic class 0, 1, ... in panoptic result files; of an unknown data set, the class itself.

    Source: detectron2/data/datasets/builtin_meta.py, evaluation/panoptic_evaluation.py.
    """
    count = config.sem_seg_head.num_classes if config.sem_seg_head else 0
    is_coco = _dataset(config.dataset)[2] == COCO_STUFF and count == len(COCO_STUFF_IDS)
    # Both numberings, or none: the things' numbers are those of `category_ids`.
    known = is_coco and category_ids(config) == _COCO_IDS
    return COCO_STUFF_IDS if known else tuple(range(count))


def keypoint_names(config: ModelConfig) -> tuple[str, ...]:
    """Names of the keypoints of a model: COCO's 17, or ``"keypoint 0"``, ... for other numbers."""
    head = config.roi_heads.keypoint_head if config.roi_heads else None
    count = head.num_keypoints if head else 0
    return _COCO_KEYPOINTS if count == len(_COCO_KEYPOINTS) else tuple(f"keypoint {i}" for i in range(count))
