"""Tables and plots of ``tf-d2 bench --all``, from the numbers it stored."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from parity.bench.results import NAMES, Bench, from_json
from parity.bench.suite.files import files_section
from parity.bench.suite.suite import PARTS, SCHEMA
from weights.errors import UsageError

Part = Mapping[str, Any]
_PROFILE_ROWS = 16

_INTRODUCTION = """# Measured speed

Every number here is measured and written by one command; `tf-d2 bench --only PART` measures one part again, and
`tf-d2 bench --render` makes this page and the plots from the stored numbers:

    tf-d2 bench --all --torch-python PYTHON_WITH_DETECTRON2 --output parity/results/bench

Ratios come first, since they survive a busy machine: both sides run in turn, A B, B A, ..., in one session, each in a
process of its own that stays loaded; a ratio is the median over rounds of our seconds over those of the reference in
the same round. Below 1 is faster. "Spread" is the fastest and the slowest run. Configurations are detectron2's, at
their published widths; weights are random, scaled in one pass over the bench picture so that activations,
proposals of all sizes and about 100 detections come out as from a trained model
(`parity/bench/suite/weights.py`). The picture is drawn, always the same.
"""


def read_parts(folder: Path) -> dict[str, Part]:
    """The stored parts by name. Raises ValueError for files of another schema."""
    out = {}
    for name in PARTS:
        path = folder / f"{name}.json"
        if path.is_file():
            out[name] = json.loads(path.read_text())
            if out[name].get("schema") != SCHEMA:
                raise UsageError(f"{path} is not of schema {SCHEMA}: measure this part again")
    return out


def write_page(parts: Mapping[str, Part], folder: Path) -> Path:
    """Write ``README.md`` and the plots beside it; its path. Raises ValueError where nothing is stored."""
    if not parts:
        raise UsageError(f"{folder} holds no measured part; run tf-d2 bench --all or --only PART first")
    from parity.bench.suite import plots as bench_plots

    sections = [_INTRODUCTION, _conditions(parts)]
    for name, part in parts.items():
        title, tables = SECTIONS[name]
        sections.append(f"## {title}\n")
        if part["error"]:
            sections.append(f"n/a: {part['error']}\n")
            continue
        sections.append(tables(part))
        sections += [f"{note[0].upper()}{note[1:]}\n" for note in part["notes"]]
        plot = bench_plots.PLOTS.get(name)
        if plot is not None:
            (folder / f"{name}.svg").write_text(plot(part))
            sections.append(f"![{title}]({name}.svg)\n")
    path = folder / "README.md"
    path.write_text("\n".join(sections))
    return path


def _conditions(parts: Mapping[str, Part]) -> str:
    """Machine, threads, date and command of every part; parts measured alike share a line."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, part in parts.items():
        facts = part["machine"]
        sets = f" ({', '.join(facts['instructions'])})" if facts.get("instructions") else ""
        key = (
            f"{facts['cpu']}{sets}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['system']}, "
            f"Python {facts['python']}",
            str(part["threads"]),
            f"{part['size'][0]}x{part['size'][1]}",
            part["date"],
            f"`{part['command']}`",
        )
        groups.setdefault(key, []).append(f"{name} ({part['minutes']:.1f} min)")
    rows = [[", ".join(names), *key] for key, names in groups.items()]
    return grid(["parts", "machine", "threads per side", "picture", "date", "command"], rows)


def grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text."""
    lines = [f"| {' | '.join(columns)} |", "| --- |" + " ---: |" * (len(columns) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def seconds(value: float) -> str:
    """Seconds with three significant digits."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def spread(values: Sequence[float]) -> str:
    """Fastest to slowest."""
    return f"{seconds(min(values))} to {seconds(max(values))}"


# === Sections ===


def _main_section(part: Part) -> str:
    """All ways to run one model."""
    bench = from_json(part["data"]["bench"])
    first = bench.sides[0]
    text = (
        f"{bench.title} at {part['size'][0]}x{part['size'][1]}, batch 1, float32 unless named otherwise, "
        f"{len(first.seconds)} rounds. Every side takes the picture as an array and gives boxes and full masks of "
        "the picture; the exports of detectron2 run its own resizing and post-processing before and after. "
        '"Same objects" are detections of the same class that overlap one of the reference\'s by at least half (one to '
        'one); "worst" is over these pairs. "Running" is the peak memory in the rounds, without loading. Random '
        "weights enlarge rounding, above all that of bfloat16, far more than trained ones do: see the model below.\n"
    )
    if part["data"]["reference"] != "detectron2":
        text += (
            "\ndetectron2 was not at hand: the reference is the compact PyTorch model of this repository.\n"
        )
    text += "\n" + _bench_rows(bench)
    trained = from_json(part["data"]["trained"])
    text += (
        f"\nHow well the detections of a trained model agree, {trained.title}, {len(trained.sides[0].seconds)} "
        "rounds (its times say little: it is small):\n\n"
    )
    return text + _bench_rows(trained)


def _bench_rows(bench: Bench) -> str:
    first = bench.sides[0]
    rows = []
    for side in bench.sides:
        if not side.seconds:
            rows.append([side.name, f"n/a: {side.error}", *[""] * 8])
            continue
        same = side.agreement
        rows.append(
            [
                f"{side.name} ({side.version})",
                f"**{median(bench.ratios(side)):.2f}**",
                seconds(side.median),
                spread(side.seconds),
                f"{same.matched} of {same.reference}" if same else "",
                f"{same.worst_px:.1e}" if same else "",
                f"{same.worst_score:.1e}" if same else "",
                f"{side.peak_mib:.0f} ({side.peak_mib / first.peak_mib:.2f})",
                f"{side.steady_mib:.0f} ({side.steady_mib / first.steady_mib:.2f})",
                f"{side.load_seconds:.1f} + {side.first_seconds:.1f}",
            ]
        )
    columns = (
        "side|ratio|median s|spread s|same objects|worst px|worst score|peak MiB|running MiB|load + first s"
    )
    return grid(columns.split("|"), rows)


def _agreement_section(part: Part) -> str:
    """One row per side, one column per size."""
    data = part["data"]
    rows = []
    for name, cells in data["sides"].items():
        rows.append([NAMES[name], *(_agreement_cell(cell) for cell in cells)])
    text = (
        "The model of the table above without resizing, so that the sizes are those of the network's input. Detections "
        "matched with detectron2 eager (same class, overlap of half or more, one to one), worst distance of a box's "
        "side in pixels, worst difference of a score. The exports were made at the first size; ONNX and OpenVINO "
        "files with height and width left open.\n\n"
    )
    return text + grid(["side", *(f"{h}x{w}" for h, w in data["sizes"])], rows)


def _agreement_cell(cell: Mapping[str, Any]) -> str:
    if "error" in cell:
        return f"n/a: {cell['error'][:120]}"
    found = f"{cell['matched']} of {cell['reference']}"
    if cell["found"] != cell["reference"]:
        found += f" ({cell['found']} found)"
    if cell["matched"] < cell["reference"]:
        found = f"**{found}**"
    return f"{found}, {cell['worst_px']:.1e} px, {cell['worst_score']:.1e}"


def _families_section(part: Part) -> str:
    """One row per family."""
    rows = []
    for body in part["data"]["benches"]:
        bench = from_json(body)
        ours = next((s for s in bench.sides if s.name == NAMES["tf"]), None)
        if len(bench.sides) < 2 or ours is None or any(s.error for s in bench.sides):
            why = "; ".join(f"{s.name}: {s.error}" for s in bench.sides if s.error)
            rows.append([bench.title, f"n/a: {why}", *[""] * 8])
            continue
        first, same = bench.sides[0], ours.agreement
        rows.append(
            [
                bench.title,
                f"**{median(bench.ratios(ours)):.2f}**",
                f"{min(bench.ratios(ours)):.2f} to {max(bench.ratios(ours)):.2f}",
                seconds(first.median),
                seconds(ours.median),
                f"{same.matched} of {same.reference}" if same else "",
                f"{same.worst_px:.1e}" if same else "",
                f"{same.worst_score:.1e}" if same else "",
                f"{ours.peak_mib / first.peak_mib:.2f}",
                f"{ours.steady_mib / first.steady_mib:.2f}",
            ]
        )
    reference = (
        from_json(part["data"]["benches"][0]).sides[0].name if part["data"]["benches"] else "reference"
    )
    columns = (
        f"model|ratio|per round|{reference}, s|tf-d2, s|same objects|worst px|worst score|peak memory ratio|"
        "running memory ratio"
    )
    middle = part["data"]["median_ratio"]
    text = f"Median of the ratios: **{middle:.2f}**.\n\n" if middle else ""
    return text + grid(columns.split("|"), rows)


def _endtoend_section(part: Part) -> str:
    """Phases from file to masks, and pasting."""
    rows = []
    for picture in part["data"]["pictures"]:
        for name, side in picture["sides"].items():
            whole, parts = median(side["seconds"]), side["parts"]
            around = sum(parts[k] for k in ("decode", "resize", "post"))
            cells = [f"{1000 * parts[k]:.0f}" for k in ("decode", "resize", "network", "post")]
            rows.append(
                [
                    f"{picture['size'][0]}x{picture['size'][1]}, {NAMES[name]}",
                    f"**{around / whole:.1%}**",
                    f"{1000 * whole:.0f}",
                    *cells,
                    str(side["found"]),
                ]
            )
    columns = "JPEG and side|around the network|total ms|decode ms|resize ms|network ms|to the picture, masks ms|found"
    text = "From the bytes of a JPEG file to boxes and full masks of the original picture (medians):\n\n"
    return text + grid(columns.split("|"), rows) + "\n" + _paste_rows(part["data"]["paste"])


def _paste_rows(paste: Mapping[str, Any]) -> str:
    sides = paste["sides"]
    first = median(next(iter(sides.values()))["seconds"])
    rows = []
    for name, side in sides.items():
        memory = "n/a" if side["extra_mib"] is None else f"{side['extra_mib']:.0f}"
        cells = [f"**{median(side['seconds']) / first:.2f}**", seconds(median(side["seconds"]))]
        rows.append([NAMES[name], *cells, spread(side["seconds"]), memory])
    pixels = paste["count"] * paste["height"] * paste["width"] / 2**20
    text = (
        f"{paste['count']} masks pasted into a {paste['width']}x{paste['height']} picture (the result alone is "
        f"{pixels:.0f} MiB of booleans; pages without a mask need no memory):\n\n"
    )
    return text + grid("side|ratio|median s|spread s|additional memory MiB".split("|"), rows)


def _batch_section(part: Part) -> str:
    """Images per second by batch size."""
    data = part["data"]
    names = list(data["sides"])
    columns = ["batch"]
    columns += ["ratio"] if len(names) > 1 else []
    columns += [f"{NAMES[n]}, images/s" for n in names] + [f"{NAMES[n]}, peak MiB" for n in names]
    rows = []
    for k, size in enumerate(data["batches"]):
        times = [data["sides"][n]["seconds"][k] for n in names]
        row = [str(size)]
        if len(names) > 1:
            row.append(f"**{median(b / a for a, b in zip(*times, strict=True)):.2f}**")
        row += [f"{size / median(t):.2f}" for t in times]
        row += [f"{data['sides'][n]['peak_mib'][k]:.0f}" for n in names]
        rows.append(row)
    return grid(columns, rows)


def _curves_section(part: Part) -> str:
    """A table per curve, with the exponent of growth between neighbouring points."""
    out = []
    for key, curve in part["data"].items():
        names = list(curve["sides"])
        columns = [key, *(["ratio"] if len(names) > 1 else [])]
        columns += [f"{NAMES[n]}, s" for n in names] + ["growth", "found"]
        rows = []
        ours = curve["sides"][names[-1]]
        for k, x in enumerate(curve["x"]):
            times = [curve["sides"][n]["seconds"][k] for n in names]
            row = [f"{x:,}"]
            if len(names) > 1:
                row.append(f"**{median(b / a for a, b in zip(*times, strict=True)):.2f}**")
            row += [seconds(median(t)) for t in times]
            rows.append([*row, growth(curve["x"], ours["seconds"], k), str(ours["found"][k])])
        out.append(f"### {key.capitalize()}\n\n{grid(columns, rows)}")
    text = (
        '"Growth" is our exponent between a point and the one before it: 1 is linear, less is better than linear. '
        "Proposals and classes are varied on a smaller picture, where they weigh more.\n"
    )
    return "\n".join([text, *out])


def growth(x: Sequence[float], times: Sequence[Sequence[float]], k: int) -> str:
    """log(t ratio) / log(x ratio) between point k - 1 and k; "" for the first."""
    if k == 0:
        return ""
    return f"{math.log(median(times[k]) / median(times[k - 1])) / math.log(x[k] / x[k - 1]):.2f}"


def _startup_section(part: Part) -> str:
    """Cold starts, conversion and traces."""
    data = part["data"]
    rows = []
    for name, found in data["starts"].items():
        load, first = (median(p[k] for p in found["parts"]) for k in ("load", "first"))
        whole = found["seconds"]
        cells = [f"**{seconds(median(whole))}**", spread(whole), f"{load:.2f}", f"{first:.2f}"]
        rows.append([NAMES[name], *cells])
    columns = ["the demo", "start to first answer, s", "spread s", "import and load s", "first prediction s"]
    convert, traces = data["convert"], data["traces"]
    size = convert["bytes"][0] / 1e6
    speeds = [size / s for s in convert["seconds"]]
    reads = [size / s for s in convert["read_seconds"]]
    share = median(a / b for a, b in zip(speeds, reads, strict=True))
    text = (
        f"\nConverting a checkpoint of {size:.0f} MB ({convert['tensors'][0]} tensors; read, written, read back and "
        f"compared): median **{median(speeds):.0f} MB/s** ({spread(speeds)}); the disk alone reads the same file, "
        f"uncached, at {median(reads):.0f} MB/s, so conversion runs at {share:.2f} of it.\n\n"
        f"Traces of the prediction after pictures of {traces['sizes']} sizes: **{traces['traces']}**.\n"
    )
    return grid(columns, rows) + text


def _profile_section(part: Part) -> str:
    """Share of convolutions and products, and the kinds that take longest."""
    data = part["data"]
    whole, heavy, plain = data["seconds"], data["heavy_seconds"], data["plain_seconds"]
    text = (
        f"{data['title']}, operations one after the other: one prediction takes {seconds(plain)} s, of which "
        f"**{heavy / plain:.0%}** are convolutions and matrix products, as the profiler times them, and "
        f"**{1 - heavy / plain:.0%}** everything else (ROIAlign's products among it). "
        f"Under TensorFlow's profiler, which gives the times below, it takes {seconds(whole)} s: "
        f"{heavy / whole:.1%} convolutions and products, "
        f"{(data['inside_seconds'] - heavy) / whole:.1%} other operations, "
        f"{(whole - data['inside_seconds']) / whole:.1%} outside of operations (Python, pasting, the profiler).\n\n"
    )
    rows = [
        [f"`{kind}`", f"{ms / whole / 10:.1f} %", f"{ms:.1f}", f"{calls:.0f}"]
        for kind, ms, calls in data["rows"][:_PROFILE_ROWS]
    ]
    rest = data["rows"][_PROFILE_ROWS:]
    if rest:
        ms, calls = (sum(r[k] for r in rest) for k in (1, 2))
        rows.append([f"{len(rest)} more kinds", f"{ms / whole / 10:.1f} %", f"{ms:.1f}", f"{calls:.0f}"])
    return text + grid(["kind", "share", "ms", "calls"], rows)


def _gpu_section(part: Part) -> str:
    """Both sides with TF32 off and on, or why not."""
    data = part["data"]
    if "unavailable" in data:
        return f"n/a: {data['unavailable']}\n"
    out = []
    for body in data["benches"]:
        bench = from_json(body)
        device = next((s.accelerator for s in bench.sides if s.accelerator), "GPU")
        out.append(f"{device}, TF32 {'on' if body['tf32'] else 'off'}:\n\n{_bench_rows(bench)}")
    launches = data["launches"]
    if launches and launches["launches"] is not None:
        out.append(
            f"ROIAlign of 1000 boxes from four levels: {launches['launches']} kernels, "
            f"{1000 * launches['seconds']:.1f} ms.\n"
        )
    return "\n".join(out)


SECTIONS: dict[str, tuple[str, Callable[[Part], str]]] = {
    "main": ("Mask R-CNN, every way to run it", _main_section),
    "agreement": ("The same detections, at any size?", _agreement_section),
    "families": ("All families", _families_section),
    "endtoend": ("End to end", _endtoend_section),
    "batch": ("Batches", _batch_section),
    "files": ("Many files", files_section),
    "curves": ("Cost curves", _curves_section),
    "startup": ("Start-up", _startup_section),
    "profile": ("Where the time goes", _profile_section),
    "gpu": ("GPU", _gpu_section),
}
