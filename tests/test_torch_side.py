"""The tests that need torch in their own process: all files in one process without TensorFlow.

They are named torch_*.py and run by themselves, too: ``pytest tests/weights/torch_checkpoint.py``.
"""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

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


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What the process printed, and its test cases by file: torch takes longer to import than most files take."""
    report = tmp_path_factory.mktemp("torch") / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow", f"--junitxml={report}"]
    command = [sys.executable, "-c", PROGRAM, *options, *(str(TESTS / file) for file in FILES)]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
    printed = done.stdout[-6000:] + done.stderr[-2000:]
    assert done.returncode in (0, 1), printed  # all passed, or some failed; not a crash or TensorFlow
    assert "not torch alone" not in done.stderr, printed
    cases = {}
    for case in ElementTree.parse(report).iter("testcase"):
        cases.setdefault(case.get("classname"), []).append({part.tag for part in case})
    return printed, cases, done.returncode


def test_nothing_else_fails(ran):
    """An error while tests are collected, for one."""
    printed, _, code = ran
    assert code == 0, printed


@pytest.mark.parametrize("file", FILES)
def test_file(file, ran):
    printed, cases, _ = ran
    found = cases.get("tests." + file.removesuffix(".py").replace("/", "."), [])
    assert not any(parts & {"failure", "error"} for parts in found), printed
    assert any("skipped" not in parts for parts in found), printed
