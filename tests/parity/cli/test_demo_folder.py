"""A demo in the folder of an earlier one."""

from pathlib import Path

from parity.cli.demo import _next_version


def test_a_second_demo_exports_the_next_version(tmp_path: Path) -> None:
    assert _next_version(tmp_path / "serving") == 1
    for name in ("1", "3", "README.md"):
        (tmp_path / name).mkdir()
    assert _next_version(tmp_path) == 4
