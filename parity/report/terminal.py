"""The verdict in a terminal: a headline, a table of stages, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape

from parity.core.results import Comparison, StageResult, headline
from parity.core.status import Status, Verdict

NAME = 44  # width of the stage column

STYLE = {
    Status.PASS: "green",
    Status.BORDERLINE: "yellow",
    Status.FAIL: "bold red",
    Status.NOT_COMPARED: "magenta",
    Status.ERROR: "bold white on red",
}


def number(value: float | None) -> str:
    """A metric in at most eight characters; "" where there is none."""
    if value is None or value != value:
        return ""
    return "0" if value == 0 else f"{value:.1e}"


def show(comparison: Comparison, console: Console, full: bool = False) -> None:
    """Print one comparison. Without ``full``, runs of passing stages are folded into one line."""
    colour = STYLE[comparison.status] if comparison.deterministic else "bold red"
    console.print(f"[{colour}]{escape(headline(comparison))}[/]")
    what = f"{comparison.candidate} against {comparison.reference}, {comparison.image}"
    console.print(f"[dim]{escape(what)}; noise: {escape(comparison.noise_source)}[/]", highlight=False)
    for line in _stage_lines(comparison, full):
        console.print(line, soft_wrap=True, highlight=False)
    for note in comparison.notes:
        console.print(f"[dim]note: {escape(note)}[/]")
    first = comparison.first_bad
    if first is not None:
        verdict = f" ({first.verdict})" if first.verdict is not Verdict.NONE else ""
        console.print(f"\nfirst bad stage: [bold]{escape(first.name)}[/]{verdict}")
        console.print(f"  {escape(first.message or first.forced_message)}")
        console.print(f"  {advice(first)}")
    if comparison.caveat:
        console.print(f"[yellow]caution: {escape(comparison.caveat)}[/]", highlight=False)


def advice(stage: StageResult) -> str:
    """What a bad stage's verdict means for the person who has to fix it."""
    texts = {
        Verdict.LOCAL: "this stage differs on the same input: look at its own code and weights",
        Verdict.INHERITED: "this stage is right by itself: look at the stages before it",
        Verdict.AMPLIFIED: "this stage is right but enlarges small differences: check its conditioning",
        Verdict.UNKNOWN: "there was no run on the same input: let both backends run to locate it",
    }
    return texts.get(stage.verdict, "see the log named in the message")


def _stage_lines(comparison: Comparison, full: bool) -> Iterator[str]:
    """One line per stage: difference end to end and on the same input; then how far candidate and reference are from
    the float64 run (without one: the limit and the reference's noise)."""
    if any(s.errors for s in comparison.stages):
        names = ("free", "same in", "from f64", "limit", "ref's")
    else:
        names = ("free", "same in", "", "limit", "noise")
    yield f"[dim]{'':12} {'stage':{NAME}} {' '.join(f'{n:>8}' for n in names)}[/]"
    first = comparison.first_bad
    passing: list[StageResult] = []
    for stage in comparison.stages:
        if not full and stage.overall is Status.PASS and stage.kind in ("continuous", "exact"):
            passing.append(stage)
            continue
        yield from _folded(passing)
        yield from _lines(stage, here=stage is first)
    yield from _folded(passing)


def _folded(passing: list[StageResult]) -> Iterator[str]:
    """Passing stages as one line that shows the worst of them."""
    if not passing:
        return
    worst = max(passing, key=lambda s: s.metrics.rel_l2 if s.metrics else -1.0)
    last = short(passing[-1].name).rsplit(".", 1)[-1]
    name = (
        f"{short(passing[0].name)} … {last} ({len(passing)})" if len(passing) > 1 else short(passing[0].name)
    )
    yield f"[green]{'PASS':12}[/] {escape(clip(name)):{NAME}} {_numbers(worst)}"
    passing.clear()


def _lines(stage: StageResult, here: bool) -> Iterator[str]:
    style = STYLE[stage.overall]
    name = f"[{style}]{stage.overall!s:12}[/] {escape(clip(short(stage.name))):{NAME}}"
    mark = " [bold red]<- starts here[/]" if here else ""
    verdict = f" [{style}]{stage.verdict}[/]" if stage.verdict is not Verdict.NONE else ""
    numbers = f" {_numbers(stage)}" if stage.metrics or stage.forced_metrics else ""
    yield f"{name}{numbers}{verdict}{mark}".rstrip()
    texts = [f"waived: {stage.waiver}" if stage.waiver else "", stage.message]
    texts += [f"same input: {stage.forced_message}" if stage.forced_message else ""]
    yield from (f"{'':13}[dim]{escape(t[:200])}[/]" for t in texts if t)


def _numbers(stage: StageResult) -> str:
    cells = (
        stage.metrics.rel_l2 if stage.metrics else None,
        stage.forced_metrics.rel_l2 if stage.forced_metrics else None,
        stage.errors.candidate.rel_l2 if stage.errors else None,
        stage.limit.value if stage.limit else None,
        stage.limit.noise if stage.limit else None,
    )
    return " ".join(f"{number(c):>8}" for c in cells)


def short(name: str) -> str:
    """A stage's name without the parts every name has."""
    return name.removeprefix("steps/")


def clip(text: str) -> str:
    """``text`` in at most NAME characters."""
    return text if len(text) <= NAME else text[: NAME // 2 - 1] + "…" + text[-(NAME // 2) :]
