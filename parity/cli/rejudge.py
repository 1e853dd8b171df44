"""``tf-d2 parity rejudge``: recorded traces, judged again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from parity.cli.common import (
    Annotations,
    Full,
    KeepGoing,
    ProfileOption,
    WaiverOption,
    fail,
    finish,
    judge_dataset,
    open_annotations,
    read_waivers,
)
from weights.errors import UserError


def rejudge(
    reference: Annotated[str, typer.Argument(help="Trace of the reference.")],
    candidate: Annotated[str, typer.Argument(help="Trace of the candidate.")],
    profile: ProfileOption = "strict",
    noise: Annotated[
        list[str] | None, typer.Option(help="Further traces of the reference that show its own noise.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the report; left out: terminal only.")
    ] = None,
    scope: Annotated[str, typer.Option(help="all stages, or outputs only.")] = "",
    annotations: Annotations = None,
    waive: WaiverOption = None,
    keep_going: KeepGoing = False,
    full: Full = False,
) -> None:
    """Judge two recorded traces again, without running anything."""
    from parity.core.results import overall_exit_code
    from parity.judge.judge import compare

    truth = open_annotations(annotations)
    try:
        comparisons = compare(
            reference,
            candidate,
            profile=profile,
            noise=noise or (),
            scope=scope,
            waivers=read_waivers(waive),
            early_stop=not keep_going,
        )
    except (UserError, OSError) as error:
        raise fail(str(error)) from error
    judge_dataset(comparisons, truth)
    words = ["tf-d2", "parity", "rejudge", reference, candidate, "--profile", profile]
    words += [w for n in noise or () for w in ("--noise", n)] + [
        w for t in waive or () for w in ("--waive", t)
    ]
    words += ["--annotations", str(annotations)] if annotations else []
    words += (["--scope", scope] if scope else []) + (["--keep-going"] if keep_going else [])
    for comparison in comparisons:
        comparison.command = shlex.join(words)
    finish(comparisons, output, full)
    raise typer.Exit(overall_exit_code(comparisons))
