"""One trace for each planted bug of a job, all by one loaded model.

    python -m parity.selftest.tf_mutants --job job.json

The traces are named ``<output>.<bug>.h5``; the bug "identity" is the model as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from parity.backends import driver
from parity.backends.tf import TensorFlowModel, planted
from parity.core import job as jobs
from parity.core.job import Job


def mutants(job: Job) -> None:
    """Plant every bug of ``job.mutations`` in turn and write a trace."""
    config, _ = jobs.read_config(job.config_yaml)
    model = TensorFlowModel(job, config)
    for name in job.mutations:
        path = f"{job.output}.{name}.h5"
        try:
            with planted("" if name == "identity" else name, model):
                driver.write_trace(job, model, path)
        except Exception as error:
            jobs.say("mutant", name=name, error=f"{type(error).__name__}: {error}")
            continue
        jobs.say("mutant", name=name, trace=path)
    Path(job.output).write_text("done")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status."""
    return driver.do_job(mutants, arguments)


if __name__ == "__main__":
    sys.exit(main())
