"""What is said about CPU kernels, and what the command line chooses."""

import os

import pytest
import tensorflow as tf

import tf_d2
from tf_d2 import kernels
from tf_d2.commands.options import choose_kernels


@pytest.fixture
def machine(monkeypatch):
    """``machine(enabled, **environment)``: an x86-64 processor, oneDNN on or off, and only these two variables."""

    def be(enabled, **environment):
        monkeypatch.setattr(kernels, "onednn_enabled", lambda: enabled)
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
        for name in (kernels.ONEDNN, kernels.FROZEN_WEIGHTS):
            monkeypatch.setenv(
                name, environment.get(name, "")
            )  # so that it is restored whatever happens to it
            if name not in environment:
                del os.environ[name]

    return be


BOTH = "TF_ENABLE_ONEDNN_OPTS=1 TF_ONEDNN_ASSUME_FROZEN_WEIGHTS=1"


@pytest.mark.parametrize(
    "enabled, environment, said",
    [
        (False, {}, f"faster with {BOTH} in"),
        (True, {}, "faster with TF_ONEDNN_ASSUME_FROZEN_WEIGHTS=1 in"),
        (False, {kernels.FROZEN_WEIGHTS: "1"}, "faster with TF_ENABLE_ONEDNN_OPTS=1 in"),
        (True, {kernels.FROZEN_WEIGHTS: "1"}, None),
        (True, {kernels.FROZEN_WEIGHTS: "0"}, None),
        (False, {kernels.ONEDNN: "0"}, None),
        (None, {}, None),
    ],
)
def test_advice(machine, enabled, environment, said):
    machine(enabled, **environment)
    advice = kernels.advice()
    assert advice is None if said is None else said in advice
    assert "\n" not in (advice or "")


def test_advice_is_for_one_kind_of_processor(machine, monkeypatch):
    machine(False)
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert kernels.advice() is None


def test_advice_is_given_once(machine, caplog):
    machine(True)
    kernels.advise.cache_clear()
    for _ in range(2):
        kernels.advise()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_tensorflow_tells_what_it_runs():
    """A part of TensorFlow that is not public: if it goes, nothing is said any more."""
    assert kernels.onednn_enabled() in (True, False)


@pytest.mark.parametrize(
    "environment, chosen",
    [
        ({}, ("1", "1")),
        ({kernels.ONEDNN: "0"}, ("0", "1")),
        ({kernels.FROZEN_WEIGHTS: "0"}, (None, "0")),
    ],
)
def test_command_line_chooses(machine, environment, chosen):
    machine(None, **environment)
    choose_kernels()
    assert tuple(os.environ.get(name) for name in (kernels.ONEDNN, kernels.FROZEN_WEIGHTS)) == chosen


def test_bfloat16_is_refused_where_it_does_not_run(monkeypatch):
    """ONEDNN_MAX_CPU_ISA=AVX2 on a processor with AVX-512 is such a setting."""

    def fail(*arguments):
        raise tf.errors.AbortedError(None, None, "could not create a primitive descriptor")

    kernels.bfloat16_runs.cache_clear()
    monkeypatch.setattr(tf.nn, "conv2d", fail)
    with pytest.raises(ValueError, match="ONEDNN_MAX_CPU_ISA"):
        tf_d2.load_model("COCO-Detection/faster_rcnn_R_50_FPN_1x", dtype="bfloat16")
    kernels.bfloat16_runs.cache_clear()
