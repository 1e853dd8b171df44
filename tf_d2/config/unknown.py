"""Keys that detectron2's configuration does not have: which of them can be left out, and which may not.

Half of the YAML files in the wild have some: sections of the user's own (``cfg.set_new_allowed``), what a project's
``add_*_config`` put there, keys of a fork. What cannot touch inference is left out and said in one line. What may
change the network, and what looks like a misspelt key, is an error that names all of them at once.

The names of projects, sections and components are facts of detectron2's ``projects/`` and of public repositories.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tf_d2.config.defaults import IGNORED_SECTIONS, KEYS, PROJECTS, SECTIONS, Flat
from tf_d2.config.errors import ConfigError, ConfigNotice, UnknownKeys
from tf_d2.config.misspelt import misspelt

_META, _BACKBONE = "MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME"
_PROPOSALS, _ROI_HEADS = "MODEL.PROPOSAL_GENERATOR.NAME", "MODEL.ROI_HEADS.NAME"
_MASK_HEAD, _SEM_SEG_HEAD = "MODEL.ROI_MASK_HEAD.NAME", "MODEL.SEM_SEG_HEAD.NAME"
_KEYPOINT_HEAD = "MODEL.ROI_KEYPOINT_HEAD.NAME"

# What detectron2 itself registers under each of these keys. Their code reads detectron2's own keys and no others.
_OWN: dict[str, tuple[str, ...]] = {
    _META: ("GeneralizedRCNN", "ProposalNetwork", "RetinaNet", "FCOS", "SemanticSegmentor", "PanopticFPN"),
    _BACKBONE: (
        "build_resnet_backbone",
        "build_resnet_fpn_backbone",
        "build_retinanet_resnet_fpn_backbone",
        "build_regnet_backbone",
        "build_regnet_fpn_backbone",
    ),
    _PROPOSALS: ("RPN", "RRPN", "PrecomputedProposals"),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator", "RotatedAnchorGenerator"),
    _ROI_HEADS: ("Res5ROIHeads", "StandardROIHeads", "CascadeROIHeads", "RROIHeads"),
    "MODEL.ROI_BOX_HEAD.NAME": ("", "FastRCNNConvFCHead"),
    _MASK_HEAD: ("MaskRCNNConvUpsampleHead",),
    _KEYPOINT_HEAD: ("KRCNNConvDeconvUpsampleHead",),
    _SEM_SEG_HEAD: ("SemSegFPNHead",),
}
_ONE_STAGE = ("RetinaNet", "FCOS", "SemanticSegmentor", "ProposalNetwork")
_DETECTOR = (_META, _PROPOSALS, _ROI_HEADS, "MODEL.RPN.HEAD_NAME", "MODEL.ROI_BOX_HEAD.NAME", _MASK_HEAD)

# Sections and keys (the name or anything below it) that only a component of these kinds reads. One that is not
# named here, under MODEL, may be read by a modified copy of detectron2's own code.
_BACKBONES = """BIFPN DLA VOVNET VOVNET2 MOBILENET MNET SWIN SWINT SWIN_TRANSFORMER SWINV2 VIT VITDET VITAE MVIT MVITV2
PVT PVTV2 CONVNEXT CONVNEXTV2 EFFICIENTNET EFFNET RESNEST RES2NET HRNET FBNET FBNET_V2 SHUFFLENET GHOSTNET
DENSENET SENET DARKNET CSPDARKNET REGNET REPVGG TIMM XCIT COAT CVT FOCAL FOCALNET DAVIT INTERNIMAGE EVA
EVA02 BEIT DEIT MAE DINAT NAT DIT UNIFORMER POOLFORMER VAN SPINENET TRIDENT D2SWIN VGG INCEPTION XCEPTION
SQUEEZENET HOURGLASS CLIP DINOV2 MIXFORMER KMEANS_ANCHORS""".split()
_DETECTORS = """FCOS BASIS_MODULE BLENDMASK BATEXT MEINST CONDINST SOLOV2 SOLO EMBEDMASK TOP_MODULE CENTERNET CENTERNET2
MASK_FORMER MASKFORMER DETR DEFORMABLE_DETR SPARSERCNN SPARSE_RCNN SPARSE_INST QUERYINST ONENET YOLOF YOLO
YOLOX YOLOV5 YOLOV7 POINT_HEAD IMPLICIT_POINTREND TENSOR_MASK PANOPTIC_DEEPLAB INS_EMBED_HEAD
ROI_DENSEPOSE_HEAD DENSEPOSE_ON ROI_ATTRIBUTE_HEAD ONE_FORMER MASKDINO MASK_DINO DINO KMAX_DEEPLAB
PANOPTICFCN PANOPTIC_FCN POSITION_HEAD KERNEL_HEAD FEATURE_ENCODER DIFFUSIONDET DIFFUSION_DET SAM OPENSEED
FASTINST CLIP_ADAPTER ATSS GFL AUTOASSIGN BOXINST DTMRINST FCPOSE FCPOSE_ON PERSON_ID REID TRACKING VT_FPN""".split()
_READ_BY: dict[str, tuple[str, ...]] = {
    **{f"MODEL.{name}": (_BACKBONE,) for name in _BACKBONES},
    **{f"MODEL.{name}": _DETECTOR for name in _DETECTORS},
    "MODEL.POINT_HEAD": (_MASK_HEAD, _SEM_SEG_HEAD, _META),
    "MODEL.BACKBONE.ANTI_ALIAS": (_BACKBONE,),
    "MODEL.RESNETS.STEM_TYPE": (_BACKBONE,),
    "MODEL.RESNETS.RES4_DILATION": (_BACKBONE,),
    "MODEL.RESNETS.RES5_MULTI_GRID": (_BACKBONE,),
    **{
        f"MODEL.ROI_MASK_HEAD.{name}": (_MASK_HEAD,)
        for name in ("OUTPUT_SIDE_RESOLUTION", "IN_FEATURES", "FC_DIM", "NUM_FC", "POINT_HEAD_ON")
    },
    **{
        f"MODEL.SEM_SEG_HEAD.{name}": (_SEM_SEG_HEAD, _META)
        for name in (
            *("ASPP_CHANNELS", "ASPP_DILATIONS", "ASPP_DROPOUT", "PROJECT_FEATURES", "PROJECT_CHANNELS"),
            *("USE_DEPTHWISE_SEPARABLE_CONV", "HEAD_CHANNELS", "LOSS_TYPE", "LOSS_TOP_K", "MASK_DIM"),
            *("PIXEL_DECODER_NAME", "TRANSFORMER_ENC_LAYERS"),
        )
    },
}
# Keys of forks at the value at which the fork does what detectron2 does; a key of detectron2 that only training reads.
_INERT: Flat = {
    "MODEL.RESNETS.DEFORM_INTERVAL": 1,
    "MODEL.ROI_HEADS.OUTPUT_LAYER": "FastRCNNOutputLayers",
    "INPUT.TEST_INPUT_TYPE": "default",
    "MODEL.RESNETS.STRIDE_IN_3X3": None,
}
_NEEDS: dict[str, str] = {  # read only where the other key has another value than the one in _INERT
    "MODEL.ROI_HEADS.COSINE_SCALE": "MODEL.ROI_HEADS.OUTPUT_LAYER",
    "INPUT.TEST_SIZE": "INPUT.TEST_INPUT_TYPE",
}

_TRAINING = frozenset(
    """LOSS LOSSES FREEZE FREEZED FREEZING FROZEN UNFREEZE TRAIN TRAINING TRAINER TRAINABLE PRETRAIN PRETRAINED
OPTIMIZER OPTIM GRAD GRADIENT LR DROPOUT DISTILL DISTILLATION DISTILLER MATCHER CHECKPOINT WARMUP VIS LOG
LOGGING DEBUG SEED DEVICE DEVICES EMA WANDB TENSORBOARD GPU GPUS DDP SUPERVISION UNSUP SEMISUP EVALUATION
EVALUATOR""".split()
)
_TRAINING_PHRASES = re.compile(
    r"(^|[._])(DROP_PATH|DROP_RATE|LABEL_SMOOTH\w*|WEIGHT_DECAY|BATCH_SIZE\w*|POSITIVE_FRACTION|IOU_THRESHOLDS|IOU_LABELS|"
    r"(FG|BG)_IOU_THRESH\w*|STRADDLE_THRESH|CAT_FREQ_PATH|FIND_UNUSED_PARAM\w*|NO_OBJECT_WEIGHT|PRIOR_PROB|FED_LOSS\w*)([._]|$)"
)
_AUGMENTATION = frozenset(
    """CROP FLIP HFLIP VFLIP AUG AUGS AUGMENT AUGMENTATION AUGMENTATIONS JITTER ROTATION ROTATE IS_ROTATE COLOR
COLOUR BRIGHTNESS CONTRAST SATURATION HUE LIGHTING BLUR GAUSSIAN NOISE CUTOUT ERASING MOSAIC MIXUP CUTMIX
LSJ PASTE RANDOM SAMPLE SAMPLING MAPPER DATASET CROWD STUFF INSTANCE POINT HEATMAP MASK_FORMAT MULTISCALE
STRONG WEAK UNLABEL""".split()
)
_LARGE_SCALE_JITTER = ("INPUT.MASK_FORMAT", "INPUT.IMAGE_SIZE", "INPUT.MIN_SCALE", "INPUT.MAX_SCALE")
_AT_TEST = frozenset("TEST INFER INFERENCE VAL EVAL POSTPROCESS NMS".split())
_EVALUATION = frozenset(
    """EVAL EVALUATE EVALUATOR EVALUATORS EVALUATION METRIC METRICS PERIOD SAVE VIS VISUALIZE OUTPUT AUG PRECISE
AP MAP RECALL COMPUTE LOG RESULTS RESULT EXPECTED DATASET DATASETS VAL LOSS IMS BATCH WORKERS""".split()
)
# A part of the network that is there unless a key says otherwise: switching it off is no inert default.
_PIECES = frozenset(
    """BIAS NMS NORM NORMALIZE BN GN RELU ACT ACTIVATION FPN RPN SHORTCUT RESIDUAL MASK BOX BG BACKGROUND SIGMOID
SOFTMAX CLIP RESIZE PAD PADDING POOL POOLER ANCHOR ANCHORS TEST ALIGNED""".split()
)
_PRESENT = ("ENABLED", "ENABLE", "ON", "USE", "ACTIVE", "IS_ON")


@dataclass(frozen=True)
class _Verdict:
    """What becomes of one unknown key: ``kind`` is "ignored", "typo" or "refused"."""

    key: str
    kind: str
    why: str


def leave_out(unknown: Flat, merged: Flat, ignore: Sequence[str], source: str) -> None:
    """Say which of the unknown keys are left out, or refuse them all at once.

    Args:
        unknown: key -> value as written, of the keys detectron2 does not have.
        merged: all of detectron2's keys with their values.
        ignore: keys, sections or patterns (``MODEL.MY_*``) that the user says do not matter.
        source: the file, for the message.

    Raises:
        UnknownKeys: naming every key that may change the network or looks misspelt, and what can be done.
    """
    _check_ignore(ignore)
    verdicts = [_classify(key, value, unknown, merged, ignore) for key, value in unknown.items()]
    bad = [v for v in verdicts if v.kind != "ignored"]
    if bad:
        listing, advice = _refusal(bad, source)
        raise UnknownKeys(listing, advice, merged)
    if verdicts:
        warnings.warn(_said(verdicts, source), ConfigNotice, stacklevel=2)


def is_ignored(key: str, ignore: Iterable[str]) -> bool:
    """Whether one of the keys, sections or patterns in ``ignore`` covers ``key``."""
    return any(key == p or key.startswith(p.rstrip(".*") + ".") or fnmatchcase(key, p) for p in ignore)


def _check_ignore(ignore: Sequence[str]) -> None:
    if isinstance(ignore, str):
        raise ConfigError(f"ignore_keys is a list of keys, not the text {ignore!r}")
    for pattern in ignore:
        if pattern in KEYS or pattern in SECTIONS or not pattern.strip("*. "):
            raise ConfigError(
                f"--ignore-keys {pattern}: is for keys that detectron2 does not have; to change a value of one that it "
                f"has, use --opts"
            )


def _classify(key: str, value: Any, unknown: Flat, merged: Flat, ignore: Sequence[str]) -> _Verdict:
    if is_ignored(key, ignore):
        return _Verdict(key, "ignored", "--ignore-keys")
    top = key.partition(".")[0]
    if key.startswith(IGNORED_SECTIONS):
        return _Verdict(key, "ignored", "training")
    meant = misspelt(key)
    if meant:
        return _Verdict(key, "typo", f"did you mean {' or '.join(meant)}?")
    if top == "MODEL":
        why = _why_model(key, value, unknown, merged)
    elif top == "INPUT":
        why = _why_input(key, value, unknown)
    elif top == "TEST":
        why = _why_test(key, value)
    else:
        why = {"DATASETS": "data sets", "GLOBAL": "training"}.get(top, "not of detectron2's sections")
    return _Verdict(key, "ignored", why) if why else _Verdict(key, "refused", _suspicion(key))


def _words(text: str) -> set[str]:
    return set(re.split(r"[._]", text.upper()))


def _own_words(key: str) -> set[str]:
    """The words of the part of ``key`` that detectron2 does not have."""
    parts = key.split(".")
    start = 1
    while ".".join(parts[: start + 1]) in SECTIONS:
        start += 1
    return _words(".".join(parts[start:]))


def _is_inert(key: str, value: Any, unknown: Flat) -> bool:
    """Whether the value is the one at which nothing changes."""
    if key in _INERT:
        return value == _INERT[key]
    if key in _NEEDS:
        other = _NEEDS[key]
        return unknown.get(other, _INERT[other]) == _INERT[other]
    return (value is False or value in (None, "", [], ())) and not _own_words(key) & _PIECES


def _is_off(key: str, unknown: Flat) -> bool:
    """Whether a new section that holds the key says ``ENABLED: false``."""
    parts = key.split(".")
    for end in range(len(parts) - 1, 1, -1):
        section = ".".join(parts[:end])
        if section in SECTIONS:
            return False
        if any(unknown.get(f"{section}.{name}") is False for name in _PRESENT):
            return True
    return False


def _why_model(key: str, value: Any, unknown: Flat, merged: Flat) -> str:
    """Why a key below MODEL cannot touch inference; "" if it may."""
    words = _own_words(key)
    if (words & _TRAINING or _TRAINING_PHRASES.search(key)) and not words & {"TEST", "INFERENCE"}:
        return "training"
    name = key.upper() + "."
    readers = next((who for start, who in _READ_BY.items() if name.startswith(start + ".")), None)
    if readers is not None and not _foreign(merged) & set(readers):
        return "nothing in this model reads it"
    if _is_inert(key, value, unknown) or _is_off(key, unknown):
        return "switched off"
    return ""


def _foreign(merged: Flat) -> set[str]:
    """The keys that name a component which is not detectron2's own, as far as the model has that component."""
    meta = merged.get(_META)
    unused: set[str] = set()
    if meta in _ONE_STAGE:
        unused |= {_ROI_HEADS, "MODEL.ROI_BOX_HEAD.NAME", _MASK_HEAD, _KEYPOINT_HEAD}
    if not merged.get("MODEL.MASK_ON"):
        unused.add(_MASK_HEAD)
    if not merged.get("MODEL.KEYPOINT_ON"):
        unused.add(_KEYPOINT_HEAD)
    if meta in _OWN[_META] and meta not in ("SemanticSegmentor", "PanopticFPN"):
        unused.add(_SEM_SEG_HEAD)
    if meta in ("RetinaNet", "FCOS", "SemanticSegmentor"):
        unused |= {_PROPOSALS, "MODEL.RPN.HEAD_NAME"}
    return {key for key, own in _OWN.items() if merged.get(key) not in own and key not in unused}


def _why_input(key: str, value: Any, unknown: Flat) -> str:
    words = _words(key.partition(".")[2])
    if not words & _AT_TEST and (words & (_TRAINING | _AUGMENTATION) or key.endswith(_LARGE_SCALE_JITTER)):
        return "augmentation"
    return "switched off" if _is_inert(key, value, unknown) else ""


def _why_test(key: str, value: Any) -> str:
    words = _words(key.partition(".")[2])
    if words & _EVALUATION and not words & {"NMS", "SCORE", "DETECTIONS"}:
        return "evaluation"
    return "switched off" if value is False and not words & (_PIECES - {"TEST"}) else ""


def _suspicion(key: str) -> str:
    if key == "MODEL.BACKBONE.CONV_BODY":
        return "is a key of maskrcnn-benchmark, so this is a configuration of that project, not of detectron2"
    if key in ("MODEL.CONV_BODY", "MODEL.TYPE"):
        return "is a key of Detectron 1, so this is a configuration of that project, not of detectron2"
    project = next(
        (name for start, name in PROJECTS.items() if key == start or key.startswith(start + ".")), None
    )
    if project:
        return f"belongs to {project} and may change the network"
    leaf = key.rpartition(".")[2]
    if leaf in ("NAME", "NORM", "ENABLED", "TYPE", "DEPTH"):
        leaf = ""
    same = [known for known in KEYS if known.rpartition(".")[2] == leaf][:3]
    hint = f" (did you mean {' or '.join(same)}?)" if same else ""
    return f"is not a key of detectron2{hint} and may change the network"


def _section(key: str) -> str:
    """The new section that holds the key, or the key itself where only its last part is new."""
    parts = key.split(".")
    end = 1
    while end < len(parts) and ".".join(parts[:end]) in SECTIONS:
        end += 1
    return ".".join(parts[:end])


def _grouped(keys: Iterable[str]) -> dict[str, list[str]]:
    """What to call the keys -> the keys: those of one new section together, as ``SECTION.*``."""
    sections: dict[str, list[str]] = {}
    for key in keys:
        sections.setdefault(_section(key), []).append(key)
    return {keys[0] if len(keys) == 1 else f"{section}.*": keys for section, keys in sections.items()}


def _said(verdicts: Sequence[_Verdict], source: str) -> str:
    reasons: dict[str, list[str]] = {}
    for verdict in verdicts:
        reasons.setdefault(verdict.why, []).append(verdict.key)
    parts = [f"{', '.join(_grouped(keys))} ({why})" for why, keys in reasons.items()]
    return f"{source}: unknown keys that cannot touch inference are ignored: {'; '.join(parts)}"


def _refusal(bad: Sequence[_Verdict], source: str) -> tuple[str, str]:
    """Which keys are refused and why, and what one who knows better can do."""
    lines = [f"{v.key} is not a key of detectron2 ({v.why})" for v in bad if v.kind == "typo"]
    groups = _grouped(v.key for v in bad if v.kind == "refused")
    for name, keys in groups.items():
        count = f" ({len(keys)} keys)" if len(keys) > 1 else ""
        lines.append(f"{name}{count} {_suspicion(name.removesuffix('.*'))}")
    text = f"{source}: " + (lines[0] if len(lines) == 1 else "unknown keys:\n  " + "\n  ".join(lines))
    if not groups:
        return text, ""
    return text, (
        "\nWhere you know that they change nothing at inference, leave them out: "
        f"--ignore-keys {' '.join(groups)} (in Python ignore_keys=[...])"
    )
