"""The soak itself: it says when something is lost, doubled or changed, and notes memory. The programs are stand-ins."""

import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity.selftest import lives, soak
from parity.selftest.lives import Life, SoakError

# In the place of tf-d2: shards of the sorted pictures, one row each, slowly. What is there is not made again.
PROGRAM = """
import sys, time
from pathlib import Path
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
if sys.argv[1] == "export":
    Path(given["--output"]).mkdir()
    sys.exit()
output, size = Path(given["--output"]), int(given["--shard-size"])
output.mkdir(exist_ok=True)
pictures = sorted(Path(given["--input"]).rglob("*.png"))
for number in range(-(-len(pictures) // size)):
    target = output / f"part-{number:05d}.parquet"
    if target.exists():
        continue
    rows = []
    for path in pictures[number * size : (number + 1) * size]:
        row = {"path": str(path), "failure": None, "scores": [], "boxes": [[1.0]]}
        try:
            Image.open(path).convert("RGB")
        except (OSError, SyntaxError) as error:
            row |= {"failure": "broken", "scores": None, "boxes": None}
        rows.append(row)
    time.sleep(PAUSE)
    CHANGE
    pq.write_table(pa.Table.from_pylist(rows), output / ".half")
    (output / ".half").rename(target)
"""


def program(tmp_path: Path, change: str = "pass", pause: float = 0.0) -> list[str]:
    path = tmp_path / "program.py"
    text = textwrap.dedent(PROGRAM).replace("CHANGE", change).replace("PAUSE", str(pause))
    path.write_text(text)
    return [sys.executable, str(path)]


def run(tmp_path: Path, **options: object) -> dict:
    plan = {"pictures": 230, "every": 1.0, "shard_size": 10, "work": tmp_path / "w", **options}
    (tmp_path / "w").mkdir()
    return soak.batch_soak(soak.Plan(**plan), lambda text: None)


@pytest.mark.slow  # by the clock: a life must be longer than a start of the program on a busy machine
def test_killed_again_and_again(tmp_path: Path) -> None:
    found = run(tmp_path, program=program(tmp_path, pause=0.4), every=4.0)
    assert found["problems"] == [] and found["kills"] > 0
    assert (found["rows"], found["failures"], found["equal_shards"]) == (230, 2, 23)
    soak.write_results("batch", found, tmp_path / "o")
    soak.write_results("batch", found, tmp_path / "o")
    text = (tmp_path / "o" / "README.md").read_text()
    assert "| shards with the bytes of the run from end to end | 23 of 23 |" in text
    assert "Problems: none." in text and str(tmp_path) not in text
    assert json.loads((tmp_path / "o" / "batch.json").read_text())["pictures"] == 230


def write_shards(folder: Path, pictures: list[Path], broken: list[Path], change: str = "pass") -> None:
    """Shards of four, as the program above writes them; ``change`` is done to the rows of each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    for number in range(3):
        rows: list[dict] = []
        for path in pictures[4 * number : 4 * number + 4]:
            row = {"path": str(path), "failure": None, "scores": [0.5], "boxes": [[1.0]]}
            rows.append(row | {"failure": "broken", "scores": None, "boxes": None} if path in broken else row)
        exec(change, {"rows": rows, "folder": folder})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"part-{number:05d}.parquet")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("pass", ""),
        ("del rows[0]", "3 pictures have no row"),
        ("rows.append(rows[0])", "3 rows too many"),
        ("rows[0]['failure'] = 'x'", "a broken picture has detections"),
        ("rows[0]['failure'] = 'x'", "5 rows with a failure, 2 broken pictures"),
        ("rows.reverse()", "rows in another order"),
        ("rows[0]['scores'] = [0.25]", "part-00000.parquet: not the bytes"),
        ("(folder / '.half').touch()", "left over: .half"),
    ],
)
def test_what_is_wrong_is_said(change: str, problem: str, tmp_path: Path) -> None:
    pictures = [Path(f"{k:02d}.png") for k in range(12)]
    broken = [pictures[1], pictures[6]]
    write_shards(tmp_path / "whole", pictures, broken)
    write_shards(tmp_path / "cut", pictures, broken, change)
    problems, facts = soak.compare_folders(tmp_path / "whole", tmp_path / "cut", pictures, broken)
    assert any(problem in text for text in problems) if problem else not problems, problems
    assert problem or facts == {"rows": 12, "failures": 2, "detections": 10, "equal_shards": 3}


def test_a_lost_shard_is_said(tmp_path: Path) -> None:
    pictures = [Path(f"{k:02d}.png") for k in range(12)]
    for name in ("whole", "cut"):
        write_shards(tmp_path / name, pictures, [])
    (tmp_path / "cut" / "part-00002.parquet").unlink()
    problems, _ = soak.compare_folders(tmp_path / "whole", tmp_path / "cut", pictures, [])
    assert problems == [
        "2 shards, 3 in the run from end to end",
        "4 pictures have no row: 08.png, 09.png, 10.png",
    ]


def test_kills_that_let_nothing_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "FRUITLESS", 2)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(SoakError, match="2 lives of about 0 s brought nothing"):
        lives.until_done(command, lambda: 5, 0.1, tmp_path / "log")


def test_a_program_that_fails(tmp_path: Path) -> None:
    with pytest.raises(SoakError, match=r"status 1: .*no such number"):
        run(tmp_path, program=program(tmp_path, change="raise ValueError('no such number')"))


def test_memory_is_noted_and_its_growth_is_a_problem(tmp_path: Path) -> None:
    code = "import time; a = bytearray(b'x' * 2**26); time.sleep(1.5)"
    life = lives.live([sys.executable, "-c", code], lambda: 7, None, tmp_path / "log")
    assert life.peak("other", 0) > 64 and np.isnan(life.peak("other", 8))
    grown = Life(samples=[(0, {"a": 9.0}), (1, {"a": 100.0}), (5, {"a": 110.0}), (9, {"a": 130.0})])
    table = lives.memory_table(grown, [4, 9])
    assert table == {"a": {"1 to 4": 100.0, "4 to 9": 130.0}}
    assert lives.grown(table) == ["memory of a grew from 100 to 130 MiB"]
    assert lives.grown({"a": {"0 to 4": 100.0, "4 to 9": 120.0}}) == []


def test_pictures_are_always_the_same_and_some_are_broken(tmp_path: Path) -> None:
    broken = soak.write_pictures(tmp_path / "a", 12, broken_every=3)
    soak.write_pictures(tmp_path / "b", 12, broken_every=3)
    paths = [p.relative_to(tmp_path / "a") for p in sorted((tmp_path / "a").rglob("*.png"))]
    assert len(paths) == 12 and len(broken) == 4
    assert broken[3].is_symlink() and not broken[3].exists() and broken[2].read_bytes() == b""
    whole = [p for p in paths if tmp_path / "a" / p not in broken]
    assert len({(tmp_path / "a" / p).read_bytes() for p in whole}) == 8
    for path in whole:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
        with Image.open(tmp_path / "a" / path) as picture:
            assert picture.size == (48, 32)
