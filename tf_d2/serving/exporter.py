"""``export``: a configuration and a checkpoint -> a folder that a stock TensorFlow Serving loads."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_d2.config import ModelConfig
from tf_d2.export_folder import check_target
from tf_d2.loading import load_model, model_yaml, resolve_model
from tf_d2.ops.resize import MAX_CHANNELS_UINT8
from tf_d2.serving import artifacts, fitting, warmup
from tf_d2.serving.graph import GraphOptions, Requests, core_function, core_specs
from tf_d2.serving.saved_model import ExportError, check_ops, traced
from tf_d2.serving_contract import OPTION_NAMES, ExportOptions, Masks, SemSeg, takes_files

# Decoded pixels of one image (uint8 RGB: 150 MB) and the memory that maps of one image may take.
_DEFAULT_MAX_IMAGE_PIXELS = 50_000_000
_MAP_BUDGET_BYTES = 2 * 2**30


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it behaves on this machine. Times in seconds, sizes in bytes."""

    path: Path  # the folder of the version
    name: str
    version: int
    size: int
    load_seconds: float
    first_request_seconds: float
    second_request_seconds: float
    ops: tuple[str, ...]
    max_detections: int
    max_image_pixels: int
    precision: str = "float32"


def export(
    config: str | Path,
    weights: str | Path | None,
    output: str | Path,
    *,
    version: int = 1,
    name: str | None = None,
    overwrite: bool = False,
    opts: Sequence[Any] = (),
    ema: bool = False,
    allow_nonfinite: bool = False,
    ignore_keys: Sequence[str] = (),
    ignore_tensors: Sequence[str] = (),
    prefix: str | None = None,
    **options: Any,
) -> ExportReport:
    """Write ``output/<version>/`` (a SavedModel) and, beside it, what a server needs. Whole or not at all.

    Args:
        config, weights, opts, ema, allow_nonfinite, ignore_keys, ignore_tensors, prefix: as for
            :func:`tf_d2.load_model`.
        output: folder of the model; further versions may be exported into it.
        version: a positive integer that ``output`` does not have yet.
        name: the model's name on the server; default: the name of the folder.
        overwrite: replace the version that is there, and write beside files that are none of an export.
        options: those of :class:`tf_d2.serving_contract.ExportOptions` by name: ``masks="png"``, ``max_detections=50``.

    Raises:
        ExportError: options that do not fit the model, or an output that is there already.
        TypeError: an option that does not exist.
        tf_d2.config.ConfigError, weights.WeightsError: as for :func:`tf_d2.load_model`.
    """
    output = Path(output).absolute()
    name = output.name if name is None else name
    try:
        check_target(output, version, name, overwrite)
    except ValueError as error:
        raise ExportError(str(error)) from None
    parsed, weights_file = resolve_model(config, weights, opts, ignore_keys)
    channels = len(parsed.input.pixel_mean)
    if channels > MAX_CHANNELS_UINT8 and parsed.input.min_size_test:
        raise ExportError(
            f"this model takes pictures of {channels} channels (MODEL.PIXEL_MEAN), and Pillow, which detectron2 "
            f"resizes uint8 pictures with, has none of more than {MAX_CHANNELS_UINT8}: set INPUT.MIN_SIZE_TEST 0 "
            "(--opts) and send pictures at network size, or use tf_d2.Predictor with float32 pictures"
        )
    chosen = _options(parsed, options)
    samples = fitting.sample_sizes(parsed, warmup.BUCKETS)
    if not samples:
        raise ExportError(
            "no picture of a usual shape fits the pooling of this model (INPUT.CROP.SIZE) once it is resized to "
            "INPUT.MIN_SIZE_TEST: set the size that the model was tested with, or INPUT.CROP.ENABLED False to average "
            "over all of a picture, which is another result"
        )
    scratch = _scratch_beside(output)
    try:
        model = load_model(
            config,
            weights,
            dtype=chosen.precision,
            opts=opts,
            ema=ema,
            allow_nonfinite=allow_nonfinite,
            ignore_keys=ignore_keys,
            ignore_tensors=ignore_tensors,
            prefix=prefix,
        )
        model.fold_norms(release=True)
        folder = scratch / str(version)
        _save(folder, parsed, chosen, model)
        ops = check_ops(folder / "saved_model.pb")
        warmup.write_warmup(folder, warmup.warmup_requests(name, parsed.needs_proposals, samples, channels))
        source = {
            "config": model_yaml(config, opts, ignore_keys),
            "weights_name": weights_file.name,
            "weights_sha256": _sha256(weights_file),
            "precision": chosen.precision,
        }
        artifacts.write_assets(folder, parsed, source, asdict(chosen))
        load, first, second = measure(folder, parsed.needs_proposals, samples[0], channels)
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        report = ExportReport(
            output / str(version),
            name,
            version,
            size,
            load,
            first,
            second,
            tuple(sorted(ops)),
            chosen.max_detections,
            chosen.max_image_pixels,
            chosen.precision,
        )
        artifacts.write_server_files(scratch, folder, parsed, chosen, report)
        _publish(scratch, output, version)
    except tf.errors.ResourceExhaustedError as error:  # what TensorFlow makes of a full disk
        raise ExportError(f"cannot write {output}: {error.message}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report


def _scratch_beside(output: Path) -> Path:
    """A hidden folder on the same disk, so that a finished export moves into place at once."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_dir() and not os.access(output, os.W_OK):
            raise PermissionError(None, "Permission denied")
        return Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise ExportError(f"cannot write {output}: {error.strerror}; choose another output") from error


# === Checks ===


def _options(config: ModelConfig, given: Mapping[str, Any]) -> GraphOptions:
    """The options that were given, checked and completed for a model."""
    unknown = sorted(set(given) - set(OPTION_NAMES))
    if unknown:
        raise TypeError(f"export has no option {unknown[0]!r}; options are {', '.join(OPTION_NAMES)}")
    try:
        options = ExportOptions(**given)
    except ValueError as error:
        raise ExportError(str(error)) from None
    if options.masks == "roi" and hasattr(config.model, "largest_mask"):
        options = replace(options, masks="png")  # 92 MB of probabilities per image would be of no use
    for name, asked, there, what in (
        ("masks", options.masks in ("full", "png"), _has_masks(config), "masks"),
        ("sem_seg", options.sem_seg == "logits", config.sem_seg_head, "semantic segmentation"),
        ("box_format", options.box_format == "tf", config.detector, "detections"),
    ):
        if asked and not there:
            value = getattr(options, name)
            raise ExportError(f"{name}={value!r}: the model has no {what}; leave the option out")
    if options.masks == "roi" and config.mask_threshold != 0.5:
        raise ExportError(
            f"masks='roi': clients compare with 0.5, and this model has the mask threshold {config.mask_threshold}; "
            "export masks='full' or 'png'"
        )
    if config.meta_architecture == "SemanticSegmentor" and options.sem_seg == "none":
        raise ExportError("a semantic segmentation model without sem_seg answers nothing")
    rows = detections_per_image(config) if options.max_detections is None else options.max_detections
    if config.meta_architecture == "PanopticDeepLab" and rows < detections_per_image(config):
        raise ExportError(
            "max_detections: instances of this model are in the order of their segments, not by score; set "
            "MODEL.PANOPTIC_DEEPLAB.TOP_K_INSTANCE (one more than the instances wanted) instead"
        )
    if rows < 1 and config.meta_architecture not in ("SemanticSegmentor", "PanopticDeepLab"):
        raise ExportError(f"max_detections must be at least 1, got {rows}; pass max_detections=")
    pixels = options.max_image_pixels
    if pixels is None:
        pixels = _default_max_pixels(config, max(rows, 0), options.masks, options.sem_seg)
    if not 0 < pixels < 2**31:
        raise ExportError(f"max_image_pixels must be between 1 and 2^31, got {pixels}")
    if not 0 < options.step_pixels < 2**31:
        raise ExportError(f"step_pixels must be between 1 and 2^31, got {options.step_pixels}")
    return GraphOptions(**{**asdict(options), "max_detections": rows, "max_image_pixels": pixels})


def _has_masks(config: ModelConfig) -> bool:
    """Whether every detection has a mask of its own."""
    heads = config.roi_heads
    return bool(heads.mask_head) if heads else getattr(config.model, "mask_on", False)


def detections_per_image(config: ModelConfig) -> int:
    """The most rows the configuration lets through; 0 where there is no such limit."""
    if config.meta_architecture == "ProposalNetwork":
        assert config.rpn is not None
        return config.rpn.post_nms_topk
    return max(config.detector.detections_per_image, 0) if config.detector else 0


def _default_max_pixels(config: ModelConfig, rows: int, masks: Masks, sem_seg: SemSeg) -> int:
    """Pixels per image so that decoding and the maps of one image stay within :data:`_MAP_BUDGET_BYTES`."""
    per_pixel = 3
    if masks == "full" and _has_masks(config):
        per_pixel += 2 * rows
    if config.meta_architecture == "PanopticDeepLab":  # logits, and those of things with their probabilities
        per_pixel += 12 * config.sem_seg_head.num_classes
    elif config.sem_seg_head and (sem_seg != "none" or config.panoptic):
        per_pixel += 4 * config.sem_seg_head.num_classes * (2 if sem_seg == "logits" else 1)
    return min(_DEFAULT_MAX_IMAGE_PIXELS, _MAP_BUDGET_BYTES // per_pixel)


# === Writing ===


def _save(folder: Path, config: ModelConfig, options: GraphOptions, model: Any) -> None:
    core, variables = traced(core_function(model, options), core_specs(config, options))
    requests = Requests(config, options, core)
    extra = []
    if config.needs_proposals:
        extra = [
            tf.TensorSpec([None, None, 4], tf.float32, "proposal_boxes"),
            tf.TensorSpec([None], tf.int32, "num_proposals"),
        ]
    module: Any = tf.Module()
    channels = len(config.input.pixel_mean)
    raw = [tf.TensorSpec([None, None, None, channels], tf.uint8, "inputs"), *extra]
    encoded = [tf.TensorSpec([None], tf.string, "image_bytes"), *extra]
    default = tf.function(requests.from_tensors, input_signature=raw, autograph=False)
    module.weights = variables
    module.serving_default = default
    signatures = {"serving_default": default}
    if takes_files(channels):
        module.serving_bytes = tf.function(requests.from_bytes, input_signature=encoded, autograph=False)
        signatures["serving_bytes"] = module.serving_bytes
    tf.saved_model.save(module, str(folder), signatures=signatures)


def measure(
    folder: Path, with_proposals: bool, size: tuple[int, int] = warmup.BUCKETS[0], channels: int = 3
) -> tuple[float, float, float]:
    """Seconds to load, of the first and of the second request, in a Session as in TensorFlow Serving."""
    name, key, value = warmup.sample_inputs(*size, channels)[-1]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        start = time.perf_counter()
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))
        times = [time.perf_counter() - start]
        signature = loaded.signature_def[name]
        feed: dict[str, Any] = {signature.inputs[key].name: value}
        if with_proposals:
            feed[signature.inputs["proposal_boxes"].name] = [[[0.0, 0.0, float(size[1]), float(size[0])]]]
            feed[signature.inputs["num_proposals"].name] = [1]
        fetches = {key: info.name for key, info in signature.outputs.items()}
        for _ in range(2):
            start = time.perf_counter()
            session.run(fetches, feed)
            times.append(time.perf_counter() - start)
    return times[0], times[1], times[2]


def _publish(scratch: Path, output: Path, version: int) -> None:
    """Move the finished export into place; the version last, since a running server takes it at once."""
    os.chmod(scratch, 0o755)
    if not output.exists():
        os.rename(scratch, output)
        return
    for path in scratch.iterdir():
        if path.name != str(version):
            os.replace(path, output / path.name)
    target = output / str(version)
    if target.exists():  # to be overwritten; the scratch folder is removed with it
        os.rename(target, scratch / "replaced")
    os.rename(scratch / str(version), target)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
