"""``tf-d2 beam``: every picture that a pattern matches through an exported model, on any runner of Apache Beam."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weights.errors import UsageError

_HELP = """Detect on pictures with an exported model, as a pipeline of Apache Beam that writes Parquet files.

Options that are not listed here are Beam's own, for example --runner FlinkRunner or --direct_num_workers 4. The files
have the rows of `tf-d2 batch`: a picture that cannot be used is a row with the reason in FAILURE. The model's folder
must be readable by every worker.

Example: tf-d2 beam --model serving/my_model --input 'photos/**.jpg' --output results/part
"""


def register(app: typer.Typer) -> None:
    """Add ``beam`` to the command line; what it does not know goes to Beam."""
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("beam", help=_HELP, context_settings=settings)(beam)


def beam(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Folder that tf-d2 export wrote.")],
    input: Annotated[
        list[str],
        typer.Option(
            "--input", metavar="PATTERN ...", help="Patterns of Beam, such as gs://bucket/photos/**.jpg."
        ),
    ],
    output: Annotated[str, typer.Option(help="How the files' names begin, such as results/part.")],
) -> None:
    from tf_d2.commands.options import import_tensorflow

    _check(model, context.args)
    import_tensorflow()
    try:
        from tf_d2.beam import write_parquet
    except ImportError as error:
        raise UsageError(str(error)) from error
    if "://" not in output:
        Path(output).absolute().parent.mkdir(parents=True, exist_ok=True)
    write_parquet(model, input, output, context.args)
    typer.echo(f"written: {output}-*.parquet")


def _check(model: str, rest: list[str]) -> None:
    """All problems of the command line at once, before anything is loaded."""
    problems = []
    if "://" not in model and not Path(model).is_dir():
        problems.append(f"--model {model}: no such folder; tf-d2 export writes one")
    first = rest[0] if rest else "--"
    if not first.startswith("-"):
        problems.append(f"{first}: not an option (Beam's own options begin with --)")
    if problems:
        raise UsageError("\n".join(problems))
