"""Names of classes; spot values are those of COCO's, Cityscapes' and VOC's own lists."""

from tf_d2.config import category_ids, class_names, keypoint_names, load_config, stuff_names

FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_3x"


def test_coco():
    config = load_config(FASTER)
    names, ids = class_names(config), category_ids(config)
    assert len(names) == len(ids) == len(set(names)) == len(set(ids)) == 80
    table = dict(zip(ids, names, strict=True))
    assert table[1] == "person" and table[13] == "stop sign" and table[27] == "backpack"
    assert table[46] == "wine glass" and table[67] == "dining table" and table[90] == "toothbrush"
    assert not {12, 26, 29, 30, 45, 66, 68, 69, 71, 83} & set(ids)
    assert class_names("coco_2017_val") == class_names("coco_2014_train") == names


def test_panoptic():
    config = load_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_3x")
    names = stuff_names(config)
    assert len(names) == len(set(names)) == 54
    assert names[0] == "things" and names[1] == "banner" and names[37] == "tree" and names[53] == "rug"
    assert len(class_names(config)) == 80


def test_stuff_ids():
    from tf_d2.config.classes import COCO_STUFF, COCO_STUFF_IDS

    table = dict(zip(COCO_STUFF_IDS, COCO_STUFF, strict=True))
    assert table[92] == "banner" and table[119] == "flower" and table[187] == "sky" and table[200] == "rug"


def test_other_data_sets():
    keypoint = load_config("COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x")
    assert class_names(keypoint) == ("person",) and category_ids(keypoint) == (1,)
    assert keypoint_names(keypoint)[:2] == ("nose", "left_eye") and len(keypoint_names(keypoint)) == 17
    cityscapes = load_config("Cityscapes/mask_rcnn_R_50_FPN")
    assert class_names(cityscapes)[1] == "rider" and category_ids(cityscapes)[-1] == 33
    assert len(stuff_names("cityscapes_fine_sem_seg_val")) == 19
    voc = load_config("PascalVOC-Detection/faster_rcnn_R_50_C4")
    assert len(class_names(voc)) == 20 and class_names(voc)[-1] == "tvmonitor"
    lvis = load_config("LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x")
    assert category_ids(lvis)[0] == 1 and len(category_ids(lvis)) == 1203


def test_names_that_do_not_fit_are_not_used():
    """A run on one's own data often keeps DATASETS.TEST of the file it started from."""
    config = load_config(FASTER, ["MODEL.ROI_HEADS.NUM_CLASSES", 3])
    assert class_names(config) == ("class 0", "class 1", "class 2")
    assert category_ids(config) == (0, 1, 2)
    assert class_names("my_data") == () and stuff_names("my_data") == ()
    assert stuff_names(config) == () and keypoint_names(config) == ()
    assert class_names(load_config("COCO-Detection/rpn_R_50_FPN_1x")) == ()
    keypoints = ["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 2]
    custom = load_config("COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x", keypoints)
    assert keypoint_names(custom) == ("keypoint 0", "keypoint 1")
