"""Shards: what is there after interruptions, refusals, broken pictures. The network is replaced by a fixed answer."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tf_d2.batch import formats, inputs, run
from tf_d2.batch.merge import merge
from tf_d2.batch.rows import COLUMNS, Row, detected, failed
from tf_d2.batch.run import BatchError, Options
from tf_d2.instances import Instances


def answer(path: str | None, data: bytes) -> Row:
    """Boxes that follow from the bytes alone; pictures that begin with "bad" fail."""
    if data.startswith(b"bad"):
        return failed(path, "not a picture")
    count = len(data) % 3
    masks = np.zeros((count, 6, 8), bool)
    masks[:, 1:4, 2 : 3 + count] = True
    boxes = np.arange(4 * count, dtype=np.float32).reshape(-1, 4) * np.float32(1.1)
    fields = {
        "pred_boxes": boxes,
        "scores": np.linspace(0.9, 0.1, count, dtype=np.float32),
        "pred_classes": np.arange(count),
        "pred_masks": masks,
        "pred_keypoints": np.full((count, 2, 3), 1.3, np.float32),
    }
    return detected(path, Instances((6, 8), **fields))


class Fixed:
    """Answers as :func:`answer`, counts, and may stop the process."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.seen: list[str | None] = []
        self.stop_after = stop_after

    def row(self, path: str | None, data: bytes) -> Row:
        if self.stop_after is not None and len(self.seen) >= self.stop_after:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(path)
        return answer(path, data)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "model" / "1"
    (folder / "assets").mkdir(parents=True)
    (folder / "variables").mkdir()
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "assets" / "export.json").write_text(json.dumps({"category_ids": [7, 8, 9]}))
    return folder.parent


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(11):
        (folder / f"{k:03d}.jpg").write_bytes(b"x" * (k + 1) if k != 4 else b"bad")
    (folder / "notes.md").write_text("no picture")
    return folder


def do(export: Path, pictures: Path, output: Path, detector: Fixed | None = None, **options: object) -> Fixed:
    folder = run.prepare(export, [str(pictures)], output, Options(**{"shard_size": 4, **options}))  # type: ignore[arg-type]
    detector = detector or Fixed()
    run.run(folder, detector)  # type: ignore[arg-type]
    return detector


def rows_in(output: Path, name: str) -> list[Row]:
    read = formats.FORMATS[name].read
    assert read is not None
    return [row for path in sorted(output.glob("part-*")) for row in read(path)]


@pytest.mark.parametrize("name", ["parquet", "jsonl", "tfrecord"])
def test_every_row_comes_back(name: str, export: Path, pictures: Path, tmp_path: Path) -> None:
    do(export, pictures, tmp_path / "out", format=name)
    found = rows_in(tmp_path / "out", name)
    paths = sorted(pictures.glob("*.jpg"))
    assert [Path(row["path"]) for row in found] == paths
    for row, path in zip(found, paths, strict=True):
        expected = answer(str(path), path.read_bytes())
        assert tuple(row) == COLUMNS
        if name == "tfrecord" and not expected["classes"] and expected["failure"] is None:
            expected |= {"masks": row["masks"] or [], "keypoints": row["keypoints"] or []}
            row = row | {"masks": row["masks"] or [], "keypoints": row["keypoints"] or []}
        assert row == expected
    bad = found[4]
    assert all(row["sem_seg"] is row["panoptic"] is None for row in found)
    assert bad["failure"] == "not a picture" and all(
        bad[c] is None for c in COLUMNS if c not in ("path", "failure")
    )


def test_a_second_run_does_nothing_and_a_lost_shard_is_made_again(
    export: Path, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert len(do(export, pictures, output, format="jsonl").seen) == 11
    before = {p.name: p.read_bytes() for p in output.glob("part-*")}
    assert do(export, pictures, output, format="jsonl").seen == []
    (output / "part-00001.jsonl").unlink()
    again = do(export, pictures, output, format="jsonl").seen
    assert sorted(Path(str(p)).name for p in again) == [f"{k:03d}.jpg" for k in range(4, 8)]
    assert {p.name: p.read_bytes() for p in output.glob("part-*")} == before


KILLED = """
import sys; sys.path[:0] = {paths!r}
from pathlib import Path
import test_run as t
t.do(Path({export!r}), Path({pictures!r}), Path({output!r}), t.Fixed(stop_after={count}), format="jsonl")
"""


@pytest.mark.parametrize("count", [*(pytest.param(n, marks=pytest.mark.wide) for n in (0, 6)), 3, 10])
def test_killed_at_any_moment_nothing_is_lost_or_doubled(
    count: int, export: Path, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    paths = [str(Path(__file__).parent), str(Path(run.__file__).parents[2])]
    code = KILLED.format(
        paths=paths, export=str(export), pictures=str(pictures), output=str(output), count=count
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    do(export, pictures, output, format="jsonl")
    assert [Path(row["path"]).name for row in rows_in(output, "jsonl")] == [f"{k:03d}.jpg" for k in range(11)]
    assert not [p for p in output.iterdir() if p.name.startswith(".part")]


def test_another_model_other_options_or_pictures_are_refused(
    export: Path, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    do(export, pictures, output, format="jsonl")
    with pytest.raises(BatchError, match="other options"):
        do(export, pictures, output, format="jsonl", shard_size=5)
    (pictures / "new.png").write_bytes(b"x")
    with pytest.raises(BatchError, match="other pictures"):
        do(export, pictures, output, format="jsonl")
    (pictures / "new.png").unlink()
    (export / "1" / "saved_model.pb").write_bytes(b"another graph")
    with pytest.raises(BatchError, match="another model"):
        do(export, pictures, output, format="jsonl")


def test_a_folder_with_something_else_is_refused(export: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(BatchError, match=r"thesis\.tex"):
        do(export, pictures, tmp_path / "out", format="jsonl")


def test_max_failures(export: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "005.jpg").write_bytes(b"bad")
    folder = run.prepare(export, [str(pictures)], tmp_path / "out", Options("jsonl", 4))
    with pytest.raises(BatchError, match=r"2 of .* pictures failed, more than --max-failures 1.*004\.jpg"):
        run.run(folder, Fixed(), max_failures=1)  # type: ignore[arg-type]
    assert run.run(folder, Fixed(), max_failures=2).failures == 2  # type: ignore[arg-type]


def test_a_shard_of_a_running_process_is_left_to_it(export: Path, pictures: Path, tmp_path: Path) -> None:
    import fcntl

    folder = run.prepare(export, [str(pictures)], tmp_path / "out", Options("jsonl", 4))
    with open(folder.path / "claims" / "00001", "w") as claim:
        fcntl.flock(claim, fcntl.LOCK_EX)
        summary = run.run(folder, Fixed())  # type: ignore[arg-type]
        assert summary.busy_elsewhere == 1 and not folder.shard(1).exists()
    run.run(folder, Fixed())  # type: ignore[arg-type]
    assert folder.shard(1).exists()


@pytest.mark.parametrize("name", list(formats.FORMATS))
def test_merge_is_the_same_for_every_format(name: str, export: Path, pictures: Path, tmp_path: Path) -> None:
    do(export, pictures, tmp_path / "out", format=name)
    written, failures = merge(tmp_path / "out", tmp_path / "all.json")
    results = json.loads((tmp_path / "all.json").read_text())
    assert (written, failures) == (len(results), 1) and written == sum(
        (k + 1) % 3 for k in range(11) if k != 4
    )
    first = results[0]
    assert first["image_id"] == 0 and first["category_id"] == 7
    assert first["bbox"][2] == float(np.float32(2.2) - np.float32(0.0))
    assert first["segmentation"]["size"] == [6, 8]
    assert first["keypoints"][0] == float(np.float32(1.3) - np.float32(0.5))


def test_merge_takes_numbers_from_annotations(export: Path, pictures: Path, tmp_path: Path) -> None:
    do(export, pictures, tmp_path / "out", format="jsonl")
    with pytest.raises(BatchError, match=r"000\.jpg"):
        (tmp_path / "a.json").write_text(json.dumps({"images": [{"file_name": "x.jpg", "id": 1}]}))
        merge(tmp_path / "out", tmp_path / "all.json", tmp_path / "a.json")
    for text in ("[", "{}", '{"images": [{"file_name": 3, "id": 1}]}'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(BatchError, match=r"a\.json: not COCO annotations"):
            merge(tmp_path / "out", tmp_path / "all.json", tmp_path / "a.json")
    with pytest.raises(BatchError, match=r"gone\.json: not COCO annotations"):
        merge(tmp_path / "out", tmp_path / "all.json", tmp_path / "gone.json")
    assert not (tmp_path / "all.json").exists()
    for first, key in ((1000, "file_name"), (2000, "coco_url")):  # of COCO, and of LVIS
        images = [{key: f"http://images.example/val/{k:03d}.jpg", "id": first + k} for k in range(11)]
        (tmp_path / "a.json").write_text(json.dumps({"images": images}))
        merge(tmp_path / "out", tmp_path / "all.json", tmp_path / "a.json")
        assert json.loads((tmp_path / "all.json").read_text())[0]["image_id"] == first


def test_merge_of_an_unfinished_folder_is_refused(export: Path, pictures: Path, tmp_path: Path) -> None:
    do(export, pictures, tmp_path / "out", format="jsonl")
    (tmp_path / "out" / "part-00002.jsonl").unlink()
    with pytest.raises(BatchError, match="1 of 3 shards are missing"):
        merge(tmp_path / "out", tmp_path / "all.json")


# === Inputs ===


def test_lists_patterns_and_folders(pictures: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("pictures/002.jpg\nmissing.jpg\n")
    given = [str(listed), str(pictures / "00[01].jpg"), str(pictures)]
    names = [Path(item.name).name for item in inputs.items(given)]
    assert names[:4] == ["002.jpg", "missing.jpg", "000.jpg", "001.jpg"] and len(names) == 4 + 11
    with pytest.raises(ValueError, match=r"nowhere.*gone"):
        list(inputs.items([str(tmp_path / "nowhere"), str(tmp_path / "gone.txt")]))


def test_a_missing_file_of_a_list_is_a_row(export: Path, pictures: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("pictures/002.jpg\nmissing.jpg\n")
    do(export, listed, tmp_path / "out", format="jsonl")
    assert [row["failure"] for row in rows_in(tmp_path / "out", "jsonl")] == [
        None,
        "no such file or directory",
    ]


def test_tfrecord_input(export: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    def record(**features: bytes) -> bytes:
        made = {
            f"image/{k}": tf.train.Feature(bytes_list=tf.train.BytesList(value=[v]))
            for k, v in features.items()
        }
        return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()

    path = tmp_path / "some.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(record(encoded=b"xx", filename=b"a.jpg"))
        writer.write(record(encoded=b"x"))
        writer.write(record(filename=b"c.jpg"))
        writer.write(b"\xff\xff")
    do(export, path, tmp_path / "out", format="jsonl")
    rows = rows_in(tmp_path / "out", "jsonl")
    assert [row["path"] for row in rows] == ["a.jpg", f"{path}#1", f"{path}#2", f"{path}#3"]
    assert [row["failure"] for row in rows[:3]] == [None, None, "the record has no image/encoded"]
    assert "tf.train.Example" in rows[3]["failure"]
    path.write_bytes(path.read_bytes()[:-3] + struct.pack("<Q", 5))
    with pytest.raises(ValueError, match="not a whole TFRecord file"):
        list(inputs.items([str(path)]))


def test_the_index_is_read_in_parts(tmp_path: Path, pictures: Path) -> None:
    count, digest = inputs.write_index([str(pictures)], tmp_path / "i")
    index = inputs.Index(tmp_path / "i")
    assert count == len(index) == 11 and len(digest) == 64
    assert [Path(i.name).name for i in index.part(9, 20)] == ["009.jpg", "010.jpg"]
