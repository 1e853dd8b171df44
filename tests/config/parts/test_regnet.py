"""Widths and depths of RegNets, by hand and as detectron2 has them."""

import pytest

from tf_d2.config import RegNetConfig


def stages(depth, w_a, w_0, w_m, group_width):
    out = RegNetConfig(depth, w_a, w_0, w_m, group_width, 32, 0.0, "BN", ("s1",)).stages
    assert [stage.name for stage in out] == [f"s{i + 1}" for i in range(len(out))]
    assert [stage.stride for stage in out] == [2 ** (i + 2) for i in range(len(out))]
    return [(stage.blocks, stage.width, stage.groups) for stage in out]


def test_the_published_ones():
    x4 = [(2, 80, 2), (5, 240, 6), (14, 560, 14), (2, 1360, 34)]
    y4 = [(2, 128, 2), (6, 192, 3), (12, 512, 8), (2, 1088, 17)]
    assert stages(23, 38.65, 96, 2.43, 40) == x4
    assert stages(22, 31.41, 96, 2.24, 64) == y4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # no slope: one stage as wide as the start
        ((3, 0.0, 16, 2.0, 8), [(3, 16, 2)]),
        # 8, 16, 24, 32: powers 0, 1, 2 (log2 3 = 1.58), 2
        ((4, 8.0, 8, 2.0, 8), [(1, 8, 1), (1, 16, 2), (2, 32, 4)]),
        # a group wider than the stage is the stage; 32 channels become one group of 24, 40 become two
        ((1, 0.0, 8, 2.0, 24), [(1, 8, 1)]),
        ((1, 0.0, 32, 2.0, 24), [(1, 24, 1)]),
        ((1, 0.0, 40, 2.0, 24), [(1, 48, 2)]),
        # 2.5 groups of 16: a half rounds to the even number
        ((1, 0.0, 40, 2.0, 16), [(1, 32, 2)]),
        ((1, 0.0, 56, 2.0, 16), [(1, 64, 4)]),
    ],
)
def test_by_hand(arguments, expected):
    assert stages(*arguments) == expected
