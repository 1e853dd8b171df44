"""The commands `tf-d2 parity`, `bench` and `demo`."""

import typer

# One line each, shown by `tf-d2 --help` without importing the commands.
COMMANDS = {
    "demo": "Predict, draw, prove that it equals detectron2, and export, with the embedded checkpoint.",
    "parity": "Compare a model in TensorFlow with the same model in PyTorch, stage by stage.",
    "bench": "Measure time and memory of PyTorch and TensorFlow on the same input.",
}


def register(app: typer.Typer) -> None:
    """Adds this package's commands to the ``tf-d2`` application."""
    from parity.cli import demo, parity

    demo.register(app)
    parity.register(app)
