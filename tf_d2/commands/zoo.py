"""``tf-d2 zoo``: the published models, which of them this version runs, and their settings."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tf_d2.commands.text_table import Column, print_table

if TYPE_CHECKING:  # imported by the functions that need it: --help does not
    from tf_d2.config import ZooModel

_zoo_app = typer.Typer(help="The models detectron2 publishes.", add_completion=False)


def register(app: typer.Typer) -> None:
    """Add ``zoo list`` and ``zoo show`` to the command line."""
    app.add_typer(_zoo_app, name="zoo")


@_zoo_app.callback(invoke_without_command=True)
def _zoo(context: typer.Context) -> None:
    """The models detectron2 publishes, and which of them this version runs (without a command: list)."""
    if context.invoked_subcommand is None:
        _list_models()


def _chosen(family: str | None, supported: bool | None) -> list[tuple[ZooModel, str | None]]:
    """The models of a family (any part of its name, any case) with the reason each cannot run, if any."""
    from tf_d2.config import zoo_models

    rows = [(row, row.no_detector) for row in zoo_models().values()]
    if family is not None:
        rows = [(row, why) for row, why in rows if family.lower() in row.family.lower()]
    if supported is not None:
        rows = [(row, why) for row, why in rows if (why is None) == supported]
    return rows


def _print_table(rows: list[tuple[ZooModel, str | None]]) -> None:
    cells = [(row.name, row.family, "yes" if why is None else "no", why or "") for row, why in rows]
    styles = ["" if why is None else "yellow" for _, why in rows]
    columns = (Column("model", folded=True), Column("family"), Column("runs"), Column("why not", folded=True))
    print_table(sys.stdout, columns, cells, styles)


def _records(rows: list[tuple[ZooModel, str | None]]) -> list[dict]:
    return [
        {"name": row.name, "family": row.family, "supported": why is None, "reason": why, "url": row.url}
        for row, why in rows
    ]


@_zoo_app.command("list")
def _list_models(
    family: Annotated[str | None, typer.Option(help="Only families whose name contains this.")] = None,
    supported: Annotated[
        bool | None, typer.Option("--supported/--unsupported", help="Only what runs, or only what does not.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")] = False,
) -> None:
    """List the published models, and which of them run."""
    rows = _chosen(family, supported)
    if as_json:
        typer.echo(json.dumps(_records(rows), indent=1))
        return
    if not rows:
        from tf_d2.config import zoo_models

        families = sorted({row.family for row in zoo_models().values()})
        typer.echo(f"No published model is of that kind. Families: {', '.join(families)}", err=True)
        raise typer.Exit(1)
    _print_table(rows)
    running = sum(why is None for _, why in rows)
    typer.echo(f"{len(rows)} models: {running} run, {len(rows) - running} are no detectors.")


@_zoo_app.command("show")
def _show_model(name: Annotated[str, typer.Argument(help="A name that `zoo list` shows.")]) -> None:
    """Print where a model's weights are, and its resolved configuration as YAML."""
    from tf_d2.config import ConfigError, resolve_yaml, zoo_models
    from tf_d2.config.errors import did_you_mean
    from tf_d2.config.zoo import zoo_name

    canonical = zoo_name(name)
    if canonical is None:
        typer.echo(f"{name}: not the name of a published model{did_you_mean(name, zoo_models())}", err=True)
        raise typer.Exit(2)
    row = zoo_models().get(canonical)
    typer.echo(f"# {canonical}")
    typer.echo(f"# weights: {row.url if row else 'none published'}")
    try:
        typer.echo(resolve_yaml(canonical), nl=False)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
