"""``tf-d2 predict``: images in; COCO results and pictures out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tf_d2.commands.options import (
    ConfigOption,
    ConventionsOption,
    IgnoreKeysOption,
    IgnoreTensorsOption,
    NonfiniteOption,
    OptsArgument,
    PrefixOption,
    WeightsOption,
    checked_opts,
    choose_kernels,
    import_tensorflow,
    native_notices_hidden,
    write_atomically,
)
from weights.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


def register(app: typer.Typer) -> None:
    app.command("predict")(predict)


def predict(
    config_file: ConfigOption,
    input: Annotated[
        list[Path], typer.Option("--input", metavar="FILE ...", help="Image files, one or more.")
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder for results.")],
    weights: WeightsOption = None,
    confidence_threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Leave out instances with a lower score.")
    ] = 0.0,
    class_names: Annotated[
        Path | None, typer.Option(help="Text file with one class name per line, for the picture.")
    ] = None,
    draw: Annotated[bool, typer.Option(help="Also draw each result.")] = True,
    allow_nonfinite: NonfiniteOption = False,
    ignore_keys: IgnoreKeysOption = None,
    ignore_tensors: IgnoreTensorsOption = None,
    prefix: PrefixOption = None,
    conventions: ConventionsOption = None,
    opts: OptsArgument = None,
) -> None:
    """Detect on images and write, for each NAME.EXT:

    NAME.json, a list in COCO result format (masks as RLE), and NAME.detections.png. Category numbers, in all files,
    are those of the data set where it is known, else 0-based classes. Panoptic models also write NAME.panoptic.png
    (segment numbers) and NAME.panoptic.json, semantic ones NAME.sem_seg.png (classes), DensePose NAME.densepose.json
    (parts and coordinates, or vertices, of every pixel of each box; tf_d2.densepose.from_file reads one) and
    NAME.densepose.png.
    """
    from rich.console import Console
    from rich.progress import track

    names = _read_names(class_names)
    if not any(path.exists() for path in input):  # said before the model is loaded
        raise UsageError("; ".join(f"{path}: no such file" for path in input))
    choose_kernels()
    import_tensorflow()
    from tf_d2.ops.image_io import read_image
    from tf_d2.predictor import Predictor

    stems = unique_stems(input)
    console = Console()
    predictor = Predictor(
        config_file,
        weights,
        opts=checked_opts(opts),
        allow_nonfinite=allow_nonfinite,
        ignore_keys=ignore_keys or (),
        ignore_tensors=ignore_tensors or (),
        prefix=prefix,
        conventions=conventions,
    )
    form = "L" if len(predictor.config.input.pixel_mean) == 1 else "BGR"
    output.mkdir(parents=True, exist_ok=True)
    failed = []
    pairs = list(zip(input, stems, strict=True))
    quiet = not console.is_terminal
    for path, stem in track(pairs, description="predicting", console=console, disable=quiet):
        try:
            image = read_image(path, form)
            with native_notices_hidden():
                result = _numbered(_above(predictor(image), confidence_threshold), predictor.config.model)
        except OSError as error:
            failed.append(f"{path}: {(error.strerror or str(error)).lower()}")
            continue
        except ValueError as error:
            failed.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        for suffix, data in files(result, image, predictor, path.stem, names if draw else None).items():
            write_atomically(output / f"{stem}.{suffix}", data)
        console.print(f"{path}: {_summary(result)}", soft_wrap=True, markup=False)
    if failed:
        raise UsageError("; ".join(failed))


def _numbered(result: dict[str, Any], model: Any) -> dict[str, Any]:
    """Panoptic-DeepLab's map, whose numbers name the classes, as segments 1, 2, ... with a list of them."""
    import numpy as np

    segments, info = result.get("panoptic_seg", (None, ()))
    if info is not None:
        return result
    ids, row = np.unique(segments, return_inverse=True)
    first = int(np.searchsorted(ids, 0))  # -1, nothing, becomes 0
    info = []
    for number, value in enumerate(ids[first:].tolist(), 1):
        label = value // model.label_divisor
        info.append({"id": number, "isthing": label in model.thing_ids, "category_id": label})
    return {**result, "panoptic_seg": (row.reshape(segments.shape) + 1 - first, info)}


def _in_dataset_numbers(info: list[dict[str, Any]], config: Any) -> list[dict[str, Any]]:
    """Segments with the category numbers of the data set, as NAME.json has them; classes where it is unknown.

    Source: ``COCOPanopticEvaluator._convert_category_id``, detectron2/evaluation/panoptic_evaluation.py.
    """
    from tf_d2.config.classes import category_ids, stuff_category_ids

    def number(segment: dict[str, Any]) -> int:
        numbers = category_ids(config) if segment["isthing"] else stuff_category_ids(config)
        label = segment["category_id"]
        return numbers[label] if label < len(numbers) else label

    return [segment | {"category_id": number(segment)} for segment in info]


def files(
    result: dict[str, Any], image: np.ndarray, predictor: Any, name: str, class_names: list[str] | None
) -> dict[str, bytes]:
    """What is written for one image: file suffix -> content. Without ``class_names`` nothing is drawn."""
    import numpy as np

    from tf_d2.coco import coco_box, to_coco
    from tf_d2.config.classes import category_ids

    image_id: int | str = int(name) if name.isdecimal() else name
    written: dict[str, bytes] = {}
    if "instances" in result:
        written["json"] = _json(to_coco(result["instances"], image_id, category_ids(predictor.config)))
    if "proposals" in result:
        rows = zip(result["proposals"].proposal_boxes, result["proposals"].objectness_logits, strict=True)
        written["json"] = _json(
            [{"image_id": image_id, "bbox": coco_box(box), "score": float(logit)} for box, logit in rows]
        )
    if "instances" in result and result["instances"].has("pred_densepose"):
        written |= _densepose_files(result["instances"], image, predictor, name, class_names is not None)
    if "panoptic_seg" in result:
        segments, info = result["panoptic_seg"]
        written["panoptic.png"] = _png(segments.astype(np.uint16))
        written["panoptic.json"] = _json(_in_dataset_numbers(info, predictor.config))
    elif "sem_seg" in result:
        written["sem_seg.png"] = _png(result["sem_seg"].argmax(axis=0).astype(np.uint16))
    if class_names is not None:
        written["detections.png"] = _drawn(result, image, predictor, class_names)
    return written


def _densepose_files(
    instances: Any, image: np.ndarray, predictor: Any, name: str, draw: bool
) -> dict[str, bytes]:
    import numpy as np

    from tf_d2.densepose import closest_vertices, draw_densepose, to_file

    embeddings, meshes = predictor.vertex_embeddings, predictor.class_to_mesh
    known = all(meshes.get(int(label)) in embeddings for label in instances.pred_classes)
    vertices = closest_vertices(instances, meshes, embeddings) if embeddings and known else None
    written = {"densepose.json": _json(to_file(instances, vertices, name))}
    if draw:
        drawn = draw_densepose(image, instances)
        written["densepose.png"] = _png(np.ascontiguousarray(drawn[:, :, ::-1]))
    return written


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _png(array: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _read_names(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: class names must be UTF-8 text, one per line ({error.reason})") from None


def _above(result: dict[str, Any], threshold: float) -> dict[str, Any]:
    if threshold > 0 and "instances" in result:
        instances = result["instances"]
        result["instances"] = instances[instances.scores >= threshold]
    return result


def _drawn(result: dict[str, Any], image: np.ndarray, predictor: Any, names: list[str]) -> bytes:
    import numpy as np

    from tf_d2.config.classes import class_names
    from tf_d2.visualize import draw_instances, draw_segments

    if "panoptic_seg" in result:
        image = np.asarray(draw_segments(image, result["panoptic_seg"][0]))[:, :, ::-1]
    elif "sem_seg" in result:
        image = np.asarray(draw_segments(image, result["sem_seg"].argmax(axis=0) + 1))[:, :, ::-1]
    instances = result.get("instances", result.get("proposals"))
    if instances is None:
        return _png(np.ascontiguousarray(image[:, :, ::-1]))
    return _png(np.asarray(draw_instances(image, instances, names or class_names(predictor.config))))


def _summary(result: dict[str, Any]) -> str:
    parts = []
    if "instances" in result:
        parts.append(f"{len(result['instances'])} instances")
    if "proposals" in result:
        parts.append(f"{len(result['proposals'])} proposals")
    if "panoptic_seg" in result:
        parts.append(f"{len(result['panoptic_seg'][1])} segments")
    elif "sem_seg" in result:
        parts.append(f"{result['sem_seg'].shape[0]} semantic classes")
    return ", ".join(parts)


def unique_stems(paths: list[Path]) -> list[str]:
    """Names for results: the stem; files that share one keep their extension, further duplicates get a
    number.
    """
    stems: list[str] = []
    for path in paths:
        shared = sum(other.stem == path.stem for other in paths) > 1
        name = path.name if shared else path.stem
        candidate, n = name, 1
        while candidate in stems:
            candidate, n = f"{name}.{n}", n + 1
        stems.append(candidate)
    return stems
