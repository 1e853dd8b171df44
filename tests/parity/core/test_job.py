"""What a job's entries may look like."""

import pytest

from parity.core.job import JobError, ServedModel, read_served


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://host:8501/shapes", ServedModel("http://host:8501", "shapes")),
        ("http://host:8501/v1/models/shapes", ServedModel("http://host:8501", "shapes")),
        ("http://host:8501/v1/models/shapes/", ServedModel("http://host:8501", "shapes")),
        ("http://host:8501/v1/models/shapes:predict", ServedModel("http://host:8501", "shapes")),
        ("https://host/v1/models/shapes/versions/12:predict", ServedModel("https://host", "shapes", 12)),
        ("http://host/v1/models/shapes/labels/canary", ServedModel("http://host", "shapes", None, "canary")),
        ("http://host/shapes/versions/3", ServedModel("http://host", "shapes", 3)),
        ("http://proxy/tf/v1/models/shapes", ServedModel("http://proxy/tf", "shapes")),
        ("http://proxy/tf/shapes", ServedModel("http://proxy/tf", "shapes")),
        ("http://host:8501/models", ServedModel("http://host:8501", "models")),
        ("grpc://host:8500/shapes", ServedModel("grpc://host:8500", "shapes")),
    ],
)
def test_forms_of_a_served_model(text, expected):
    assert read_served(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "host:8501/shapes",
        "ftp://host/shapes",
        "http://host:8501",
        "http://host:8501/",
        "http://host:8501/v1/models",
        "http://host:8501/v1/models/",
        "http://host:8501/v1/models/shapes:classify",
        "http://host:8501/v1/models/shapes/versions/new",
    ],
)
def test_other_forms_are_refused_with_those_that_are_known(text):
    with pytest.raises(JobError, match=r"serving:http://HOST:8501/MODEL .* serving:grpc://HOST:8500/MODEL"):
        read_served(text)
