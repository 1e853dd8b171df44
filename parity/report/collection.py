"""What a comparison of many pictures found: in a terminal, and as one self-contained HTML page."""

# ruff: noqa: E501

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image
from rich.console import Console
from rich.markup import escape

from parity.core.collection import Row, Spread, Summary
from parity.core.status import Status
from parity.report.terminal import STYLE, number

_SIDE = 160  # pixels of a small picture
_QUANTITIES = {
    "box_px": ("boxes, px", "largest corner difference of each matched detection"),
    "score": ("scores", "of each matched detection"),
    "rel_l2": ("stages, relative L2", "the largest of each picture's stages"),
}

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Parity over {{ s.pictures }} pictures: {{ s.status }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2530; background: #eef1f5; margin: 0; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 60px; }
section { background: #fff; border-radius: 12px; padding: 18px 24px; margin-bottom: 18px; }
h1 { color: #fff; background: {{ colour }}; border-radius: 12px; padding: 22px 28px; margin: 0 0 18px; font-size: 26px; }
h2 { font-size: 17px; margin: 0 0 10px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; color: #6b7785; } th, td { padding: 4px 8px; border-bottom: 1px solid #e3e8ee; vertical-align: top; overflow-wrap: anywhere; }
.n { text-align: right; font-family: ui-monospace, monospace; white-space: nowrap; }
.bar { background: #3b82f6; height: 12px; border-radius: 3px; min-width: 1px; }
.cols { display: grid; grid-template-columns: repeat(3, 1fr); gap: 24px; }
code { font-size: 11px; color: #6b7785; } .muted { color: #6b7785; font-size: 13px; } td img { max-width: 160px; }
</style></head><body><main>
<h1>{{ s.headline }}</h1>
<section><h2>Detections</h2>
<p>{{ s.matched }} matched, of {{ s.reference }} of the reference and {{ s.candidate }} of the candidate.</p>
<table><tr><th>difference of</th><th></th><th class="n">numbers</th><th class="n">median</th><th class="n">99 %</th><th class="n">largest</th></tr>
{% for name, (title, what) in quantities.items() %}{% set q = spreads[name].to_json() %}
<tr><td>{{ title }}</td><td class="muted">{{ what }}</td><td class="n">{{ q.count }}</td><td class="n">{{ q.median | number }}</td><td class="n">{{ q.p99 | number }}</td><td class="n">{{ q.max | number }}</td></tr>
{% endfor %}</table></section>
<section><h2>How the differences are spread</h2><div class="cols">
{% for name, (title, what) in quantities.items() %}<div><b>{{ title }}</b><table>
{% for label, count in spreads[name].by_decade() %}<tr><td class="n">{{ label }}</td><td style="width: 55%"><div class="bar" style="width: {{ (100 * count / spreads[name].count) | round(1) }}%"></div></td><td class="n">{{ count }}</td></tr>
{% endfor %}</table></div>{% endfor %}</div></section>
<section><h2>The {{ s.worst | length }} worst pictures</h2>
<table><tr><th></th><th>picture</th><th>status</th><th class="n">matched</th><th class="n">worst px</th><th class="n">worst score</th><th class="n">rel. L2</th></tr>
{% for row in s.worst %}
<tr><td>{% if pictures[loop.index0] %}<img alt="" src="{{ pictures[loop.index0] }}">{% endif %}</td>
<td>{{ row.picture }}<br><span class="muted">{{ row.headline }}</span>{% if row.command %}<br><code>{{ row.command }}</code>{% endif %}</td>
<td style="white-space: nowrap">{{ row.status }}</td><td class="n">{{ row.matched or 0 }} of {{ row.reference or 0 }} and {{ row.candidate or 0 }}</td>
<td class="n">{{ row.worst_box_px | number }}</td><td class="n">{{ row.worst_score | number }}</td><td class="n">{{ (row.rel_l2 or 0) | number }}</td></tr>
{% endfor %}</table></section>
<section><h2>On what</h2>{% for line in environment %}<div class="muted">{{ line }}</div>{% endfor %}</section>
</main></body></html>
"""

_COLOURS = {0: "#15803d", 1: "#b91c1c", 2: "#7e22ce", 3: "#b45309"}


def _spreads(summary: Summary) -> dict[str, Spread]:
    """The distributions by name."""
    return {name: getattr(summary, name) for name in _QUANTITIES}


def show(summary: Summary, console: Console) -> None:
    """Print the verdict, the distributions and the worst pictures."""
    colour = STYLE[summary.status] if summary.deterministic else "bold red"
    console.print(f"[{colour}]{escape(summary.headline)}[/]", highlight=False)
    console.print(
        f"{summary.matched} detections matched, of {summary.reference} and {summary.candidate}",
        highlight=False,
    )
    for line in (*_distribution(summary), *_worst(summary.worst)):
        console.print(line, highlight=False, soft_wrap=True)


def _distribution(summary: Summary) -> Iterator[str]:
    yield f"[dim]{'difference of':22}{'numbers':>9}{'median':>10}{'99 %':>10}{'largest':>10}[/]"
    for name, spread in _spreads(summary).items():
        found = spread.to_json()
        cells = "".join(f"{number(found[key]):>10}" for key in ("median", "p99", "max"))
        yield f"{_QUANTITIES[name][0]:22}{spread.count:>9}{cells}"


def _worst(rows: Sequence[Row]) -> Iterator[str]:
    yield f"[dim]worst pictures{'px':>19}{'score':>10}{'rel. L2':>10}[/]"
    for row in rows:
        numbers = (row["worst_box_px"], row["worst_score"], row.get("rel_l2", 0.0))
        cells = "".join(f"{number(value):>10}" for value in numbers)
        style = STYLE[Status(row["status"])]
        yield f"[{style}]{row['status']:13}[/]{'':10}{cells}  {escape(row['picture'])}"
        if row["status"] not in (str(Status.PASS), str(Status.BORDERLINE)):
            yield f"{'':13}[dim]{escape(row['headline'])}[/]"


def write_report(summary: Summary, environment: Sequence[str], path: Path) -> Path:
    """Write the page; pictures that cannot be read are left out of it."""
    made = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True)
    made.filters["number"] = number
    text = made.from_string(PAGE).render(
        s=summary,
        quantities=_QUANTITIES,
        spreads=_spreads(summary),
        pictures=[_small(row["picture"]) for row in summary.worst],
        environment=environment,
        colour=_COLOURS[summary.exit_code],
    )
    path.write_text(text, encoding="utf-8")
    return path


def _small(path: str) -> str:
    """A picture as a data URL of at most 160 pixels a side; "" where it cannot be read."""
    try:
        with Image.open(path) as picture:
            small: Any = picture.convert("RGB")
            small.thumbnail((_SIDE, _SIDE))
    except (OSError, ValueError):
        return ""
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
