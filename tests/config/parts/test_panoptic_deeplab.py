"""Configurations of Panoptic-DeepLab."""

from __future__ import annotations

from typing import Any

import pytest

from tf_d2.config import (
    ConfigError,
    class_names,
    load_config,
    load_config_text,
    resolve_yaml,
    resolve_yaml_text,
)
from tf_d2.config.classes import category_ids

FOLDER = "projects/Panoptic-DeepLab/configs/"
CITY = FOLDER + "Cityscapes-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_90k_bs32_crop_512_1024"
COCO = (
    FOLDER
    + "COCO-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_200k_bs64_crop_640_640_coco_dsconv"
)
OWN, SEMANTIC, INSTANCE = "MODEL.PANOPTIC_DEEPLAB.", "MODEL.SEM_SEG_HEAD.", "MODEL.INS_EMBED_HEAD."
SEPARABLE = "USE_DEPTHWISE_SEPARABLE_CONV"
UNKNOWN = ["DATASETS.TRAIN", ["my_streets"], "DATASETS.TEST", []]


def test_what_the_published_models_are() -> None:
    city, separable, coco = (load_config(name).model for name in (CITY, CITY + "_dsconv", COCO))
    assert (city.thing_ids, coco.thing_ids) == (tuple(range(11, 19)), tuple(range(80)))
    assert city.label_divisor == coco.label_divisor == 1000
    assert (city.size_divisibility, coco.size_divisibility) == (0, 640)
    assert city.sem_seg_head.pool_kernel == city.ins_embed_head.pool_kernel == (32, 64)
    assert coco.detections_per_image == 199 and coco.nms_kernel == 41
    flags = [m.ins_embed_head.use_depthwise_separable_conv for m in (city, separable, coco)]
    assert flags == [False, True, True]


def test_names_and_numbers_of_classes() -> None:
    city, coco = load_config(CITY), load_config(COCO)
    assert (class_names(city)[11], category_ids(city)[11], category_ids(city)[0]) == ("person", 24, 7)
    assert (class_names(coco)[79:82], category_ids(coco)[79:82]) == (
        ("toothbrush", "banner", "blanket"),
        (90, 92, 93),
    )
    assert (class_names(coco)[132], category_ids(coco)[132]) == ("rug-merged", 200)


def test_things_of_a_users_own_data_set() -> None:
    given = [*UNKNOWN, OWN + "THING_IDS", [3, 1], OWN + "LABEL_DIVISOR", 500]
    config = load_config(CITY, opts=given)
    assert (config.model.thing_ids, config.model.label_divisor, config.model.train_dataset) == (
        (1, 3),
        500,
        "",
    )
    assert load_config_text(resolve_yaml(CITY, given)) == config


@pytest.mark.parametrize("name", [CITY, CITY + "_dsconv", COCO])
def test_a_dump_says_the_same_model(name: str) -> None:
    text = resolve_yaml(name)
    assert load_config_text(text) == load_config(name)
    assert resolve_yaml_text(text) == text


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (UNKNOWN, r"DATASETS.TRAIN.*cityscapes_fine_panoptic_train.*THING_IDS.*LABEL_DIVISOR"),
        ([OWN + "THING_IDS", [18, 19]], "from 0 to 18"),
        ([OWN + "THING_IDS", [1, 1]], "different"),
        ([OWN + "THING_IDS", [1], OWN + "LABEL_DIVISOR", 199], "at least .*TOP_K_INSTANCE, 200"),
        ([OWN + "NMS_KERNEL", 6], "odd"),
        ([OWN + SEPARABLE, True], SEMANTIC + SEPARABLE),
        ([SEMANTIC + "NAME", "DeepLabV3PlusHead"], "PanopticDeepLabSemSegHead"),
        ([INSTANCE + "PROJECT_CHANNELS", [32]], "2 numbers above 0"),
        ([INSTANCE + "NAME", "Mine"], "PanopticDeepLabInsEmbedHead"),
    ],
)
def test_what_cannot_be_is_refused(opts: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(CITY, opts=opts)
