"""Every planted bug really changes what the model computes, and is gone afterwards.

A refactoring can take away what a planter changes, without any error. Whether the harness then names the
right stage is what the kill table shows (`tf-d2 parity mutations`), which takes minutes.
"""

from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf

import tf_d2
import weights
from parity.backends.results import named_outputs
from parity.backends.tf_ops import FUNCTIONS
from parity.core.opcases import all_cases
from parity.selftest.mutation_run import (
    OLDER,
    OLDER_RECORDINGS,
    RECORDINGS,
    embedded_demo,
    older_setup,
    recorded_setup,
    sample_picture,
)
from parity.selftest.mutation_run import RECORDED as CHECKOUT
from parity.selftest.mutations import BY_NAME, MUTATIONS
from parity.selftest.tf_planters import plant

DATA = Path(__file__).parents[2] / "data" / "modeling"
RECORDED = {"keypoint": "cascade_keypoint", "panoptic": "panoptic", "retinanet": "retinanet_bn"}
# a random model's unsure instances get into its panoptic picture only so, and some of its stuff is too small
COMBINING = [
    *("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.05),
    *("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 2000),
]


def bugs(*families):
    return [bug.name for bug in MUTATIONS if bug.model in families]


@pytest.fixture(scope="module", autouse=True)
def eagerly():
    tf.config.run_functions_eagerly(True)  # so that a changed function takes effect at the next call
    yield
    tf.config.run_functions_eagerly(False)


class Model:
    """A predictor of its own (bugs change it), and everything it computes without a bug."""

    def __init__(self, config, checkpoint, opts=(), dtype="float32", picture=None):
        self.picture = sample_picture() if picture is None else picture
        self.predictor = tf_d2.Predictor(config, checkpoint, opts=opts, dtype=dtype, fold_norms=False)
        if dtype != "float64":
            self.predictor.model.fold_norms()
        self.right = self.computed()

    def computed(self):
        return self.on_the_way() | named_outputs(self.predictor(self.picture))[0]

    def on_the_way(self):
        traced = dict(self.predictor.trace(self.picture))
        return traced | {v.path: v.numpy() for v in self.predictor.model._all_variables()}

    def differing(self):
        now = self.computed()
        assert now.keys() == self.right.keys()
        return self.different(now)

    def differs(self):
        """Whether anything does. The answer is computed only where nothing on the way to it shows the bug."""
        return bool(self.different(self.on_the_way()) or self.differing())

    def different(self, now):
        return [name for name, value in now.items() if not np.array_equal(value, self.right[name])]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Family -> Model, made when it is asked for; at the end all are as they were."""
    made = {}

    def get(family):
        if family not in made:
            made[family] = make(family, tmp_path_factory.mktemp(family))
        return made[family]

    yield get
    assert {family: model.differing() for family, model in made.items()} == {family: [] for family in made}


def make(family, folder):
    if family == "mask":
        return Model(embedded_demo() / "shapes.yaml", embedded_demo() / "shapes.pkl")
    if family == "semantic":
        return Model(embedded_demo() / "shapes.yaml", embedded_demo() / "shapes.pkl", dtype="float64")
    if family in OLDER:
        setup = older_setup(OLDER_RECORDINGS / f"{OLDER[family]}.h5", folder)
        return Model(setup.config, setup.weights, picture=np.load(setup.images[0]))
    if family in CHECKOUT:
        setup = recorded_setup(RECORDINGS / CHECKOUT[family], folder)
        return Model(setup.config, setup.weights, picture=np.load(setup.images[0]))
    with h5py.File(DATA / f"{RECORDED[family]}.h5") as file:
        (folder / "config.yaml").write_text(str(file.attrs["config"]))
        group = file["weights"]
        assert isinstance(group, h5py.Group)
        state = {key: np.asarray(item) for key, item in group.items()}
    weights.write_detectron2_pkl(folder / "model.pkl", state)
    return Model(folder / "config.yaml", folder / "model.pkl", COMBINING if family == "panoptic" else ())


# The models of many blocks run eagerly here, which takes seconds each time.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in bugs(*CHECKOUT, *OLDER)]


# Always run: the first bug of each model, and those as small as rounding.
SMALL = ("norm_eps_1.001e-5", "bias_off_1e-6")
FIRST = {BY_NAME[name].model: name for name in reversed(bugs("mask", "semantic", *RECORDED))}
WIDE = [
    pytest.param(name, marks=() if name in (*SMALL, *FIRST.values()) else pytest.mark.wide)
    for name in bugs("mask", "semantic", *RECORDED)
]


@pytest.mark.parametrize("name", [*WIDE, *SLOW])
def test_a_bug_changes_the_model(models, name):
    model = models(BY_NAME[name].model)
    with plant(name, model.predictor):
        assert model.differs()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if i == 0 else pytest.mark.wide) for i, n in enumerate(bugs("ops"))]
)
def test_a_bug_changes_the_operation_and_is_gone_afterwards(name):
    cases = [case for case in all_cases() if case.op in BY_NAME[name].blame]
    assert cases

    def computed():
        return [array for case in cases for array in FUNCTIONS[case.op](case.inputs, case.args)]

    def same(one, other):
        return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))

    right = computed()
    with plant(name):
        assert not same(computed(), right)
    assert same(computed(), right)
