"""All shards of a folder -> one COCO results file, without holding it in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tf_d2.batch.formats import FORMATS, coco_results, image_id_of
from tf_d2.batch.run import SCHEMA, BatchError
from weights.errors import UserError


def merge(folder: Path, output: Path, annotations: Path | None = None) -> tuple[int, int]:
    """Write ``output``, a JSON list in COCO's result format, in the order of the pictures.

    Args:
        folder: what ``tf-d2 batch`` wrote, complete.
        annotations: a COCO annotations file whose ``images`` give the number of each file name; without it a name that
            is a number is one, and any other picture is named by its path.

    Returns:
        how many detections were written, and how many pictures failed and have none.

    Raises BatchError where shards are missing or pictures are not in ``annotations``. Nothing is half-written.
    """
    manifest = _manifest(folder)
    size, count = manifest["options"]["shard_size"], manifest["inputs"]["count"]
    form = FORMATS[manifest["options"]["format"]]
    shards = [folder / f"part-{k:05d}.{form.suffix}" for k in range(-(-count // size))]
    missing = [path.name for path in shards if not path.exists()]
    if missing:
        raise BatchError(
            f"{folder}: {len(missing)} of {len(shards)} shards are missing ({', '.join(missing[:3])}); "
            "run tf-d2 batch again"
        )
    numbers = None if annotations is None else _image_numbers(annotations)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    written = failures = 0
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write("[")
            for path in shards:
                failures += _failures(folder / "stats" / f"{path.stem[5:]}.json")
                for result in _read(path, manifest, numbers):
                    file.write((",\n" if written else "\n") + json.dumps(result))
                    written += 1
            file.write("\n]\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return written, failures


def _manifest(folder: Path) -> Mapping[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise BatchError(f"{folder}: not a folder that tf-d2 batch wrote (manifest.json: {error})") from error
    if manifest.get("schema") != SCHEMA:
        raise BatchError(f"{folder}: written by another version of tf-d2 batch ({manifest.get('schema')})")
    return manifest


def _failures(path: Path) -> int:
    try:
        return len(json.loads(path.read_text())["failures"])
    except ValueError as error:
        raise _damaged(path, error) from error


def _read(
    path: Path, manifest: Mapping[str, Any], numbers: Mapping[str, int] | None
) -> Iterator[dict[str, Any]]:
    """The results of one shard. Raises BatchError, also where the file is damaged."""
    try:
        yield from _results(path, manifest, numbers)
    except UserError:
        raise
    except ValueError as error:  # of json and of pyarrow
        raise _damaged(path, error) from error


def _damaged(path: Path, error: ValueError) -> BatchError:
    return BatchError(f"{path}: not readable ({error}); delete this file and run tf-d2 batch again")


def _results(
    path: Path, manifest: Mapping[str, Any], numbers: Mapping[str, int] | None
) -> Iterator[dict[str, Any]]:
    read = FORMATS[manifest["options"]["format"]].read
    if read is None:
        for result in json.loads(path.read_text()):
            if numbers is not None:
                result["image_id"] = _number(str(result["image_id"]), numbers)
            yield result
        return
    for row in read(path):
        if row["failure"] is None:
            name = row["path"]
            number = image_id_of(name) if numbers is None else _number(name, numbers)
            yield from coco_results(row, number, manifest["category_ids"])


def _image_numbers(annotations: Path) -> dict[str, int]:
    """``images`` of a COCO or LVIS annotations file: file name, as written and without its folders -> id."""
    try:
        images = json.loads(annotations.read_text(encoding="utf-8"))["images"]
        named = {
            image["file_name"] if "file_name" in image else image["coco_url"]: image["id"] for image in images
        }
        numbers = {os.path.basename(name): number for name, number in named.items()}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BatchError(f"{annotations}: not COCO annotations with images ({error})") from error
    return numbers | named | {str(number): number for number in named.values()}


def _number(name: str, numbers: Mapping[str, int]) -> int:
    found = numbers.get(name, numbers.get(os.path.basename(name)))
    if found is None:
        raise BatchError(
            f"{name}: not among the images of the annotations; leave --annotations out, or give theirs"
        )
    return found
