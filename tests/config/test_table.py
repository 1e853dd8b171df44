"""Every name of the table leads to a part that reads the kind of configuration it is listed for, and to a layer."""

import dataclasses

import pytest

from tf_d2.config.table import PARTS, layer_of

ROWS = [(kind, name) for kind, parts in PARTS.items() for name in parts]


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_a_part_is_a_frozen_dataclass_that_reads_what_its_doors_say(kind, name):
    part = PARTS[kind][name]
    assert dataclasses.is_dataclass(part.config) and part.config.__dataclass_params__.frozen
    assert part.doors and set(part.doors) <= {"yacs", "lazy"}
    for door, method in {"yacs": "from_keys", "lazy": "from_lazy"}.items():
        assert door not in part.doors or callable(getattr(part.config, method, None)), method
    assert not (part.yacs and name.startswith("detectron2."))


@pytest.mark.parametrize("kind", PARTS)
def test_every_layer_can_be_imported_and_follows_from_the_configuration_class(kind):
    layers = {}
    for part in PARTS[kind].values():
        if part.layer is not None:  # precomputed proposals have none
            assert layers.setdefault(part.config, part.layer) == part.layer
            assert callable(layer_of(kind, object.__new__(part.config)))


def test_keys_of_a_part_are_known_keys():
    from tf_d2.config.defaults import INFERENCE

    for kind, name in ROWS:
        for field, key in getattr(PARTS[kind][name].config, "KEYS", {}).items():
            assert key in INFERENCE, (name, field)
