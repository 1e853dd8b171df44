"""Writes full detectron2 configurations of published models, for benches of models that are not at hand.

python -m parity.bench.suite.configs --job {"configs": [{"name", "opts", "output"}, ...], "output"}
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from parity.core import job as jobs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job."""
    from tf_d2.config import resolve_yaml
    from tf_d2.config.load import reference_yaml

    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    job = json.loads(Path(parser.parse_args(arguments).job).read_text())
    for entry in job["configs"]:
        text = reference_yaml(resolve_yaml(entry["name"], entry["opts"]))
        path = Path(entry["output"])
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # exports made from it are newer
            path.write_text(text, encoding="utf-8")
    Path(job["output"]).write_text("written\n")
    jobs.say("done", configs=len(job["configs"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
