"""The widths and depths that a RegNet's few numbers stand for.

Source: ``generate_regnet_parameters`` and ``adjust_block_compatibility`` of
    detectron2/modeling/backbone/regnet.py.
"""

from __future__ import annotations

from collections import Counter
from math import log
from typing import NamedTuple

from tf_d2.config.schema import RegNetConfig

WIDTH_MULTIPLE = 8


class RegNetStage(NamedTuple):
    """One stage: ``name`` "s1", "s2", ...; ``blocks`` blocks of ``width`` channels, their 3x3 convolution in
    ``groups`` groups; ``stride`` in pixels of its output.
    """

    name: str
    blocks: int
    width: int
    groups: int
    stride: int


def regnet_stages(config: RegNetConfig) -> tuple[RegNetStage, ...]:
    """All stages of the network, in order; the stem before them has stride 2 and every stage doubles it."""
    blocks_of_width = Counter(_block_width(config, index) for index in range(config.depth))
    stages = []
    for index, (width, blocks) in enumerate(sorted(blocks_of_width.items())):
        group_width = min(config.group_width, width)
        # A stage is as wide as a whole number of groups; a half rounds to even.
        groups = max(1, round(width / group_width))
        stages.append(RegNetStage(f"s{index + 1}", blocks, groups * group_width, groups, 4 * 2**index))
    return tuple(stages)


def _block_width(config: RegNetConfig, index: int) -> int:
    """A linear law, moved to the nearest power of ``w_m`` (times ``w_0``), then to a multiple of 8."""
    linear = index * config.w_a + config.w_0
    power = round(log(linear / config.w_0) / log(config.w_m))
    return round(config.w_0 * config.w_m**power / WIDTH_MULTIPLE) * WIDTH_MULTIPLE
