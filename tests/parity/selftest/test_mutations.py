"""The planted bugs: the table, the planters and the kill table. Running them all is a command, not a test."""

import json
import re
from pathlib import Path

import pytest

import parity.selftest.mutations
from parity.selftest.mutation_run import Outcome, kill_table, run_mutations, sample_picture, write_results
from parity.selftest.mutations import BY_NAME, MUTATIONS

PLANTERS = Path(parity.selftest.mutations.__file__).parent / "tf_planters"


def planter_names():
    """Names in the worker's modules, read without importing TensorFlow."""
    sources = "\n".join(path.read_text() for path in sorted(PLANTERS.glob("*.py")))
    found = re.findall(r'^@planter\("(.+)"\)$|^    "(\w+)": \("', sources, re.MULTILINE)
    return [decorated or listed for decorated, listed in found]


def test_every_bug_has_exactly_one_planter():
    assert sorted(planter_names()) == sorted(m.name for m in MUTATIONS)
    assert len(MUTATIONS) == len(BY_NAME) >= 40


def test_the_worker_reads_every_file_of_planters():
    files = {path.stem for path in PLANTERS.glob("*.py")} - {"__init__", "base"}
    assert set(re.findall(r'^    "(\w+)",$', (PLANTERS / "__init__.py").read_text(), re.MULTILINE)) == files


def test_every_bug_names_where_it_is_to_be_found():
    assert all(m.blame and m.what for m in MUTATIONS)


def outcome(name, exit_code, first_bad, expected="steps/backbone/p"):
    return Outcome(name, "mask", "something", expected, exit_code, first_bad, "LOCAL")


def test_an_outcome_counts_only_where_it_was_planted():
    right, elsewhere = outcome("a", 1, "steps/backbone/p2"), outcome("b", 1, "output/instances")
    missed, broken = outcome("c", 0, ""), outcome("d", 2, "")
    assert [o.caught for o in (right, elsewhere, missed, broken)] == [True, True, False, False]
    assert [o.blamed for o in (right, elsewhere, missed, broken)] == [True, False, False, False]


def test_controls_must_pass():
    fine, wrong = outcome("identity", 0, "", "the same"), outcome("identity", 1, "x", "the same")
    assert fine.caught and fine.blamed and not wrong.caught and not wrong.blamed


def test_the_table_shows_what_was_missed():
    text = kill_table(
        [outcome("identity", 0, "", "the same"), outcome("a", 1, "steps/backbone/p2"), outcome("c", 0, "")]
    )
    assert "1 of 2 planted bugs are found, 1 of them" in text and "1 of 1 runs without a bug pass" in text
    assert "| c | mask | something | **no** |" in text


def test_a_folder_keeps_the_runs_that_are_not_repeated(tmp_path):
    known = {b.model: b.name for b in MUTATIONS}
    before = [
        Outcome("identity", "mask", "", "the same", 0),
        Outcome(known["mask"], "mask", "", "x", 0),
        Outcome(known["ops"], "ops", "", "nms", 0),
        Outcome("planted long ago", "mask", "", "x", 0),
    ]
    write_results(before, tmp_path)
    text = write_results([Outcome(known["ops"], "ops", "", "nms", 1, "nms/a", "LOCAL")], tmp_path).read_text()
    assert "1 of 2 planted bugs are found" in text and "1 of 1 runs without a bug pass" in text
    rows = json.loads((tmp_path / "mutations.json").read_text())
    assert [r["name"] for r in rows] == ["identity", known["mask"], known["ops"]]
    assert [r["caught"] for r in rows] == [True, False, True]


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no planted bug is called nonsense"):
        run_mutations(tmp_path, ["nonsense"])


def test_the_picture_needs_rounding_and_padding():
    height, width = sample_picture().shape[:2]
    scale = 192 / height
    assert (width * scale) % 1 > 0.1 and round(width * scale) % 32
    assert (sample_picture() == sample_picture()).all()


def test_the_committed_table_holds_every_bug_found():
    """A bug that is added, or whose stage changes, is planted before it is committed."""
    table = Path(parity.__file__).parent / "results" / "mutations" / "mutations.json"
    rows = {row["name"]: row for row in json.loads(table.read_text()) if row["name"] in BY_NAME}
    assert rows.keys() == BY_NAME.keys()
    assert [name for name, row in rows.items() if not (row["caught"] and row["blamed"])] == []
    assert [n for n, row in rows.items() if row["what"] != BY_NAME[n].what] == []
