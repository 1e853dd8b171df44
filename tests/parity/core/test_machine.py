"""Memory of a process, as told by the system."""

import math
import sys

import numpy as np
import pytest

from parity.core import machine


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_can_be_counted_anew():
    block = np.ones(8 << 20)  # 64 MiB
    now = machine.memory_mib()  # first: reading may take another page
    high = machine.peak_memory_mib()
    assert high >= now > 64
    del block
    if not machine.reset_peak_memory():
        pytest.skip("this system does not let a process reset its peak")
    assert machine.peak_memory_mib() < high - 32
    assert machine.peak_memory_mib() >= machine.memory_mib() - 8


def test_facts_name_the_machine():
    facts = machine.facts()
    assert facts["cores"] >= 1 and facts["memory_gib"] > 0 and facts["cpu"] and facts["python"]


def test_unknown_memory_is_not_a_number(monkeypatch):
    monkeypatch.setattr(machine, "_status_kib", lambda field: None)
    assert math.isnan(machine.memory_mib()) and machine.peak_memory_mib() > 0
