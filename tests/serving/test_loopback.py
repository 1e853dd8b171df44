"""Client, server and exported demo together; the server merges requests with TensorFlow's own batch scheduler."""

from __future__ import annotations

import importlib.util
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tf_d2
from tf_d2.client import BadImageError, Client, ServingError

from . import loopback
from .conftest import DEMO, encoded

DEPLOY = Path(__file__).parents[2] / "deploy"


def script(name: str) -> ModuleType:
    """A script of deploy/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DEPLOY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def addresses(demo_export: SimpleNamespace) -> Iterator[tuple[str, str, str]]:
    with loopback.serving(demo_export.root, batching=True) as addresses:
        yield addresses


@pytest.fixture(params=["rest", "grpc"])
def client(request: pytest.FixtureRequest, addresses: tuple[str, str, str]) -> Iterator[Client]:
    with Client(addresses[request.param == "grpc"], addresses[2]) as client:
        yield client


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    a, b = found["instances"], expected["instances"]
    assert a.image_size == b.image_size
    np.testing.assert_array_equal(a.pred_classes, b.pred_classes)
    np.testing.assert_allclose(a.pred_boxes, b.pred_boxes, rtol=0, atol=1e-3)
    np.testing.assert_allclose(a.scores, b.scores, rtol=0, atol=1e-5)
    assert (a.pred_masks != b.pred_masks).sum() <= 2


def test_client_gives_what_predictor_gives(client: Client, demo_predictor: Any) -> None:
    image = tf_d2.read_image(DEMO / "shapes.png")
    expected = demo_predictor(image)
    assert client.ready()
    assert_same(client.predict(image), expected)
    assert_same(client.predict_file(DEMO / "shapes.png"), expected)
    assert_same(client.predict_batch(image[None, :, :, ::-1])[0], expected)


def test_merged_requests_keep_to_themselves(client: Client, picture: np.ndarray) -> None:
    """Seven users at once, some of them with files that cannot be used, pictures of one network size."""
    good = [encoded(picture), encoded(picture[:, ::-1]), encoded(picture[::-1])]
    bad = [
        b"",
        encoded(picture, "JPEG")[:500],
        encoded(np.zeros((1, 5000, 3), np.uint8)),
        encoded(picture, "GIF"),
    ]
    alone = [client.predict_bytes([data])[0] for data in good]
    with ThreadPoolExecutor(7) as pool:
        answers = list(
            pool.map(lambda d: client.predict_bytes([d], bad_images="return")[0], [*good, *bad] * 3)
        )
    for i, answer in enumerate(answers):
        if i % 7 < 3:
            assert_same(answer, alone[i % 7])
        else:
            assert isinstance(answer, BadImageError)


def test_wrong_requests_are_answered_with_an_error(
    addresses: tuple[str, str, str], picture: np.ndarray
) -> None:
    rest, rpc, name = addresses
    for url in (rest, rpc):
        with Client(url, name) as client:
            for wrong in (np.zeros((1, 8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.uint8)):
                with pytest.raises(ServingError, match=r"HTTP 400|INVALID_ARGUMENT"):
                    client.predict_batch(wrong)
    with Client(rpc, name) as client:  # JSON has no dtypes
        for wrong in (np.full((1, 8, 8, 3), np.nan, np.float32), np.zeros((1, 8, 8, 3), np.int32)):
            with pytest.raises(ServingError, match="INVALID_ARGUMENT"):
                client.predict_batch(wrong)
            with ThreadPoolExecutor(4) as pool:  # a wrong dtype among requests that are merged
                good = [pool.submit(client.predict, picture[:, :, ::-1]) for _ in range(3)]
                with pytest.raises(ServingError, match="INVALID_ARGUMENT"):
                    client._transport.predict("serving_bytes", {"image_bytes": np.zeros(1, np.float32)})
            for answer in good:
                assert_same(answer.result(), good[0].result())
                assert len(answer.result()["instances"]) > 20
    with Client(rest, "other") as client, pytest.raises(ServingError, match="HTTP 404"):
        client.predict(picture)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"inputs": {"image_bytes": ["text"]}, "signature_name": "serving_bytes"}', 400),
        (b'{"inputs": {"inputs": [[[[NaN, 1, 2]]]]}}', 400),
        (b'{"inputs": {"inputs": [[[["a", 1, 2]]]]}}', 400),
        (b'{"inputs": {"image": []}}', 400),
        (b'{"signature_name": "no", "inputs": {}}', 400),
        (b'{"signature_name": "serving_bytes", "instances": [{"b64": "AAAA"}]}', 200),
    ],
)
def test_rest_bodies(addresses: tuple[str, str, str], body: bytes, status: int) -> None:
    url = f"{addresses[0]}/v1/models/{addresses[2]}:predict"
    try:
        with urllib.request.urlopen(url, body, timeout=60) as response:
            assert status == response.status
            assert json.load(response)["predictions"][0]["image_status"] == 1
    except urllib.error.HTTPError as error:
        with error:
            assert error.code == status
            assert json.load(error)["error"]


def test_parameters_are_the_exports(demo_export: SimpleNamespace) -> None:
    text = (demo_export.folder / "batching_params.pbtxt").read_text()
    assert loopback.batching_parameters(text) == {
        "max_batch_size": 8,
        "batch_timeout_micros": 5000,
        "max_enqueued_batches": 100,
        "num_batch_threads": 2,
        "allowed_batch_sizes": list(range(1, 9)),
    }


def test_load_test_prints_a_table(
    addresses: tuple[str, str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_test = script("load_test")
    arguments = ["load_test.py", addresses[1], addresses[2], str(DEMO / "shapes.png")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--seconds", "0.5", "--concurrency", "2"])
    load_test.main()
    cells = capsys.readouterr().out.splitlines()[-1].split("|")
    assert cells[1].strip() == "2"
    assert int(cells[6]) >= 2
    assert cells[7].strip() == "0"
    monkeypatch.setattr(sys, "argv", [*arguments[:1], "grpc://example.org:8500", *arguments[2:]])
    with pytest.raises(SystemExit):
        load_test.main()
    assert "--remote" in capsys.readouterr().err
