"""Long runs over many tiny pictures: after every kill nothing is lost or doubled, and memory stays flat.

    python -m parity.selftest.soak batch --pictures 20000 --output DIR
    python -m parity.selftest.soak parity --pictures 2000 --output DIR

``batch``: one run of ``tf-d2 batch`` from end to end, and another one of the same pictures that is killed (SIGKILL, all
its processes) about every ``--every`` seconds and started again. One picture in a hundred is broken. The shards of
both must have the same bytes, every picture one row, every broken one a reason. ``parity``: one run of
``tf-d2 parity`` over a folder. Both note the resident memory against the pictures done, and write DIR/NAME.json and
DIR/README.md; what is in DIR of the other one stays in the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from parity.core import machine
from parity.selftest.lives import grown, live, memory_table, until_done
from parity.selftest.mutation_run import embedded_demo

SCHEMA = "tf-d2-soak/1"
_TINY = (32, 48)  # height, width
_BROKEN_EVERY = 100
# The demo's network at the size of the pictures and with few regions, so that thousands of them take minutes.
_OPTS = (
    *("INPUT.MIN_SIZE_TEST", "32", "INPUT.MAX_SIZE_TEST", "64", "TEST.DETECTIONS_PER_IMAGE", "5"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
)
_TF_D2 = (sys.executable, "-m", "tf_d2.cli")


# === Pictures ===


def write_pictures(folder: Path, count: int, broken_every: int = _BROKEN_EVERY, seed: int = 3) -> list[Path]:
    """``count`` PNG files of :data:`_TINY` pixels with objects, of which one in ``broken_every`` (0: none) is broken in
    one of four ways. Returns the broken ones. What was in the folder is removed."""
    from PIL import Image

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    whole = np.asarray(Image.open(embedded_demo() / "shapes.png").convert("RGB"))
    rng, broken = np.random.default_rng(seed), []
    for k in range(count):
        path = folder / f"{k // 1000:03d}" / f"{k:07d}.png"
        path.parent.mkdir(exist_ok=True)
        side = int(rng.integers(*(min(whole.shape[:2]) // 3, min(whole.shape[:2]))))
        shape = side, min(side * _TINY[1] // _TINY[0], whole.shape[1])
        top, left = (int(rng.integers(0, n - m + 1)) for n, m in zip(whole.shape[:2], shape, strict=True))
        part = Image.fromarray(whole[top : top + shape[0], left : left + shape[1]])
        part.resize((_TINY[1], _TINY[0])).save(path)
        if broken_every and k % broken_every == broken_every // 2:
            broken.append(path)
            _break(path, k // broken_every % 4)
    return broken


def _break(path: Path, way: int) -> None:
    """Half a file, no picture, nothing at all, or a link to nowhere."""
    data = path.read_bytes()
    if way == 3:
        path.unlink()
        path.symlink_to("nowhere.png")
        return
    path.write_bytes((data[: len(data) // 2], b"not a picture", b"")[way])


# === Batch ===


@dataclass(frozen=True)
class Plan:
    """What to run. ``program``: the command in the place of ``tf-d2``."""

    pictures: int = 20000
    every: float = 60.0
    shard_size: int = 64
    processes: int = 1
    work: Path = Path("soak")
    program: Sequence[str] = _TF_D2


def batch_soak(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Both runs, and what came of them. ``problems`` is empty where everything holds."""
    say(f"writing {plan.pictures} pictures")
    pictures = plan.work / "pictures"
    broken = write_pictures(pictures, plan.pictures)
    log = plan.work / "log.txt"
    demo = embedded_demo()
    export = [*plan.program, "export", "--config-file", str(demo / "shapes.yaml")]
    export += ["--weights", str(demo / "shapes.pkl"), "--output", str(plan.work / "model"), "--opts", *_OPTS]
    if not (plan.work / "model").exists():
        live(export, lambda: 0, None, log)
    whole, cut = plan.work / "whole", plan.work / "cut"
    for folder in (whole, cut):
        shutil.rmtree(folder, ignore_errors=True)
    command = [*plan.program, "batch", "--model", str(plan.work / "model"), "--input", str(pictures)]
    command += ["--shard-size", str(plan.shard_size), "--processes", str(plan.processes), "--output"]
    say("one run from end to end")
    one = live([*command, str(whole)], _shards_done(whole, plan), None, log)
    say(f"{one.seconds:.0f} s; now killed about every {plan.every:.0f} s")
    lives = until_done([*command, str(cut)], _shards_done(cut, plan), plan.every, log)
    say(f"{sum(life.killed for life in lives)} kills; comparing")
    problems, facts = compare_folders(whole, cut, sorted(pictures.rglob("*.png")), broken)
    memory = memory_table(one, [plan.pictures // 10, plan.pictures // 2, plan.pictures])
    return {
        "pictures": plan.pictures,
        "broken": len(broken),
        "shard_size": plan.shard_size,
        "processes": plan.processes,
        "kills": sum(life.killed for life in lives),
        "lives": [{"seconds": life.seconds, "done": life.done} for life in lives],
        "seconds": {"whole": one.seconds, "cut": sum(life.seconds for life in lives)},
        "problems": problems + grown(memory),
        **facts,
        "memory": memory,
        "memory_of_lives": max(life.peak("tf_d2.cli", 0) for life in lives),
    }


def _shards_done(folder: Path, plan: Plan) -> Callable[[], int]:
    return lambda: min(len(list(folder.glob("part-*"))) * plan.shard_size, plan.pictures)


def compare_folders(
    whole: Path, cut: Path, pictures: Sequence[Path], broken: Sequence[Path]
) -> tuple[list[str], dict[str, Any]]:
    """What is wrong with ``cut``, beside ``whole``, and counts: rows, detections, shards with the same bytes."""
    import pyarrow.parquet as pq

    names = [[path.name for path in sorted(folder.glob("part-*"))] for folder in (whole, cut)]
    problems = (
        []
        if names[0] == names[1]
        else [f"{len(names[1])} shards, {len(names[0])} in the run from end to end"]
    )
    paths: list[str] = []
    failures: set[str] = set()
    detections = equal = 0
    for name in names[1]:
        table = pq.read_table(cut / name)
        rows = table.select(["path", "failure", "scores", "boxes"]).to_pylist()
        paths += [row["path"] for row in rows]
        failures |= {row["path"] for row in rows if row["failure"] is not None}
        detections += sum(len(row["scores"] or ()) for row in rows)
        if any(row["failure"] is not None and row["boxes"] is not None for row in rows):
            problems.append(f"{name}: a broken picture has detections")
        if (whole / name).exists() and (whole / name).read_bytes() == (cut / name).read_bytes():
            equal += 1
        else:
            problems.append(f"{name}: not the bytes of the run from end to end")
    expected = [str(path) for path in pictures]
    lost, doubled = sorted(set(expected) - set(paths)), len(paths) - len(set(paths))
    if lost:
        problems.append(f"{len(lost)} pictures have no row: {', '.join(lost[:3])}")
    if doubled:
        problems.append(f"{doubled} rows too many")
    if not lost and not doubled and paths != expected:
        problems.append("rows in another order than the pictures")
    if failures != {str(path) for path in broken}:
        problems.append(f"{len(failures)} rows with a failure, {len(broken)} broken pictures")
    left = [p.name for p in sorted(cut.rglob(".*")) if p.name != ".lock"]
    if left:
        problems.append(f"left over: {', '.join(left[:3])}")
    return problems, {
        "rows": len(paths),
        "failures": len(failures),
        "detections": detections,
        "equal_shards": equal,
    }


# === Parity ===


def _parity_soak(plan: Plan, extra: Sequence[str] = (), say: Callable[[str], None] = print) -> dict[str, Any]:
    """One run of ``tf-d2 parity`` over tiny pictures, none of them broken, and its memory."""
    pictures, output, log = plan.work / "pictures", plan.work / "report", plan.work / "log.txt"
    write_pictures(pictures, plan.pictures, broken_every=0)
    shutil.rmtree(output, ignore_errors=True)
    count, demo = plan.pictures, embedded_demo()
    command = [*plan.program, "parity", "--config-file", str(demo / "shapes.yaml")]
    command += ["--weights", str(demo / "shapes.pkl"), "--input", str(pictures), "--output", str(output)]
    for key, value in zip(_OPTS[::2], _OPTS[1::2], strict=True):
        command += ["--opts", key, "--opts", value]
    rows = output / "rows.jsonl"
    say(f"{count} pictures")
    counted = [0, 0]  # bytes, lines

    def done() -> int:
        if rows.exists():
            with open(rows, "rb") as file:
                file.seek(counted[0])
                data = file.read()
            counted[0] += len(data)
            counted[1] += data.count(b"\n")
        return counted[1]

    life = live([*command, *extra], done, None, log, fine=(0, 1, 2, 3))  # the summary has the verdict
    summary = json.loads((output / "parity.json").read_text())
    problems = [] if summary["pictures"] == count else [f"{summary['pictures']} rows for {count} pictures"]
    if summary["exit_code"]:
        problems.append(summary["headline"])
    memory = memory_table(life, sorted({min(50, count), min(500, count), count}))
    return {
        "pictures": count,
        "options": list(extra),
        "seconds": life.seconds,
        "headline": summary["headline"],
        "box_px": summary["box_px"],
        "problems": problems + grown(memory),
        "memory": memory,
    }


# === Results ===


def write_results(name: str, found: Mapping[str, Any], output: Path) -> Path:
    """Write DIR/NAME.json and, from all that is there, DIR/README.md."""
    output.mkdir(parents=True, exist_ok=True)
    versions = {package: version(package) for package in ("tensorflow", "numpy", "pyarrow")}
    body = {"schema": SCHEMA, "machine": machine.facts(), "versions": versions, **_short(found)}
    (output / f"{name}.json").write_text(json.dumps(body, indent=1) + "\n")
    read = {n: output / f"{n}.json" for n in SECTIONS}
    parts = [SECTIONS[n](json.loads(path.read_text())) for n, path in read.items() if path.exists()]
    page = output / "README.md"
    page.write_text("\n".join([_INTRODUCTION, *parts]))
    return page


_INTRODUCTION = f"""# Many pictures, for long

Tiny pictures ({_TINY[0]}x{_TINY[1]}) through the embedded model, by `python -m parity.selftest.soak batch` and
`python -m parity.selftest.soak parity`.
Memory is what was resident, sampled twice a second, in MiB.
"""


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _short(v) for k, v in value.items()}
    return [_short(v) for v in value] if isinstance(value, (list, tuple)) else value


def _batch_section(found: Mapping[str, Any]) -> str:
    seconds, shards = found["seconds"], -(-found["pictures"] // found["shard_size"])
    rows = [
        ("pictures, broken ones among them", f"{found['pictures']}, {found['broken']}"),
        ("kills (SIGKILL), processes", f"{found['kills']}, {found['processes']}"),
        ("rows, rows with a failure", f"{found['rows']}, {found['failures']}"),
        ("detections", str(found["detections"])),
        ("shards with the bytes of the run from end to end", f"{found['equal_shards']} of {shards}"),
        ("seconds from end to end, with kills", f"{seconds['whole']:.0f}, {seconds['cut']:.0f}"),
        ("largest memory of a killed process", _mib(found["memory_of_lives"])),
    ]
    return _section("tf-d2 batch, killed again and again", found, rows)


def _parity_section(found: Mapping[str, Any]) -> str:
    rows = [
        ("pictures", str(found["pictures"])),
        ("verdict", found["headline"]),
        ("worst box corner, px", f"{found['box_px']['max']:.1e} of {found['box_px']['count']}"),
        ("seconds", f"{found['seconds']:.0f}"),
        ("further options", " ".join(found["options"]) or "none"),
    ]
    return _section("tf-d2 parity over a folder", found, rows)


def _section(title: str, found: Mapping[str, Any], rows: Sequence[tuple[str, str]]) -> str:
    facts = found["machine"]
    lines = [f"## {title}\n", "| | |", "| --- | ---: |", *(f"| {a} | {b} |" for a, b in rows)]
    for program, peaks in found["memory"].items():
        lines += [
            f"| memory of `{program}`, {span} pictures done | {_mib(mib)} |" for span, mib in peaks.items()
        ]
    problems = "; ".join(found["problems"]) or "none"
    where = f"{facts['cpu']}, {facts['cores']} cores, TensorFlow {found['versions']['tensorflow']}"
    return "\n".join([*lines, f"\nProblems: {problems}. {where}.\n"])


def _mib(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.0f}"


SECTIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {"batch": _batch_section, "parity": _parity_section}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit status 1: something does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(SECTIONS))
    parser.add_argument("--pictures", type=int, default=20000)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between kills, on average")
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True, help="folder for NAME.json and README.md")
    parser.add_argument(
        "--work", type=Path, help="folder for pictures and runs; left out: removed afterwards"
    )
    given, extra = parser.parse_known_args(arguments)
    if extra and given.what != "parity":
        parser.error(f"unknown: {' '.join(extra)}")
    work = given.work or Path(tempfile.mkdtemp(prefix="soak-"))
    work.mkdir(parents=True, exist_ok=True)
    plan = Plan(given.pictures, given.every, given.shard_size, given.processes, work.resolve())
    try:
        found = batch_soak(plan) if given.what == "batch" else _parity_soak(plan, extra)
    finally:
        if given.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print(write_results(given.what, found, given.output))
    for problem in found["problems"]:
        print(f"PROBLEM {problem}", file=sys.stderr)
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
