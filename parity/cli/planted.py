"""``tf-d2 parity mutations`` and ``list-mutations``: bugs that are planted, and whether they are found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from parity.cli.common import console, fail
from parity.core.checkout import from_a_checkout
from weights.errors import UserError


def list_mutations() -> None:
    """Names of the bugs that --mutate can plant."""
    with from_a_checkout("planted bugs"):
        from parity.selftest.mutations import MUTATIONS

    for mutation in MUTATIONS:
        typer.echo(f"{mutation.name:28} {' or '.join(mutation.blame):44} {mutation.what}")


def mutations(
    output: Annotated[Path, typer.Option(help="Folder for the kill table and its working files.")],
    only: Annotated[list[str] | None, typer.Option(help="Bug to plant; may be repeated.")] = None,
    torch_python: Annotated[
        str | None, typer.Option("--torch-python", help="Python interpreter that has torch.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads per side.")] = 1,
) -> None:
    """Plant known bugs one by one and see that each is found at the stage where it was planted."""
    with from_a_checkout("planted bugs"):
        from parity.selftest import mutation_run

    try:
        how = mutation_run.How(
            torch_python or sys.executable,
            threads,
            progress=lambda t: console.print(t, highlight=False, markup=False),
        )
        outcomes = mutation_run.run_mutations(output, only or (), how)
    except UserError as error:
        raise fail(str(error)) from error
    console.print(f"table: {mutation_run.write_results(outcomes, output)}", markup=False)
    raise typer.Exit(0 if all(o.blamed for o in outcomes) else 1)
