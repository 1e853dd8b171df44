"""The tests that need torch in their own process: each file in a process without TensorFlow.

They are named torch_*.py and run by themselves, too: ``pytest tests/weights/torch_checkpoint.py``.
"""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(
    path.relative_to(TESTS).as_posix()
    for folder in ("weights", "parity")
    for path in (TESTS / folder).rglob("torch_*.py")
)
# The second half of the answer: what ran did not bring TensorFlow in.
PROGRAM = """
import sys, pytest
code = pytest.main(sys.argv[1:])
assert "torch" in sys.modules and "tensorflow" not in sys.modules, "not torch alone in this process"
sys.exit(code)
"""


def test_all_are_found():
    assert {"weights/torch_checkpoint.py", "parity/backends/torch_reference.py"} <= set(FILES)
    assert len(FILES) == 9


@pytest.mark.parametrize("file", FILES)
def test_file(file):
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
        str(TESTS / file),
    ]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
