"""The served model as a backend: what is asked of the server."""

from types import SimpleNamespace

import numpy as np
import pytest

from parity.backends.tf_served import Served
from tf_d2.client import ServingError


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("shapes", "shapes:predict"),
        ("v1/models/shapes:predict", "shapes:predict"),
        ("v1/models/shapes/versions/2", "shapes/versions/2:predict"),
    ],
)
def test_every_form_of_the_address_calls_the_same_model(name, called):
    """Nobody listens on port 9, so the error shows where the call went."""
    backend = Served(SimpleNamespace(target=f"http://127.0.0.1:9/{name}"))
    with pytest.raises(ServingError, match=f"http://127.0.0.1:9/v1/models/{called}: "):
        backend.run(np.zeros((4, 6, 3), np.uint8), None)
