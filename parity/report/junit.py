"""JUnit XML: one test case per compared stage, for CI systems."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from parity.core.results import Comparison, StageResult, headline
from parity.core.status import Status

_FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(comparisons: Sequence[Comparison]) -> str:
    """The XML text. FAIL and NOT-COMPARED are failures, ERROR is an error; nothing is "skipped", which CI
    systems show as fine."""
    root = ElementTree.Element("testsuites", name="tf-d2 parity")
    for comparison in comparisons:
        root.append(_suite(comparison))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(comparison: Comparison) -> ElementTree.Element:
    stages = comparison.stages
    name = f"{comparison.candidate} against {comparison.reference} ({comparison.profile}) {comparison.image}"
    suite = ElementTree.Element(
        "testsuite",
        name=_clean(name.strip()),
        tests=str(len(stages) + 1),
        failures=str(
            sum(s.overall in (Status.FAIL, Status.NOT_COMPARED) for s in stages) + bool(comparison.exit_code)
        ),
        errors=str(sum(s.overall is Status.ERROR for s in stages)),
    )
    whole = ElementTree.SubElement(suite, "testcase", classname="parity", name="verdict")
    if comparison.exit_code:
        ElementTree.SubElement(
            whole,
            "failure",
            message=_clean("; ".join(t for t in (headline(comparison), comparison.caveat) if t)),
        )
    for stage in stages:
        suite.append(_case(stage))
    return suite


def _case(stage: StageResult) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=f"parity.{stage.rung}", name=_clean(stage.name))
    text = "; ".join(t for t in (stage.message, stage.forced_message) if t)
    if stage.bad:
        tag = "error" if stage.overall is Status.ERROR else "failure"
        ElementTree.SubElement(case, tag, message=_clean(f"{stage.overall} {stage.verdict}: {text}"))
    elif text or stage.waiver:
        out = ElementTree.SubElement(case, "system-out")
        out.text = _clean("; ".join(t for t in (stage.waiver and f"waived: {stage.waiver}", text) if t))
    return case


def _clean(text: str) -> str:
    """Without the characters XML cannot hold."""
    return _FORBIDDEN.sub("?", text)
