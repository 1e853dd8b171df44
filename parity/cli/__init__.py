"""The commands `tf-d2 parity`, `bench` and `demo`."""

import typer


def register(app: typer.Typer) -> None:
    """Adds this package's commands to the ``tf-d2`` application."""
    from parity.cli import demo, parity

    demo.register(app)
    parity.register(app)
