"""The core runs where no framework is installed; only the worker modules import one."""

import subprocess
import sys

CORE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras", "torch", "torchvision", "detectron2", "tf_d2"):
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
import parity
for name in parity.__all__:
    getattr(parity, name)
import parity.bench.bench, parity.running.bisect, parity.cli.parity, parity.selftest.mutation_run, parity.running.ops
import parity.report.html, parity.core.units
import parity.backends.tf_ops, parity.backends.tf_served, parity.backends.tf_worker, parity.bench.tf_worker
"""


def test_the_core_needs_no_framework():
    result = subprocess.run([sys.executable, "-c", CORE], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
