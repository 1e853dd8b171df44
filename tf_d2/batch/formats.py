"""Shards of rows as files: Parquet, JSON lines, TFRecord, COCO results. Each is written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_d2.batch.rows import COLUMNS, Row


@dataclass(frozen=True)
class _Format:
    """How rows are written to a path and read back. ``read`` is None for COCO results, which lack failed pictures."""

    suffix: str
    write: Callable[[Sequence[Row], Path, Sequence[int]], None]
    read: Callable[[Path], Iterator[Row]] | None


def write_shard(name: str, rows: Sequence[Row], path: Path, category_ids: Sequence[int]) -> None:
    """Write one shard under a temporary name beside ``path``, force it to the disk, then give it its name."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        FORMATS[name].write(rows, Path(temporary), category_ids)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


# === Parquet ===


def parquet_schema() -> Any:
    """Columns of the Parquet files (``pyarrow.Schema``); everything but ``path`` may be null."""
    import pyarrow as pa

    rle = [("size", pa.list_(pa.int32())), ("counts", pa.string())]
    label = ("class", pa.int64())
    told = [("isthing", pa.bool_()), ("score", pa.float32()), ("instance", pa.int32()), ("area", pa.int64())]
    kinds = {
        "path": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "boxes": pa.list_(pa.list_(pa.float32())),
        "scores": pa.list_(pa.float32()),
        "classes": pa.list_(pa.int64()),
        "masks": pa.list_(pa.struct(rle)),
        "keypoints": pa.list_(pa.list_(pa.list_(pa.float32()))),
        "sem_seg": pa.list_(pa.struct([label, *rle])),
        "panoptic": pa.list_(pa.struct([("id", pa.int64()), label, *told, *rle])),
        "failure": pa.string(),
    }
    return pa.schema([(name, kinds[name]) for name in COLUMNS])


def _write_parquet(rows: Sequence[Row], path: Path, category_ids: Sequence[int]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(list(rows), schema=parquet_schema())
    pq.write_table(table, path, compression="zstd")


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=64):
            yield from batch.to_pylist()


# === JSON lines ===


def _write_jsonl(rows: Sequence[Row], path: Path, category_ids: Sequence[int]) -> None:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        encoding="utf-8",
        errors="backslashreplace",
    )


def _read_jsonl(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


# === TFRecord ===

_COMPRESSED = ("masks", "sem_seg", "panoptic")  # columns with masks of the whole picture


def _write_tfrecord(rows: Sequence[Row], path: Path, category_ids: Sequence[int]) -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in rows:
            writer.write(example(row).SerializeToString())


def example(row: Row) -> Any:
    """A row as ``tf.train.Example``: a column that is null is left out. ``boxes`` and ``keypoints`` are flat,
    ``num_detections`` says how many rows they have; each mask, class of ``sem_seg`` and segment is a JSON text."""
    import tensorflow as tf

    kinds = tf.train
    feature: dict[str, Any] = {}

    def texts(name: str, values: Sequence[str]) -> None:
        encoded = [value.encode("utf-8", "surrogateescape") for value in values]
        feature[name] = kinds.Feature(bytes_list=kinds.BytesList(value=encoded))

    def numbers(name: str, values: Sequence[int]) -> None:
        feature[name] = kinds.Feature(int64_list=kinds.Int64List(value=values))

    def floats(name: str, values: Any) -> None:
        feature[name] = kinds.Feature(float_list=kinds.FloatList(value=_flat(values)))

    texts("path", [row["path"]])
    if row["failure"] is not None:
        texts("failure", [row["failure"]])
        return kinds.Example(features=kinds.Features(feature=feature))
    numbers("height", [row["height"]])
    numbers("width", [row["width"]])
    if row["scores"] is not None:
        numbers("num_detections", [len(row["scores"])])
        numbers("classes", row["classes"])
        floats("boxes", row["boxes"])
        floats("scores", row["scores"])
    for name in _COMPRESSED:
        if row[name] is not None:
            texts(name, [json.dumps(part) for part in row[name]])
    if row["keypoints"] is not None:
        floats("keypoints", row["keypoints"])
    return kinds.Example(features=kinds.Features(feature=feature))


def _flat(values: Any) -> Iterator[float]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value


def _read_tfrecord(path: Path) -> Iterator[Row]:
    import tensorflow as tf

    for record in tf.data.TFRecordDataset(str(path)):
        yield row_of(tf.train.Example.FromString(record.numpy()))


def row_of(found: Any) -> Row:
    """The inverse of :func:`example`."""
    feature = found.features.feature
    row: Row = dict.fromkeys(COLUMNS)
    row["path"] = feature["path"].bytes_list.value[0].decode("utf-8", "surrogateescape")
    if "failure" in feature:
        row["failure"] = feature["failure"].bytes_list.value[0].decode()
        return row
    for name in ("height", "width"):
        row[name] = feature[name].int64_list.value[0]
    for name in _COMPRESSED:
        if name in feature:
            row[name] = [json.loads(text) for text in feature[name].bytes_list.value]
    if "num_detections" not in feature:
        return row
    count = feature["num_detections"].int64_list.value[0]
    row["classes"] = list(feature["classes"].int64_list.value)
    row["scores"] = list(feature["scores"].float_list.value)
    row["boxes"] = _rows(list(feature["boxes"].float_list.value), count)
    if "keypoints" in feature:
        flat = _rows(list(feature["keypoints"].float_list.value), count)
        row["keypoints"] = [[one[k : k + 3] for k in range(0, len(one), 3)] for one in flat]
    return row


def _rows(flat: list[float], count: int) -> list[list[float]]:
    width = len(flat) // count if count else 0
    return [flat[k * width : (k + 1) * width] for k in range(count)]


# === COCO results ===


def coco_results(row: Row, image_id: int | str, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The detections of a row in COCO's result format, as ``tf-d2 predict`` writes them. A model that has none but a
    map of classes gives that, as detectron2's ``SemSegEvaluator`` writes it: one result per class, without a score."""
    results: list[dict[str, Any]] = []
    if row["boxes"] is None:
        for part in row["sem_seg"] or ():
            mask = {"size": part["size"], "counts": part["counts"]}
            results.append({"image_id": image_id, "category_id": part["class"], "segmentation": mask})
        return results
    for k, label in enumerate(row["classes"]):
        box = row["boxes"][k]
        x1, y1 = box[:2]
        result: dict[str, Any] = {
            "image_id": image_id,
            "category_id": category_ids[label] if category_ids else label,
            # float32 differences, as the boxes are
            "bbox": box if len(box) == 5 else [x1, y1, _difference(box[2], x1), _difference(box[3], y1)],
            "score": row["scores"][k],
        }
        if row["masks"] is not None:
            result["segmentation"] = row["masks"][k]
        if row["keypoints"] is not None:
            points = row["keypoints"][k]
            result["keypoints"] = [
                v for x, y, s in points for v in (_difference(x, 0.5), _difference(y, 0.5), s)
            ]
        results.append(result)
    return results


def _difference(a: float, b: float) -> float:
    import numpy as np

    return float(np.float32(a) - np.float32(b))


def image_id_of(path: str) -> int | str:
    """The number that a file name is (COCO's pictures), else the path."""
    stem = os.path.splitext(os.path.basename(path))[0]
    return int(stem) if stem.isdecimal() else path


def _write_coco(rows: Sequence[Row], path: Path, category_ids: Sequence[int]) -> None:
    results = [r for row in rows for r in coco_results(row, image_id_of(row["path"]), category_ids)]
    path.write_text(json.dumps(results) + "\n")


FORMATS = {
    "parquet": _Format("parquet", _write_parquet, _read_parquet),
    "jsonl": _Format("jsonl", _write_jsonl, _read_jsonl),
    "tfrecord": _Format("tfrecord", _write_tfrecord, _read_tfrecord),
    "coco": _Format("json", _write_coco, None),
}
