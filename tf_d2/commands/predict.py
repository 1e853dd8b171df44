"""``tf-d2 predict``: images in; COCO results and pictures out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tf_d2.commands.options import ConfigOption, OptsArgument, WeightsOption, checked_opts, write_atomically


def register(app: typer.Typer) -> None:
    app.command("predict")(predict)


def predict(
    config_file: ConfigOption,
    input: Annotated[list[Path], typer.Option("--input", help="Image files; may be repeated.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for results.")],
    weights: WeightsOption = None,
    confidence_threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Leave out instances with a lower score.")
    ] = 0.0,
    opts: OptsArgument = None,
    draw: Annotated[bool, typer.Option(help="Also draw each result.")] = True,
) -> None:
    """Detect on images. For each NAME.EXT: NAME.json (COCO results, RLE masks) and NAME.detections.png."""
    from rich.console import Console
    from rich.progress import track

    from tf_d2.config.classes import class_names
    from tf_d2.ops.image_io import read_image
    from tf_d2.predictor import Predictor

    stems = _unique_stems(input)
    console = Console()
    predictor = Predictor(config_file, weights, opts=checked_opts(opts))
    names = class_names(predictor.config)
    output.mkdir(parents=True, exist_ok=True)
    failed = []
    for path, stem in track(list(zip(input, stems, strict=True)), description="predicting", console=console):
        try:
            image = read_image(path, "BGR")
            result = _above(predictor(image), confidence_threshold)
        except (ValueError, OSError) as error:
            failed.append(f"{path}: {error}" if str(path) not in str(error) else str(error))
            continue
        write_atomically(output / f"{stem}.json", json.dumps(to_json(result, path), indent=1).encode())
        if draw:
            _draw(output / f"{stem}.detections.png", image, result, names)
        console.print(f"{path}: {_summary(result)}")
    if failed:
        raise ValueError("; ".join(failed))


def to_json(result: dict[str, Any], path: Path) -> dict[str, Any]:
    """A result as JSON: ``annotations`` in COCO result format, and the segments of a panoptic map."""
    from tf_d2.coco import to_coco

    document: dict[str, Any] = {"file_name": path.name}
    if "instances" in result:
        document["height"], document["width"] = result["instances"].image_size
        document["annotations"] = to_coco(result["instances"], path.stem)
    if "proposals" in result:
        proposals = result["proposals"]
        document["height"], document["width"] = proposals.image_size
        document["proposals"] = {name: v.tolist() for name, v in proposals.get_fields().items()}
    if "panoptic_seg" in result:
        document["segments_info"] = result["panoptic_seg"][1]
    if "sem_seg" in result:
        labels, areas = np.unique(result["sem_seg"].argmax(axis=0), return_counts=True)
        document["sem_seg_areas"] = {int(k): int(n) for k, n in zip(labels, areas, strict=True)}
    return document


def _above(result: dict[str, Any], threshold: float) -> dict[str, Any]:
    if threshold > 0 and "instances" in result:
        instances = result["instances"]
        result["instances"] = instances[instances.scores >= threshold]
    return result


def _draw(path: Path, image: np.ndarray, result: dict[str, Any], names: list[str]) -> None:
    import io

    from tf_d2.visualize import draw_instances, draw_segments

    if "panoptic_seg" in result:
        picture = draw_segments(image, result["panoptic_seg"][0])
        image = np.asarray(picture)[:, :, ::-1]
    elif "sem_seg" in result:
        picture = draw_segments(image, result["sem_seg"].argmax(axis=0) + 1)
        image = np.asarray(picture)[:, :, ::-1]
    if "instances" in result or "proposals" in result:
        picture = draw_instances(image, result.get("instances", result.get("proposals")), names)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


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


def _unique_stems(files: list[Path]) -> list[str]:
    """Names for results; files of the same stem keep their extension, later duplicates get a number."""
    stems: list[str] = []
    for path in files:
        clash = sum(f.stem == path.stem for f in files) > 1
        name = path.name if clash else path.stem
        candidate, n = name, 1
        while candidate in stems:
            candidate, n = f"{name}.{n}", n + 1
        stems.append(candidate)
    return stems
