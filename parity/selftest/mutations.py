"""Bugs that ports of detectron2 really have, planted to see whether the harness finds them where they are.

This is the table; ``parity.selftest.tf_planters`` plants them in the TensorFlow model,
``parity.selftest.mutation_run`` runs them all. ``blame`` lists the stages that may be named as the first bad one.
"""

from __future__ import annotations

from dataclasses import dataclass

PROPOSALS = "steps/proposal_generator/0/0"
DETECTIONS = "steps/roi_heads/0/0"
_INSTANCES = "output/instances"
_MASKS = "output/instances/pred_masks"
RESIZED, INPUT = "input/resized", "steps/input"
STEM = "steps/backbone.bottom_up.stem"
_RES = "steps/backbone.bottom_up/res"
P = "steps/backbone/p"
RPN = "steps/proposal_generator.rpn_head"
POOLER, HEAD = "steps/roi_heads.box_pooler", "steps/roi_heads.box_head"
PREDICTOR = "steps/roi_heads.box_predictor"
_MASK_POOLER, _MASK_HEAD = "steps/roi_heads.mask_pooler", "steps/roi_heads.mask_head.predictor"
_SEM_SEG, _KEYPOINTS = "steps/sem_seg_head/0", "steps/roi_heads/0/0/pred_keypoints"
_NET, _BLOCK = "steps/backbone.net", "steps/backbone.net.blocks.0"
BLOCKS, _LAYER = "steps/backbone.bottom_up.blocks", "steps/backbone.bottom_up.layers.0"
_RESIZED = f"{BLOCKS}.2.attn.rel_h"  # the first block that attends over the whole map
_HEATMAPS = "steps/roi_heads/0/0/pred_keypoint_heatmaps"
LOOK, _POINTS = "steps/roi_heads.mask_head.coarse_head", "steps/roi_heads.mask_head.point_head"
_REFINED, ROI = f"{DETECTIONS}/pred_masks", "steps/roi_heads"
DENSEPOSE = "steps/roi_heads.densepose_predictor"
_SEM_HEAD, PANOPTIC = "steps/sem_seg_head", "output/panoptic_seg"


@dataclass(frozen=True)
class Mutation:
    """One planted bug. ``model`` is the family it shows in ("ops": in the operation rung only, "semantic": the
    embedded model in float64, where what is hidden by rounding in float32 shows)."""

    name: str
    model: str
    blame: tuple[str, ...]
    what: str


def _m(name: str, model: str, blame: str | tuple[str, ...], what: str) -> Mutation:
    return Mutation(name, model, (blame,) if isinstance(blame, str) else blame, what)


MUTATIONS = (
    _m("rgb_for_bgr", "mask", RESIZED, "channels of the picture reversed"),
    _m("resize_not_antialiased", "mask", RESIZED, "bilinear resize without Pillow's widening filter"),
    _m("resize_floor", "mask", RESIZED, "network size rounded down instead of half up"),
    _m("resize_float", "mask", RESIZED, "resize rounded once at the end, not after each pass"),
    _m("mean_reversed", "mask", INPUT, "pixel mean in RGB order"),
    _m("scaled_to_one", "mask", INPUT, "picture divided by 255"),
    _m("pad_before_mean", "mask", INPUT, "padding with black instead of the mean colour"),
    _m("pad_centred", "mask", INPUT, "padding on both sides instead of bottom and right"),
    _m("pad_to_64", "mask", INPUT, "padding to multiples of 64"),
    _m("bn_eps_1e-3", "mask", STEM, "batch norm with Keras' epsilon"),
    _m("gamma_beta_swapped", "mask", "weights", "gamma and beta of one norm exchanged"),
    _m("mean_variance_swapped", "mask", "weights", "moving mean and variance of one norm exchanged"),
    _m("kernel_rows_columns_swapped", "mask", "weights", "kernel height and width exchanged in one layer"),
    _m("fc_height_width_swapped", "mask", "weights", "fc1 permuted as W, H, C instead of H, W, C"),
    _m("bias_dropped", "mask", "weights", "one lateral convolution without its bias"),
    _m("class_rows_rolled", "mask", "weights", "background class first in the class scores"),
    _m("same_padding", "mask", STEM, "SAME padding in strided convolutions"),
    _m("max_pool_valid", "mask", STEM, "stem pooling without padding on the left and top"),
    _m("stride_in_3x3", "mask", f"{_RES}3", "stride on the 3x3 instead of the 1x1 convolution"),
    _m("no_relu_after_sum", "mask", f"{_RES}2", "residual sum without its ReLU"),
    _m("dead_channel", "mask", f"{_RES}4", "one output channel of a block always zero"),
    _m("nan_in_res5", "mask", f"{_RES}5", "a NaN from an unguarded division"),
    _m("bilinear_top_down", "mask", f"{P}2", "bilinear instead of nearest upsampling in the pyramid"),
    _m("average_fusion", "mask", f"{P}2", "pyramid levels averaged instead of summed"),
    _m("p6_by_average", "mask", f"{P}6", "p6 by average pooling"),
    _m("rpn_relu_missing", "mask", f"{RPN}/0/0", "RPN convolution without its ReLU"),
    _m("anchor_half_offset", "mask", PROPOSALS, "anchors shifted by half a stride"),
    _m("anchor_ratio_inverted", "mask", PROPOSALS, "aspect ratio as width over height"),
    _m("anchor_xy_swapped", "mask", PROPOSALS, "anchor grid walked column by column"),
    _m("width_plus_one", "mask", PROPOSALS, "boxes one pixel wider, the Detectron convention"),
    _m("deltas_yx", "mask", PROPOSALS, "dy before dx in box deltas"),
    _m("proposals_not_clipped", "mask", PROPOSALS, "proposals not clipped to the image"),
    _m("post_nms_topk_999", "mask", PROPOSALS, "one proposal too few"),
    _m("rpn_nms_0.65", "mask", PROPOSALS, "another NMS threshold in the RPN"),
    _m("rpn_nms_across_levels", "mask", PROPOSALS, "proposals of all levels suppressed together"),
    _m("rpn_sigmoid", "mask", PROPOSALS, "objectness as probability"),
    _m("roi_align_unaligned", "mask", POOLER, "ROIAlign without the half pixel"),
    _m("roi_align_2x2", "mask", POOLER, "always 2x2 samples per bin"),
    _m("roi_level_shifted", "mask", POOLER, "boxes pooled from one level too coarse"),
    _m("roi_transposed", "mask", POOLER, "rows and columns of pooled regions exchanged"),
    _m("fc_relu_missing", "mask", HEAD, "fully connected layers without ReLU"),
    _m("softmax_twice", "mask", DETECTIONS, "softmax applied twice"),
    _m("box_weights_of_rpn", "mask", DETECTIONS, "box deltas not divided by 10, 10, 5, 5"),
    _m("stale_score_threshold", "mask", DETECTIONS, "score threshold 0.5 left from a demo"),
    _m("class_agnostic_nms", "mask", DETECTIONS, "classes suppress one another"),
    _m("one_detection_less", "mask", DETECTIONS, "one detection too few"),
    _m("class_off_by_one", "mask", DETECTIONS, "classes counted from one"),
    _m("scale_xy_swapped", "mask", _INSTANCES, "scales of x and y exchanged on the way to the picture"),
    _m("mask_of_next_class", "mask", f"{DETECTIONS}/pred_masks", "mask channel of another class"),
    _m("mask_deconv_flipped", "mask", _MASK_HEAD, "transposed convolution with a flipped kernel"),
    _m("mask_threshold_0.6", "mask", _MASKS, "masks cut at another probability"),
    _m("mask_paste_shifted", "mask", _MASKS, "mask cells sampled half a cell off"),
    _m("heatmap_align_corners", "keypoint", _HEATMAPS, "heat maps enlarged with aligned corners"),
    _m("keypoint_no_half", "keypoint", _KEYPOINTS, "keypoints at cell corners instead of centres"),
    _m("keypoint_bicubic_half", "keypoint", _KEYPOINTS, "bicubic filter with a = -0.5"),
    _m("sem_seg_align_corners", "panoptic", _SEM_SEG, "logits enlarged with aligned corners"),
    _m("group_norm_16", "panoptic", _SEM_SEG, "16 instead of 32 groups"),
    _m("group_norm_eps", "panoptic", _SEM_SEG, "group norm with Keras' epsilon"),
    _m("panoptic_overlap", "panoptic", "output/panoptic_seg", "instances dropped at any overlap"),
    _m("stuff_limit", "panoptic", "output/panoptic_seg", "no smallest area for stuff"),
    _m("retina_octaves", "retinanet", _INSTANCES, "three equal anchor sizes per level"),
    _m("retina_softmax", "retinanet", _INSTANCES, "softmax over classes instead of sigmoid"),
    _m("p7_without_relu", "retinanet", f"{P}7", "p7 from p6 without the ReLU between"),
    _m("square_pad_ignored", "vitdet", INPUT, "input padded to no square"),
    _m(
        "class_token_last",
        "vitdet",
        f"{_NET}.positions",
        "the last absolute position dropped instead of the first",
    ),
    _m("class_token_kept", "vitdet", f"{_NET}.positions", "absolute positions with that of the class token"),
    _m("positions_transposed", "vitdet", f"{_NET}.positions", "grid of absolute positions transposed"),
    _m("positions_bicubic_half", "vitdet", f"{_NET}.positions", "absolute positions resized with a = -0.5"),
    _m("layer_norm_eps_1e-5", "vitdet", f"{_BLOCK}.norm1", "layer norm with epsilon 1e-5 instead of 1e-6"),
    _m("windows_by_columns", "vitdet", f"{_BLOCK}.windows", "windows counted column by column"),
    _m("windows_joined_by_columns", "vitdet", f"{_BLOCK}.attended", "windows put together column by column"),
    _m("relative_positions_reversed", "vitdet", f"{_BLOCK}.attn.rel_h", "key minus query"),
    _m("rows_for_columns", "vitdet", f"{_BLOCK}.attn.rel_h", "tables of rows and columns exchanged"),
    _m("relative_term_scaled", "vitdet", f"{_BLOCK}.attn", "relative term made of the scaled queries"),
    _m("padding_masked", "vitdet", f"{_BLOCK}.attn", "what fills the last windows masked out of the softmax"),
    _m("qkv_bias_dropped", "vitdet", f"{_BLOCK}.attn", "queries, keys and values without bias"),
    _m("heads_before_qkv", "vitdet", f"{_BLOCK}.attn", "qkv split by head first"),
    _m("gelu_tanh", "vitdet", _BLOCK, "GELU with tanh"),
    _m(
        "pyramid_without_gelu",
        "vitdet",
        f"{P}2",
        "no GELU between the transposed convolutions of the finest level",
    ),
    _m(
        "relative_positions_nearest",
        "mvit",
        _RESIZED,
        "nearest instead of linear resizing of relative positions",
    ),
    _m("relative_positions_aligned", "mvit", _RESIZED, "relative positions resized with aligned corners"),
    _m("query_not_scaled", "mvit", f"{BLOCKS}.0.attn", "logits not divided by the root of the heads' width"),
    _m("residual_pooling_missing", "mvit", f"{BLOCKS}.0.attn", "pooled queries not added"),
    _m("pooled_values_not_normed", "mvit", f"{BLOCKS}.0.attn.norm_v", "values pooled without their norm"),
    _m(
        "shortcut_from_raw",
        "mvit",
        f"{BLOCKS}.1.attended",
        "shortcut projected from the tokens before the norm",
    ),
    _m("shortcut_zero_padding", "mvit", f"{BLOCKS}.1.attended", "pooling of the shortcut padded with zeros"),
    _m("shift_without_mask", "swin", f"{_LAYER}.blocks.1.attn", "shifted windows without their mask"),
    _m("mask_of_unshifted_labels", "swin", f"{_LAYER}.mask", "labels of the mask cut at the windows only"),
    _m("shift_missing", "swin", f"{_LAYER}.blocks.1.windows", "windows not shifted"),
    _m("shift_not_undone", "swin", f"{_LAYER}.blocks.1.attended", "map not rolled back after the attention"),
    _m("offsets_reversed", "swin", f"{_LAYER}.blocks.0.attn", "bias of key minus query"),
    _m("merge_by_rows", "swin", f"{_LAYER}.downsample", "2x2 cells merged row by row"),
    _m("tower_norm_missing", "fcos", "steps/head.bbox_subnet", "tower without its first group norm"),
    _m("centerness_not_in_score", "fcos", _INSTANCES, "score without the centerness"),
    _m("score_without_root", "fcos", _INSTANCES, "product of class and centerness without its root"),
    _m("distances_in_pixels", "fcos", _INSTANCES, "distances not multiplied by the stride"),
    _m("distances_not_rectified", "fcos", _INSTANCES, "negative distances kept"),
    _m("locations_at_corners", "fcos", _INSTANCES, "locations at the corners of cells"),
    # Models with Detectron's conventions, each difference from detectron2 left out.
    _m("older_resize_as_detectron2", "detectron", RESIZED, "Detectron: picture resized as detectron2 does"),
    _m("older_resize_by_sides", "detectron", RESIZED, "Detectron: resized to sides instead of by the factor"),
    _m("older_norm_epsilon", "detectron", STEM, "Detectron: its frozen norms with an epsilon"),
    _m("older_anchors_not_rounded", "detectron", PROPOSALS, "Detectron: detectron2's anchors"),
    _m("older_decode_without_one", "detectron", PROPOSALS, "Detectron: decoding without + 1"),
    _m("older_clip_to_sides", "detectron", PROPOSALS, "Detectron: clipping to the sides, not the last pixel"),
    _m(
        "older_clip_to_unpadded", "detectron", PROPOSALS, "Detectron: proposals clipped to the unpadded input"
    ),
    _m(
        "older_nms_as_detectron2",
        "detectron",
        PROPOSALS,
        "Detectron: NMS without + 1, over all levels at once",
    ),
    _m("older_levels_without_one", "detectron", POOLER, "Detectron: level of a box by sides without + 1"),
    _m("older_half_pixel", "detectron", POOLER, "Detectron: regions pooled with the half pixel"),
    _m("older_boxes_decoded_in_network", "detectron", DETECTIONS, "Detectron: boxes decoded at network size"),
    _m("older_boxes_rescaled", "detectron", _INSTANCES, "Detectron: boxes of the picture scaled once more"),
    _m("older_masks_sampled", "detectron", _MASKS, "Detectron: masks pasted as detectron2 does"),
    _m(
        "older_heat_maps_with_edges",
        "detectron_keypoint",
        _HEATMAPS,
        "Detectron: maps doubled with repeated edges",
    ),
    _m(
        "older_keypoint_score_of_low_map",
        "detectron_keypoint",
        _KEYPOINTS,
        "Detectron: detectron2's keypoint score",
    ),
    _m(
        "older_octaves_inside", "detectron_retinanet", _INSTANCES, "Detectron: ratios outside, octaves inside"
    ),
    _m(
        "older_coarsest_threshold",
        "detectron_retinanet",
        _INSTANCES,
        "Detectron: threshold on the coarsest level",
    ),
    _m("older_clip_after_nms", "detectron_retinanet", _INSTANCES, "Detectron: boxes clipped after NMS only"),
    _m("point_grid_at_corners", "point_rend", LOOK, "grid of a box at the corners of its cells"),
    _m("points_align_corners", "point_rend", LOOK, "features sampled with aligned corners"),
    _m("points_beside_the_box", "point_rend", LOOK, "boxes one pixel wider where points are sampled"),
    _m("coarse_before_fine", "point_rend", _POINTS, "coarse logits before the features in the point head"),
    _m("point_relu_missing", "point_rend", _POINTS, "first layer of the point head without ReLU"),
    _m("surest_points_refined", "point_rend", _REFINED, "the surest points refined"),
    _m("refined_points_yx", "point_rend", _REFINED, "coordinates of refined points as y, x"),
    _m(
        "refined_points_put_back_by_columns",
        "point_rend",
        _REFINED,
        "refined points put back column by column",
    ),
    _m(
        "mask_enlarged_by_nearest", "point_rend", _REFINED, "nearest instead of linear doubling between steps"
    ),
    _m("refined_mask_of_next_class", "point_rend", _REFINED, "points of another class refined"),
    _m(
        "semantic_points_by_best",
        "point_rend_semantic",
        f"{_SEM_HEAD}/0",
        "points of the lowest logits refined",
    ),
    _m(
        "semantic_points_without_fine",
        "point_rend_semantic",
        f"{_SEM_HEAD}/0",
        "points without fine features",
    ),
    _m("densepose_decoder_average", "densepose", f"{ROI}.decoder", "levels averaged instead of summed"),
    _m("densepose_pooler_aligned", "densepose", f"{ROI}.densepose_pooler", "ROIAlign with the half pixel"),
    _m("densepose_aspp_relu_missing", "densepose", f"{ROI}.densepose_head", "ASPP's projection without ReLU"),
    _m("densepose_align_corners", "densepose", DENSEPOSE, "maps enlarged with aligned corners"),
    _m("confidence_without_epsilon", "densepose", DENSEPOSE, "confidence of segmentation without its least"),
    _m("segmentation_without_confidence", "densepose", DENSEPOSE, "segmentation not weighted by confidence"),
    _m("embedding_normalised", "cse", DENSEPOSE, "embeddings of length one"),
    _m("multi_grid_missing", "deeplab", "steps/backbone/res5", "every block of res5 dilated as the first"),
    _m("aspp_pools_the_largest", "deeplab", f"{_SEM_HEAD}.decoder.res5", "maximum instead of mean in ASPP"),
    _m("aspp_branches_reversed", "deeplab", f"{_SEM_HEAD}.decoder.res5", "dilated branches in reverse order"),
    _m(
        "decoder_joined_in_reverse",
        "deeplab",
        f"{_SEM_HEAD}.decoder.res2.fuse",
        "coarse feature before the fine",
    ),
    _m("decoder_align_corners", "deeplab", f"{_SEM_HEAD}.decoder.res2.fuse", "decoder with aligned corners"),
    _m("deeplab_logits_nearest", "deeplab", f"{_SEM_HEAD}/0", "logits enlarged to the nearest"),
    _m(
        "offsets_of_the_small_map",
        "panoptic_deeplab",
        "steps/ins_embed_head/1",
        "offsets not times the stride",
    ),
    _m("offsets_xy", "panoptic_deeplab", PANOPTIC, "offsets as x, y"),
    _m("center_nms_missing", "panoptic_deeplab", PANOPTIC, "every point above the threshold a centre"),
    _m("small_stuff_kept", "panoptic_deeplab", PANOPTIC, "no smallest area for stuff"),
    _m("instances_from_zero", "panoptic_deeplab", PANOPTIC, "instances of a class counted from zero"),
    _m("score_without_center", "panoptic_deeplab", _INSTANCES, "score without the heat at the centre"),
    _m("first_branch", "trident", "steps/backbone/res4", "dilation of the first branch"),
    _m("pyramid_summed", "tensor_mask", P, "pyramid levels summed instead of averaged"),
    _m(
        "finest_not_doubled",
        "tensor_mask",
        "steps/head.mask_fuse",
        "finest mask features not added to themselves",
    ),
    _m(
        "windows_beyond_the_map_zero",
        "tensor_mask",
        "steps/head/2",
        "zero beyond map and window instead of -6",
    ),
    _m("windows_half_a_cell_off", "tensor_mask", "steps/head/2", "cells of windows without the half cell"),
    _m("tensor_mask_anchors_offset", "tensor_mask", _INSTANCES, "anchors shifted by half a stride"),
    _m("masks_over_boxes", "tensor_mask", _MASKS, "masks pasted over the boxes, not the anchors"),
    _m("anchors_clipped", "tensor_mask", _MASKS, "anchors of masks clipped to the picture"),
    _m("norm_eps_1.001e-5", "semantic", STEM, "batch norm with epsilon 1.001e-5 instead of 1e-5"),
    _m("bias_off_1e-6", "semantic", P, "one lateral convolution's bias added as 1.000001 of itself"),
    _m("nms_at_threshold", "ops", "nms", "NMS drops boxes exactly at the threshold"),
    _m("level_epsilon", "ops", "assign_levels", "level of a box without the rounding that torch has"),
    _m("clamp_missing", "ops", "apply_deltas", "box growth not limited"),
    _m("max_pool_zero_padding", "ops", "max_pool2d", "pooling padded with zeros"),
    _m("paste_strict_threshold", "ops", "paste_masks", "mask pixels exactly at the threshold left out"),
)

BY_NAME = {m.name: m for m in MUTATIONS}
