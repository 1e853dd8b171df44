"""What the detectron2 backend knows of detectron2's projects: which are needed, where they are looked for, and the
operation that one of them has on GPUs only."""

import itertools
import math
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch

from parity.backends import detectron2_projects as projects
from parity.core.job import JobError


@pytest.mark.parametrize(
    ("node", "needed"),
    [
        ({"META_ARCHITECTURE": "GeneralizedRCNN", "ROI_HEADS": {"NAME": "StandardROIHeads"}}, []),
        ({"META_ARCHITECTURE": "TensorMask", "BACKBONE": {"NAME": "x"}}, ["tensormask"]),
        (
            {
                "META_ARCHITECTURE": "PanopticDeepLab",
                "BACKBONE": {"NAME": "build_resnet_deeplab_backbone"},
                "SEM_SEG_HEAD": {"NAME": "PanopticDeepLabSemSegHead"},
            },
            ["panoptic_deeplab"],
        ),
        (
            {
                "META_ARCHITECTURE": "SemanticSegmentor",
                "BACKBONE": {"NAME": "build_resnet_deeplab_backbone"},
                "SEM_SEG_HEAD": {"NAME": "DeepLabV3PlusHead"},
            },
            ["deeplab"],
        ),
        ({"META_ARCHITECTURE": "GeneralizedRCNN", "POINT_HEAD": {}}, ["point_rend"]),
        (  # a head of all defaults, whose section is not written
            {"META_ARCHITECTURE": "GeneralizedRCNN", "ROI_MASK_HEAD": {"NAME": "PointRendMaskHead"}},
            ["point_rend"],
        ),
        ({"META_ARCHITECTURE": "GeneralizedRCNN", "ROI_HEADS": {"NAME": "DensePoseROIHeads"}}, ["densepose"]),
        (
            {"META_ARCHITECTURE": "GeneralizedRCNN", "PROPOSAL_GENERATOR": {"NAME": "TridentRPN"}},
            ["tridentnet"],
        ),
    ],
)
def test_projects_that_a_model_needs(node, needed):
    assert [package for package, _ in projects.projects_of(node)] == needed


def test_a_package_installed_with_detectron2_is_taken_first(monkeypatch):
    inside = types.ModuleType("detectron2.projects.deeplab")
    for name in ("detectron2", "detectron2.projects"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "deeplab", types.ModuleType("deeplab"))
    monkeypatch.setitem(sys.modules, inside.__name__, inside)
    assert projects.project("deeplab") is inside
    monkeypatch.setitem(sys.modules, inside.__name__, None)
    assert projects.project("deeplab") is sys.modules["deeplab"]


def test_a_package_that_is_nowhere_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tridentnet", None)
    with pytest.raises(JobError, match=r"the package tridentnet .*put its folder .* on PYTHONPATH"):
        projects.project("tridentnet")


def test_a_package_without_its_compiled_operation_gets_one(monkeypatch, tmp_path):
    package = tmp_path / "tensormask"
    package.mkdir()
    (package / "__init__.py").write_text("from tensormask import _C\nswap = _C.swap_align2nat_forward\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("tensormask", "tensormask._C", "detectron2.projects.tensormask"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert projects.project("tensormask").swap is projects.swap_align2nat
    for name in ("tensormask", "tensormask._C"):
        monkeypatch.delitem(sys.modules, name)


def by_definition(x, unit, outside):
    """The same as a sum over sixteen neighbours, one value at a time."""
    n, channels, height, width = x.shape
    side = math.isqrt(channels)
    x = x.reshape(n, side, side, height, width)
    new, rows, columns = unit * side, -(-height // unit), -(-width // unit)
    y = np.zeros([n, new, new, rows, columns])

    def neighbours(at):
        low = math.floor(at)
        return [(low, 1 - (at - low)), (low + 1, at - low)]

    def value(image, *place):
        inside = all(0 <= i < size for i, size in zip(place, x.shape[1:], strict=True))
        return x[(image, *place)] if inside else outside

    for image, v, u, row, column in np.ndindex(y.shape):
        at = [(v + 0.5) / unit - 0.5, (u + 0.5) / unit - 0.5]
        at += [unit * i + k - new / 2 + 0.5 for i, k in ((row, v), (column, u))]
        for corner in itertools.product(*map(neighbours, at)):
            weight = math.prod(w for _, w in corner)
            y[image, v, u, row, column] += weight * value(image, *(i for i, _ in corner))
    return y.reshape(n, new * new, rows, columns)


@pytest.mark.parametrize(("unit", "side", "height", "width"), [(1, 3, 4, 2), (2, 3, 3, 5), (4, 2, 5, 3)])
def test_aligned_masks_become_natural_ones(unit, side, height, width):
    x = np.random.default_rng(unit).normal(size=[2, side * side, height, width])
    got = projects.swap_align2nat(torch.from_numpy(x), unit, -6.0).numpy()
    np.testing.assert_allclose(got, by_definition(x, unit, -6.0), rtol=0, atol=1e-13)
    assert projects.swap_align2nat(torch.from_numpy(x).float(), unit, -6.0).dtype == torch.float32


def test_panoptic_deeplab_is_imported_without_what_only_its_training_reads(monkeypatch, tmp_path):
    package = tmp_path / "panoptic_deeplab"
    package.mkdir()
    (package / "__init__.py").write_text("from panopticapi.utils import rgb2id\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("panopticapi", "panopticapi.utils", "panoptic_deeplab")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(JobError, match="training needs it"):
        projects.project("panoptic_deeplab").rgb2id()
    for name in names:
        monkeypatch.delitem(sys.modules, name)


def test_things_that_the_configuration_says():
    model: Any = types.SimpleNamespace(meta="of a data set")
    section = {"THING_IDS": [], "LABEL_DIVISOR": 1000}
    cfg = types.SimpleNamespace(MODEL={"PANOPTIC_DEEPLAB": section})
    projects.tell_things(model, cfg)
    assert model.meta == "of a data set"
    section |= {"THING_IDS": [11, 12], "LABEL_DIVISOR": 256}
    projects.tell_things(model, cfg)
    assert model.meta.label_divisor == 256
    assert list(model.meta.thing_dataset_id_to_contiguous_id.values()) == [11, 12]
