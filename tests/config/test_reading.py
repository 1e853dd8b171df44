"""Checks of values: what passes, and that an error names the place that was written."""

import pytest

from tf_d2.config import ConfigError
from tf_d2.config.reading import Fields, norm_name

INF = float("inf")


def fields(value):
    found = Fields()
    found.put("x", "MODEL.X", value)
    return found


@pytest.mark.parametrize(
    ("check", "value", "expected"),
    [
        (lambda f: f.flag("x"), True, True),
        (lambda f: f.integer("x", 2), 2, 2),
        (lambda f: f.integers("x", 0), (0, 3), (0, 3)),
        (lambda f: f.channels("x"), (), ()),
        (lambda f: f.number("x"), 3, 3.0),
        (lambda f: f.numbers("x", [2]), (1, 2.5), (1.0, 2.5)),
        (lambda f: f.nms_threshold("x"), 0, 0.0),
        (lambda f: f.levels("x"), (1, 2), ((1.0, 2.0),)),
        (lambda f: f.levels("x"), ((1,), (2,)), ((1.0,), (2.0,))),
        (lambda f: f.names("x", "abc"), ("b",), ("b",)),
        (lambda f: f.pyramid("x", {"a": 4, "b": 8}), ("a", "b"), ("a", "b")),
        (lambda f: f.choice("x", (1, 2)), 2, 2),
        (lambda f: f.norm("x"), "GN", "GN"),
    ],
)
def test_accepted(check, value, expected):
    got = check(fields(value))
    assert got == expected and repr(got) == repr(expected)


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (lambda f: f.flag("x"), 1, "True or False"),
        (lambda f: f.integer("x", 2), 1, "at least 2"),
        (lambda f: f.integer("x", 0), True, "whole number"),
        (lambda f: f.integers("x"), (1, 0), "at least 1"),
        (lambda f: f.channels("x"), [8], "channel numbers"),
        (lambda f: f.number("x"), INF, "finite"),
        (lambda f: f.number("x"), "1", "finite"),
        (lambda f: f.numbers("x", [2]), (1,), "expected 2 numbers"),
        (lambda f: f.nonzero("x"), (1, 0), "zero would divide"),
        (lambda f: f.nms_threshold("x"), -0.1, "negative IoU"),
        (lambda f: f.levels("x"), ((1,), 2), "lists of numbers"),
        (lambda f: f.names("x", "abc"), ("b", "b"), "occurs twice"),
        (lambda f: f.names("x", "abc"), ("d",), "makes only a, b, c"),
        (lambda f: f.pyramid("x", {"a": 4, "b": 16}), ("a", "b"), "strides must double"),
        (lambda f: f.choice("x", (1, 2)), True, "expected one of 1, 2"),
        (lambda f: f.norm("x"), "GM", "expected one of .*'GN'"),
    ],
)
def test_refused(check, value, message):
    with pytest.raises(ConfigError, match=f"^MODEL.X = .* is not supported: .*{message}"):
        check(fields(value))


def test_options_replace_fields_and_their_place():
    found = fields(1).overridden({"x": "MODEL.Y", "z": "MODEL.Z"}, {"MODEL.Y": 0})
    with pytest.raises(ConfigError, match=r"MODEL.Y = 0"):
        found.integer("x", 1)


def test_names_of_norms():
    assert norm_name(None) == norm_name("") == ""
    assert norm_name("python:torch.nn.modules.batchnorm.SyncBatchNorm") == "SyncBN"
    assert norm_name("python:mine.Norm") == "python:mine.Norm"
