"""The published models: facts of detectron2's MODEL_ZOO.md, its projects' READMEs and its model catalogue.

One line per checkpoint under the heading of its family: the configuration's path in detectron2's repository
(below ``configs/`` unless it starts with ``projects/``; ``catalog://`` or ``-`` where there is none), and the
checkpoint's path below `HOST`. ``~`` stands for ``detectron2/`` and the configuration's name.
"""
# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

HOST = "https://dl.fbaipublicfiles.com/"

TABLE = """
# Faster R-CNN
COCO-Detection/faster_rcnn_R_50_C4_1x.yaml ~/137257644/model_final_721ade.pkl
COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml ~/137847829/model_final_51d356.pkl
COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml ~/137257794/model_final_b275ba.pkl
COCO-Detection/faster_rcnn_R_50_C4_3x.yaml ~/137849393/model_final_f97cb7.pkl
COCO-Detection/faster_rcnn_R_50_DC5_3x.yaml ~/137849425/model_final_68d202.pkl
COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml ~/137849458/model_final_280758.pkl
COCO-Detection/faster_rcnn_R_101_C4_3x.yaml ~/138204752/model_final_298dad.pkl
COCO-Detection/faster_rcnn_R_101_DC5_3x.yaml ~/138204841/model_final_3e0943.pkl
COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml ~/137851257/model_final_f6e8b1.pkl
COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml ~/139173657/model_final_68b088.pkl
PascalVOC-Detection/faster_rcnn_R_50_C4.yaml ~/142202221/model_final_b1acc2.pkl
Detectron1-Comparisons/faster_rcnn_R_50_FPN_noaug_1x.yaml ~/137781054/model_final_7ab50c.pkl
# RetinaNet
COCO-Detection/retinanet_R_50_FPN_1x.yaml ~/190397773/model_final_bfca0b.pkl
COCO-Detection/retinanet_R_50_FPN_3x.yaml ~/190397829/model_final_5bd44e.pkl
COCO-Detection/retinanet_R_101_FPN_3x.yaml ~/190397697/model_final_971ab9.pkl
# RPN
COCO-Detection/rpn_R_50_C4_1x.yaml ~/137258005/model_final_450694.pkl
COCO-Detection/rpn_R_50_FPN_1x.yaml ~/137258492/model_final_02ce48.pkl
# Fast R-CNN
COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml ~/137635226/model_final_e5f7ce.pkl
# Mask R-CNN
COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml ~/137259246/model_final_9243eb.pkl
COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml ~/137260150/model_final_4f86c3.pkl
COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml ~/137260431/model_final_a54504.pkl
COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x.yaml ~/137849525/model_final_4ce675.pkl
COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_3x.yaml ~/137849551/model_final_84107b.pkl
COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml ~/137849600/model_final_f10217.pkl
COCO-InstanceSegmentation/mask_rcnn_R_101_C4_3x.yaml ~/138363239/model_final_a2914c.pkl
COCO-InstanceSegmentation/mask_rcnn_R_101_DC5_3x.yaml ~/138363294/model_final_0464b7.pkl
COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml ~/138205316/model_final_a3ec72.pkl
COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml ~/139653917/model_final_2d9806.pkl
LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml ~/144219072/model_final_571f7c.pkl
LVISv0.5-InstanceSegmentation/mask_rcnn_R_101_FPN_1x.yaml ~/144219035/model_final_824ab5.pkl
LVISv0.5-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_1x.yaml ~/144219108/model_final_5e3439.pkl
Cityscapes/mask_rcnn_R_50_FPN.yaml ~/142423278/model_final_af9cf5.pkl
Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5.yaml ~/138602867/model_final_65c703.pkl
Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5.yaml ~/144998336/model_final_821d0b.pkl
Misc/mask_rcnn_R_50_FPN_3x_gn.yaml ~/138602888/model_final_dc5d9e.pkl
Misc/mask_rcnn_R_50_FPN_3x_syncbn.yaml ~/169527823/model_final_3b3c51.pkl
Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml ~/138602908/model_final_01ca85.pkl
Misc/scratch_mask_rcnn_R_50_FPN_9x_gn.yaml ~/183808979/model_final_da7b4c.pkl
Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn.yaml ~/184226666/model_final_5ce33e.pkl
Detectron1-Comparisons/mask_rcnn_R_50_FPN_noaug_1x.yaml ~/137781281/model_final_62ca52.pkl
# Mask R-CNN (LSJ)
new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py ~/42047764/model_final_bb69de.pkl
new_baselines/mask_rcnn_R_50_FPN_200ep_LSJ.py ~/42047638/model_final_89a8d3.pkl
new_baselines/mask_rcnn_R_50_FPN_400ep_LSJ.py ~/42019571/model_final_14d201.pkl
new_baselines/mask_rcnn_R_101_FPN_100ep_LSJ.py ~/42025812/model_final_4f7b58.pkl
new_baselines/mask_rcnn_R_101_FPN_200ep_LSJ.py ~/42131867/model_final_0bb7ae.pkl
new_baselines/mask_rcnn_R_101_FPN_400ep_LSJ.py ~/42073830/model_final_f96b26.pkl
# Mask R-CNN (RegNet, LSJ)
new_baselines/mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ.py ~/42047771/model_final_b7fbab.pkl
new_baselines/mask_rcnn_regnetx_4gf_dds_FPN_200ep_LSJ.py ~/42132721/model_final_5d87c1.pkl
new_baselines/mask_rcnn_regnetx_4gf_dds_FPN_400ep_LSJ.py ~/42025447/model_final_f1362d.pkl
new_baselines/mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ.py ~/42047784/model_final_6ba57e.pkl
new_baselines/mask_rcnn_regnety_4gf_dds_FPN_200ep_LSJ.py ~/42047642/model_final_27b9c1.pkl
new_baselines/mask_rcnn_regnety_4gf_dds_FPN_400ep_LSJ.py ~/42045954/model_final_ef3a80.pkl
# Keypoint R-CNN
COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml ~/137261548/model_final_04e291.pkl
COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml ~/137849621/model_final_a6e10b.pkl
COCO-Keypoints/keypoint_rcnn_R_101_FPN_3x.yaml ~/138363331/model_final_997cc7.pkl
COCO-Keypoints/keypoint_rcnn_X_101_32x8d_FPN_3x.yaml ~/139686956/model_final_5ad38f.pkl
Detectron1-Comparisons/keypoint_rcnn_R_50_FPN_1x.yaml ~/137781195/model_final_cce136.pkl
# Panoptic FPN
COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml ~/139514544/model_final_dbfeb4.pkl
COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml ~/139514569/model_final_c10459.pkl
COCO-PanopticSegmentation/panoptic_fpn_R_101_3x.yaml ~/139514519/model_final_cafdb1.pkl
Misc/panoptic_fpn_R_101_dconv_cascade_gn_3x.yaml ~/139797668/model_final_be35db.pkl
# Cascade Mask R-CNN
Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml ~/138602847/model_final_e9d89b.pkl
Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml ~/144998488/model_final_480dd8.pkl
Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv.yaml ~/18131413/model_0039999_e76410.pkl
# Mask R-CNN (ViTDet)
projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py detectron2/ViTDet/COCO/mask_rcnn_vitdet_b/f325346929/model_final_61ccd1.pkl
projects/ViTDet/configs/COCO/mask_rcnn_vitdet_l_100ep.py detectron2/ViTDet/COCO/mask_rcnn_vitdet_l/f325599698/model_final_6146ed.pkl
projects/ViTDet/configs/COCO/mask_rcnn_vitdet_h_75ep.py detectron2/ViTDet/COCO/mask_rcnn_vitdet_h/f329145471/model_final_7224f1.pkl
projects/ViTDet/configs/LVIS/mask_rcnn_vitdet_b_100ep.py detectron2/ViTDet/LVIS/mask_rcnn_vitdet_b/329225748/model_final_5251c5.pkl
projects/ViTDet/configs/LVIS/mask_rcnn_vitdet_l_100ep.py detectron2/ViTDet/LVIS/mask_rcnn_vitdet_l/329211570/model_final_021b3a.pkl
projects/ViTDet/configs/LVIS/mask_rcnn_vitdet_h_100ep.py detectron2/ViTDet/LVIS/mask_rcnn_vitdet_h/332434656/model_final_866730.pkl
# Cascade Mask R-CNN (Swin)
projects/ViTDet/configs/COCO/cascade_mask_rcnn_swin_b_in21k_50ep.py detectron2/ViTDet/COCO/cascade_mask_rcnn_swin_b_in21k/f342979038/model_final_246a82.pkl
projects/ViTDet/configs/COCO/cascade_mask_rcnn_swin_l_in21k_50ep.py detectron2/ViTDet/COCO/cascade_mask_rcnn_swin_l_in21k/f342979186/model_final_7c897e.pkl
projects/ViTDet/configs/LVIS/cascade_mask_rcnn_swin_b_in21k_50ep.py detectron2/ViTDet/LVIS/cascade_mask_rcnn_swin_b_in21k/329222304/model_final_a3a348.pkl
projects/ViTDet/configs/LVIS/cascade_mask_rcnn_swin_l_in21k_50ep.py detectron2/ViTDet/LVIS/cascade_mask_rcnn_swin_l_in21k/329222724/model_final_2b94db.pkl
# Cascade Mask R-CNN (MViTv2)
projects/ViTDet/configs/COCO/cascade_mask_rcnn_mvitv2_b_in21k_100ep.py detectron2/ViTDet/COCO/cascade_mask_rcnn_mvitv2_b_in21k/f325820315/model_final_8c3da3.pkl
projects/ViTDet/configs/COCO/cascade_mask_rcnn_mvitv2_l_in21k_50ep.py detectron2/ViTDet/COCO/cascade_mask_rcnn_mvitv2_l_in21k/f325607715/model_final_2141b0.pkl
projects/ViTDet/configs/COCO/cascade_mask_rcnn_mvitv2_h_in21k_36ep.py detectron2/ViTDet/COCO/cascade_mask_rcnn_mvitv2_h_in21k/f326187358/model_final_2234d7.pkl
projects/ViTDet/configs/LVIS/cascade_mask_rcnn_mvitv2_b_in21k_100ep.py detectron2/ViTDet/LVIS/cascade_mask_rcnn_mvitv2_b_in21k/329477206/model_final_a00567.pkl
projects/ViTDet/configs/LVIS/cascade_mask_rcnn_mvitv2_l_in21k_50ep.py detectron2/ViTDet/LVIS/cascade_mask_rcnn_mvitv2_l_in21k/329661552/model_final_7838a5.pkl
projects/ViTDet/configs/LVIS/cascade_mask_rcnn_mvitv2_h_in21k_50ep.py detectron2/ViTDet/LVIS/cascade_mask_rcnn_mvitv2_h_in21k/330445165/model_final_ad4220.pkl
projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_t_3x.py detectron2/MViTv2/cascade_mask_rcnn_mvitv2_t_3x/f308344828/model_final_c6967a.pkl
projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_s_3x.py detectron2/MViTv2/cascade_mask_rcnn_mvitv2_s_3x/f308344647/model_final_279baf.pkl
projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_b_3x.py detectron2/MViTv2/cascade_mask_rcnn_mvitv2_b_3x/f308109448/model_final_421a91.pkl
projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_b_in21k_3x.py detectron2/MViTv2/cascade_mask_rcnn_mvitv2_b_in12k_3x/f309003202/model_final_be5168.pkl
projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_l_in21k_lsj_50ep.py detectron2/MViTv2/cascade_mask_rcnn_mvitv2_l_in12k_lsj_50ep/f308099658/model_final_c41c5a.pkl
projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_h_in21k_lsj_3x.py detectron2/MViTv2/cascade_mask_rcnn_mvitv2_h_in12k_lsj_3x/f309013744/model_final_30d36b.pkl
# Cascade Mask R-CNN (ViTDet)
projects/ViTDet/configs/COCO/cascade_mask_rcnn_vitdet_b_100ep.py detectron2/ViTDet/COCO/cascade_mask_rcnn_vitdet_b/f325358525/model_final_435fa9.pkl
projects/ViTDet/configs/COCO/cascade_mask_rcnn_vitdet_l_100ep.py detectron2/ViTDet/COCO/cascade_mask_rcnn_vitdet_l/f328021305/model_final_1a9f28.pkl
projects/ViTDet/configs/COCO/cascade_mask_rcnn_vitdet_h_75ep.py detectron2/ViTDet/COCO/cascade_mask_rcnn_vitdet_h/f328730692/model_final_f05665.pkl
projects/ViTDet/configs/LVIS/cascade_mask_rcnn_vitdet_b_100ep.py detectron2/ViTDet/LVIS/cascade_mask_rcnn_vitdet_b/329226874/model_final_df306f.pkl
projects/ViTDet/configs/LVIS/cascade_mask_rcnn_vitdet_l_100ep.py detectron2/ViTDet/LVIS/cascade_mask_rcnn_vitdet_l/329042206/model_final_3e81c2.pkl
projects/ViTDet/configs/LVIS/cascade_mask_rcnn_vitdet_h_100ep.py detectron2/ViTDet/LVIS/cascade_mask_rcnn_vitdet_h/332552778/model_final_11bbb7.pkl
# Mask R-CNN (MViTv2)
projects/MViTv2/configs/mask_rcnn_mvitv2_t_3x.py detectron2/MViTv2/mask_rcnn_mvitv2_t_3x/f307611773/model_final_1a1c30.pkl
# PointRend Mask R-CNN
projects/PointRend/configs/InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml detectron2/PointRend/InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco/164254221/model_final_736f5a.pkl
projects/PointRend/configs/InstanceSegmentation/pointrend_rcnn_R_50_FPN_3x_coco.yaml detectron2/PointRend/InstanceSegmentation/pointrend_rcnn_R_50_FPN_3x_coco/164955410/model_final_edd263.pkl
projects/PointRend/configs/InstanceSegmentation/pointrend_rcnn_R_101_FPN_3x_coco.yaml detectron2/PointRend/InstanceSegmentation/pointrend_rcnn_R_101_FPN_3x_coco/28119983/model_final_3f4d2a.pkl
projects/PointRend/configs/InstanceSegmentation/pointrend_rcnn_X_101_32x8d_FPN_3x_coco.yaml detectron2/PointRend/InstanceSegmentation/pointrend_rcnn_X_101_32x8d_FPN_3x_coco/28119989/model_final_ba17b9.pkl
projects/PointRend/configs/InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_cityscapes.yaml detectron2/PointRend/InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_cityscapes/164255101/model_final_115bfb.pkl
# PointRend Semantic FPN
projects/PointRend/configs/SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes.yaml detectron2/PointRend/SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes/202576688/model_final_cf6ac1.pkl
# DeepLabV3
projects/DeepLab/configs/Cityscapes-SemanticSegmentation/deeplab_v3_R_103_os16_mg124_poly_90k_bs16.yaml detectron2/DeepLab/Cityscapes-SemanticSegmentation/deeplab_v3_R_103_os16_mg124_poly_90k_bs16/28041665/model_final_0dff1b.pkl
# DeepLabV3+
projects/DeepLab/configs/Cityscapes-SemanticSegmentation/deeplab_v3_plus_R_103_os16_mg124_poly_90k_bs16.yaml detectron2/DeepLab/Cityscapes-SemanticSegmentation/deeplab_v3_plus_R_103_os16_mg124_poly_90k_bs16/28054032/model_final_a8a355.pkl
# Panoptic-DeepLab
projects/Panoptic-DeepLab/configs/Cityscapes-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_90k_bs32_crop_512_1024.yaml detectron2/PanopticDeepLab/Cityscapes-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_90k_bs32/model_final_bd324a.pkl
projects/Panoptic-DeepLab/configs/Cityscapes-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_90k_bs32_crop_512_1024_dsconv.yaml detectron2/PanopticDeepLab/Cityscapes-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_90k_bs32_crop_512_1024_dsconv/model_final_23d03a.pkl
projects/Panoptic-DeepLab/configs/COCO-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_200k_bs64_crop_640_640_coco_dsconv.yaml detectron2/PanopticDeepLab/COCO-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_200k_bs64_crop_640_640_coco_dsconv/model_final_5e6da2.pkl
# TensorMask
projects/TensorMask/configs/tensormask_R_50_FPN_1x.yaml detectron2/TensorMask/tensormask_R_50_FPN_1x/152549419/model_final_8f325c.pkl
projects/TensorMask/configs/tensormask_R_50_FPN_6x.yaml detectron2/TensorMask/tensormask_R_50_FPN_6x/153538791/model_final_e8df31.pkl
# TridentNet Faster R-CNN
projects/TridentNet/configs/tridentnet_fast_R_50_C4_1x.yaml detectron2/TridentNet/tridentnet_fast_R_50_C4_1x/148572687/model_final_756cda.pkl
projects/TridentNet/configs/tridentnet_fast_R_50_C4_3x.yaml detectron2/TridentNet/tridentnet_fast_R_50_C4_3x/148572287/model_final_e1027c.pkl
projects/TridentNet/configs/tridentnet_fast_R_101_C4_3x.yaml detectron2/TridentNet/tridentnet_fast_R_101_C4_3x/148572198/model_final_164568.pkl
# DensePose IUV R-CNN
projects/DensePose/configs/densepose_rcnn_R_50_FPN_s1x_legacy.yaml densepose/densepose_rcnn_R_50_FPN_s1x_legacy/164832157/model_final_d366fa.pkl
projects/DensePose/configs/densepose_rcnn_R_101_FPN_s1x_legacy.yaml densepose/densepose_rcnn_R_101_FPN_s1x_legacy/164832182/model_final_10af0e.pkl
projects/DensePose/configs/densepose_rcnn_R_50_FPN_s1x.yaml densepose/densepose_rcnn_R_50_FPN_s1x/165712039/model_final_162be9.pkl
projects/DensePose/configs/densepose_rcnn_R_101_FPN_s1x.yaml densepose/densepose_rcnn_R_101_FPN_s1x/165712084/model_final_c6ab63.pkl
projects/DensePose/configs/densepose_rcnn_R_50_FPN_DL_s1x.yaml densepose/densepose_rcnn_R_50_FPN_DL_s1x/165712097/model_final_0ed407.pkl
projects/DensePose/configs/densepose_rcnn_R_101_FPN_DL_s1x.yaml densepose/densepose_rcnn_R_101_FPN_DL_s1x/165712116/model_final_844d15.pkl
projects/DensePose/configs/densepose_rcnn_R_50_FPN_WC1_s1x.yaml densepose/densepose_rcnn_R_50_FPN_WC1_s1x/173862049/model_final_289019.pkl
projects/DensePose/configs/densepose_rcnn_R_50_FPN_WC2_s1x.yaml densepose/densepose_rcnn_R_50_FPN_WC2_s1x/173861455/model_final_3abe14.pkl
projects/DensePose/configs/densepose_rcnn_R_50_FPN_DL_WC1_s1x.yaml densepose/densepose_rcnn_R_50_FPN_DL_WC1_s1x/173067973/model_final_b1e525.pkl
projects/DensePose/configs/densepose_rcnn_R_50_FPN_DL_WC2_s1x.yaml densepose/densepose_rcnn_R_50_FPN_DL_WC2_s1x/173859335/model_final_60fed4.pkl
projects/DensePose/configs/densepose_rcnn_R_101_FPN_WC1_s1x.yaml densepose/densepose_rcnn_R_101_FPN_WC1_s1x/171402969/model_final_9e47f0.pkl
projects/DensePose/configs/densepose_rcnn_R_101_FPN_WC2_s1x.yaml densepose/densepose_rcnn_R_101_FPN_WC2_s1x/173860702/model_final_5ea023.pkl
projects/DensePose/configs/densepose_rcnn_R_101_FPN_DL_WC1_s1x.yaml densepose/densepose_rcnn_R_101_FPN_DL_WC1_s1x/173858525/model_final_f359f3.pkl
projects/DensePose/configs/densepose_rcnn_R_101_FPN_DL_WC2_s1x.yaml densepose/densepose_rcnn_R_101_FPN_DL_WC2_s1x/173294801/model_final_6e1ed1.pkl
projects/DensePose/configs/densepose_rcnn_R_50_FPN_WC1M_s1x.yaml densepose/densepose_rcnn_R_50_FPN_WC1M_s1x/217144516/model_final_48a9d9.pkl
projects/DensePose/configs/densepose_rcnn_R_50_FPN_WC2M_s1x.yaml densepose/densepose_rcnn_R_50_FPN_WC2M_s1x/216245640/model_final_d79ada.pkl
projects/DensePose/configs/densepose_rcnn_R_50_FPN_DL_WC1M_s1x.yaml densepose/densepose_rcnn_R_50_FPN_DL_WC1M_s1x/216245703/model_final_61971e.pkl
projects/DensePose/configs/densepose_rcnn_R_50_FPN_DL_WC2M_s1x.yaml densepose/densepose_rcnn_R_50_FPN_DL_WC2M_s1x/216245758/model_final_7bfb43.pkl
projects/DensePose/configs/densepose_rcnn_R_101_FPN_WC1M_s1x.yaml densepose/densepose_rcnn_R_101_FPN_WC1M_s1x/216453687/model_final_0a7287.pkl
projects/DensePose/configs/densepose_rcnn_R_101_FPN_WC2M_s1x.yaml densepose/densepose_rcnn_R_101_FPN_WC2M_s1x/216245682/model_final_e354d9.pkl
projects/DensePose/configs/densepose_rcnn_R_101_FPN_DL_WC1M_s1x.yaml densepose/densepose_rcnn_R_101_FPN_DL_WC1M_s1x/216245771/model_final_0ebeb3.pkl
projects/DensePose/configs/densepose_rcnn_R_101_FPN_DL_WC2M_s1x.yaml densepose/densepose_rcnn_R_101_FPN_DL_WC2M_s1x/216245790/model_final_de6e7a.pkl
projects/DensePose/configs/evolution/densepose_R_50_FPN_DL_WC1M_3x_Atop10P_CA.yaml densepose/evolution/densepose_R_50_FPN_DL_WC1M_3x_Atop10P_CA/217578784/model_final_9fe1cc.pkl
projects/DensePose/configs/evolution/densepose_R_50_FPN_DL_WC1M_3x_Atop10P_CA_B_uniform.yaml densepose/evolution/densepose_R_50_FPN_DL_WC1M_3x_Atop10P_CA_B_uniform/256453729/model_final_241ff5.pkl
projects/DensePose/configs/evolution/densepose_R_50_FPN_DL_WC1M_3x_Atop10P_CA_B_uv.yaml densepose/evolution/densepose_R_50_FPN_DL_WC1M_3x_Atop10P_CA_B_uv/256452095/model_final_d689e2.pkl
projects/DensePose/configs/evolution/densepose_R_50_FPN_DL_WC1M_3x_Atop10P_CA_B_finesegm.yaml densepose/evolution/densepose_R_50_FPN_DL_WC1M_3x_Atop10P_CA_B_finesegm/256452819/model_final_cb4ac6.pkl
projects/DensePose/configs/evolution/densepose_R_50_FPN_DL_WC1M_3x_Atop10P_CA_B_coarsesegm.yaml densepose/evolution/densepose_R_50_FPN_DL_WC1M_3x_Atop10P_CA_B_coarsesegm/256455697/model_final_a6a4bf.pkl
# DensePose CSE R-CNN
projects/DensePose/configs/cse/densepose_rcnn_R_50_FPN_s1x.yaml densepose/cse/densepose_rcnn_R_50_FPN_s1x/251155172/model_final_c4ea5f.pkl
projects/DensePose/configs/cse/densepose_rcnn_R_101_FPN_s1x.yaml densepose/cse/densepose_rcnn_R_101_FPN_s1x/251155500/model_final_5c995f.pkl
projects/DensePose/configs/cse/densepose_rcnn_R_50_FPN_DL_s1x.yaml densepose/cse/densepose_rcnn_R_50_FPN_DL_s1x/251156349/model_final_e96218.pkl
projects/DensePose/configs/cse/densepose_rcnn_R_101_FPN_DL_s1x.yaml densepose/cse/densepose_rcnn_R_101_FPN_DL_s1x/251156606/model_final_b236ce.pkl
projects/DensePose/configs/cse/densepose_rcnn_R_50_FPN_soft_s1x.yaml densepose/cse/densepose_rcnn_R_50_FPN_soft_s1x/250533982/model_final_2c4512.pkl
projects/DensePose/configs/cse/densepose_rcnn_R_101_FPN_soft_s1x.yaml densepose/cse/densepose_rcnn_R_101_FPN_soft_s1x/250712522/model_final_4637da.pkl
projects/DensePose/configs/cse/densepose_rcnn_R_50_FPN_DL_soft_s1x.yaml densepose/cse/densepose_rcnn_R_50_FPN_DL_soft_s1x/250713703/model_final_9199f5.pkl
projects/DensePose/configs/cse/densepose_rcnn_R_101_FPN_DL_soft_s1x.yaml densepose/cse/densepose_rcnn_R_101_FPN_DL_soft_s1x/250713061/model_final_1d3314.pkl
projects/DensePose/configs/cse/densepose_rcnn_R_50_FPN_soft_chimps_finetune_4k.yaml densepose/cse/densepose_rcnn_R_50_FPN_soft_chimps_finetune_4k/253146869/model_final_52f649.pkl
projects/DensePose/configs/cse/densepose_rcnn_R_50_FPN_soft_animals_finetune_4k.yaml densepose/cse/densepose_rcnn_R_50_FPN_soft_animals_finetune_4k/253145793/model_final_8f8ba2.pkl
projects/DensePose/configs/cse/densepose_rcnn_R_50_FPN_soft_animals_CA_finetune_4k.yaml densepose/cse/densepose_rcnn_R_50_FPN_soft_animals_CA_finetune_4k/253498611/model_final_6d69b7.pkl
projects/DensePose/configs/cse/densepose_rcnn_R_50_FPN_soft_animals_I0_finetune_16k.yaml densepose/cse/densepose_rcnn_R_50_FPN_soft_animals_I0_finetune_16k/270727112/model_final_421d28.pkl
projects/DensePose/configs/cse/densepose_rcnn_R_50_FPN_soft_animals_I0_finetune_m2m_16k.yaml densepose/cse/densepose_rcnn_R_50_FPN_soft_animals_I0_finetune_m2m_16k/270982215/model_final_6fe5f4.pkl
projects/DensePose/configs/cse/densepose_rcnn_R_50_FPN_soft_animals_I0_finetune_i2m_16k.yaml densepose/cse/densepose_rcnn_R_50_FPN_soft_animals_I0_finetune_i2m_16k/270727461/model_final_8c9d99.pkl
# Legacy Detectron1 (Caffe2)
catalog://Caffe2Detectron/COCO/35857197/e2e_faster_rcnn_R-50-C4_1x detectron/35857197/12_2017_baselines/e2e_faster_rcnn_R-50-C4_1x.yaml.01_33_49.iAX0mXvW/output/train/coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/model_final.pkl
catalog://Caffe2Detectron/COCO/35857345/e2e_faster_rcnn_R-50-FPN_1x detectron/35857345/12_2017_baselines/e2e_faster_rcnn_R-50-FPN_1x.yaml.01_36_30.cUF7QR7I/output/train/coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/model_final.pkl
catalog://Caffe2Detectron/COCO/35857890/e2e_faster_rcnn_R-101-FPN_1x detectron/35857890/12_2017_baselines/e2e_faster_rcnn_R-101-FPN_1x.yaml.01_38_50.sNxI7sX7/output/train/coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/model_final.pkl
catalog://Caffe2Detectron/COCO/36761737/e2e_faster_rcnn_X-101-32x8d-FPN_1x detectron/36761737/12_2017_baselines/e2e_faster_rcnn_X-101-32x8d-FPN_1x.yaml.06_31_39.5MIHi1fZ/output/train/coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/model_final.pkl
catalog://Caffe2Detectron/COCO/35858791/e2e_mask_rcnn_R-50-C4_1x detectron/35858791/12_2017_baselines/e2e_mask_rcnn_R-50-C4_1x.yaml.01_45_57.ZgkA7hPB/output/train/coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/model_final.pkl
catalog://Caffe2Detectron/COCO/35858933/e2e_mask_rcnn_R-50-FPN_1x detectron/35858933/12_2017_baselines/e2e_mask_rcnn_R-50-FPN_1x.yaml.01_48_14.DzEQe4wC/output/train/coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/model_final.pkl
catalog://Caffe2Detectron/COCO/35861795/e2e_mask_rcnn_R-101-FPN_1x detectron/35861795/12_2017_baselines/e2e_mask_rcnn_R-101-FPN_1x.yaml.02_31_37.KqyEK4tT/output/train/coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/model_final.pkl
catalog://Caffe2Detectron/COCO/36761843/e2e_mask_rcnn_X-101-32x8d-FPN_1x detectron/36761843/12_2017_baselines/e2e_mask_rcnn_X-101-32x8d-FPN_1x.yaml.06_35_59.RZotkLKI/output/train/coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/model_final.pkl
catalog://Caffe2Detectron/COCO/48616381/e2e_mask_rcnn_R-50-FPN_2x_gn detectron/GN/48616381/04_2018_gn_baselines/e2e_mask_rcnn_R-50-FPN_2x_gn_0416.13_23_38.bTlTI97Q/output/train/coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/model_final.pkl
catalog://Caffe2Detectron/COCO/37697547/e2e_keypoint_rcnn_R-50-FPN_1x detectron/37697547/12_2017_baselines/e2e_keypoint_rcnn_R-50-FPN_1x.yaml.08_42_54.kdzV35ao/output/train/keypoints_coco_2014_train%3Akeypoints_coco_2014_valminusminival/generalized_rcnn/model_final.pkl
catalog://Caffe2Detectron/COCO/35998355/rpn_R-50-C4_1x detectron/35998355/12_2017_baselines/rpn_R-50-C4_1x.yaml.08_00_43.njH5oD9L/output/train/coco_2014_train%3Acoco_2014_valminusminival/rpn/model_final.pkl
catalog://Caffe2Detectron/COCO/35998814/rpn_R-50-FPN_1x detectron/35998814/12_2017_baselines/rpn_R-50-FPN_1x.yaml.08_06_03.Axg0r179/output/train/coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/model_final.pkl
catalog://Caffe2Detectron/COCO/36225147/fast_R-50-FPN_1x detectron/36225147/12_2017_baselines/fast_rcnn_R-50-FPN_1x.yaml.08_39_09.L3obSdQ2/output/train/coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/model_final.pkl
# ImageNet backbone (init only)
- detectron2/ImageNetPretrained/MSRA/R-50.pkl
- detectron2/ImageNetPretrained/MSRA/R-101.pkl
- detectron2/ImageNetPretrained/FAIR/X-101-32x8d.pkl
- detectron2/ImageNetPretrained/torchvision/R-50.pkl
- detectron/ImageNetPretrained/25093814/X-152-32x8d-IN5k.pkl
- detectron/ImageNetPretrained/47261647/R-50-GN.pkl
- detectron/ImageNetPretrained/47592356/R-101-GN.pkl
- detectron2/DeepLab/R-103.pkl
- detectron2/DeepLab/R-52.pkl
catalog://ImageNetPretrained/FAIR/X-101-32x8d detectron/ImageNetPretrained/20171220/X-101-32x8d.pkl
catalog://ImageNetPretrained/FAIR/X-101-64x4d detectron/ImageNetPretrained/FBResNeXt/X-101-64x4d.pkl
"""

CATALOG = "catalog://ImageNetPretrained/"
_IMAGENET = "ImageNet backbone (init only)"
_NO_CONFIG = {
    _IMAGENET: "weights of a backbone for starting a training; not a detector",
}
# catalog:// names whose checkpoint detectron2's documents list by URL alone
_CATALOG_IDS = {"47261647": "FAIR/", "47592356": "FAIR/", "25093814": "FAIR/", "MSRA": "MSRA/"}


@dataclass(frozen=True)
class ZooModel:
    """One published checkpoint. ``config_path`` is empty where detectron2 has no configuration for it."""

    name: str
    family: str
    config_path: str
    url: str

    @property
    def no_detector(self) -> str | None:
        """What the checkpoint is where it is none to run. All others run (:func:`unsupported_reason`, slower, tries)."""
        return _NO_CONFIG.get(self.family)


def without_extension(config_path: str) -> str:
    """A configuration's path without its extension."""
    for suffix in (".yaml", ".yml", ".py"):
        config_path = config_path.removesuffix(suffix)
    return config_path


def _row(family: str, config: str, checkpoint: str) -> ZooModel:
    name = without_extension(config)
    path = checkpoint.replace("~", f"detectron2/{name}", 1)
    if config == "-":
        name = "detectron2://" + path.removeprefix("detectron2/")
        parts = path.split("/")
        if path.startswith("detectron/"):
            name = f"{CATALOG}{_CATALOG_IDS[parts[-2]]}{_stem_of_file(parts[-1])}"
    published = not config.startswith(("-", "catalog:"))
    full = config if config.startswith("projects/") else f"configs/{config}"
    return ZooModel(name, family, full if published else "", HOST + path)


def _stem_of_file(name: str) -> str:
    return name.removesuffix(".pkl")


@lru_cache(maxsize=1)
def zoo_models() -> Mapping[str, ZooModel]:
    """All published checkpoints by name, in the order of detectron2's documents."""
    rows: dict[str, ZooModel] = {}
    family = ""
    for line in TABLE.strip().splitlines():
        if line.startswith("# "):
            family = line[2:]
        else:
            row = _row(family, *line.split(" "))
            rows[row.name] = row
    return MappingProxyType(rows)
