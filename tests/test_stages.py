"""Traces as dictionaries, layouts, and the table of single computations."""

import numpy as np
import pytest

from parity.core.units import units
from tf_d2.stages import OPS, StageArrays, stage_array, to_nchw


def test_a_look_up_may_carry_the_files_prefix():
    trace = StageArrays({"backbone/p2": np.ones(1), "input/resized": np.zeros(2)})
    assert trace["steps/backbone/p2"] is trace["backbone/p2"]
    assert "steps/backbone/p2" in trace and "backbone/p2" in trace and "steps/backbone/p3" not in trace
    assert set(trace) == {"backbone/p2", "input/resized"}
    assert 3 not in trace


def test_a_missing_stage_lists_what_there_is():
    with pytest.raises(KeyError, match=r"no stage 'steps/backbone/p9'; this trace has backbone/p2"):
        StageArrays({"backbone/p2": np.ones(1)})["steps/backbone/p9"]


def test_feature_maps_become_nchw_and_nothing_else_does():
    maps = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert to_nchw(maps).shape == (2, 5, 3, 4) and to_nchw(maps)[1, 4, 2, 3] == maps[1, 2, 3, 4]
    assert to_nchw(maps).flags.c_contiguous
    assert to_nchw(maps[0]) is not maps and to_nchw(maps[0]).shape == (3, 4, 5)
    assert stage_array("roi_heads/0/0/pred_masks", maps) is maps
    assert stage_array("roi_heads/0/0/pred_keypoint_heatmaps", maps) is maps
    assert stage_array("roi_heads.mask_pooler", maps).shape == (2, 5, 3, 4)


def test_an_unknown_operation_is_named(demo_predictor):
    with pytest.raises(KeyError, match=r"unknown operation 'fly'; known: .*module, module_of_list, resize"):
        demo_predictor.run_op("fly", (), [])


def test_every_operation_of_the_parity_table_exists(demo_reference):
    import yaml

    config = yaml.safe_load(demo_reference.config)
    used = {unit.op for unit in units(config)}
    assert used <= OPS.keys()


def test_every_op_of_parity_is_there():
    from parity.core.units import OPS as known

    assert set(OPS) == set(known)
