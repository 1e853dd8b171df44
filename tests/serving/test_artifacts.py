"""The files beside a SavedModel: what a server reads, and what is written down of where the model comes from."""

import json
import re

import pytest
import tensorflow as tf

from tf_d2.config import load_config
from tf_d2.serving import artifacts


def parsed(text):
    """A protocol buffer in text form as (name, value or list) pairs; comments are left out."""
    tokens = re.findall(r'"[^"]*"|[{}]|[\w.]+:?', re.sub(r"#.*", "", text))

    def block(position):
        found = []
        while position < len(tokens) and tokens[position] != "}":
            name, position = tokens[position].rstrip(":"), position + 1
            if tokens[position] == "{":
                value, position = block(position + 1)
                assert tokens[position] == "}"
            else:
                value = tokens[position].strip('"')
            found.append((name, value))
            position += 1
        return found, position

    found, end = block(0)
    assert end == len(tokens)
    return found


def test_the_server_finds_the_model_its_version_and_a_label():
    ((outer, (config,)),) = parsed(artifacts.models_config("shapes-1", 7))
    assert (outer, config[0]) == ("model_config_list", "config")
    values = dict(config[1])
    assert values["name"] == "shapes-1" and values["base_path"] == "/models/shapes-1"
    assert values["model_platform"] == "tensorflow"
    assert values["model_version_policy"] == [("specific", [("versions", "7")])]
    assert values["version_labels"] == [("key", "stable"), ("value", "7")]


def test_batches_of_every_size_are_allowed_and_none_is_padded():
    text = artifacts.batching_parameters()
    sizes = [int(value) for name, value in parsed(text) if name == "allowed_batch_sizes"]
    assert sizes == list(range(1, artifacts.MAX_BATCH_SIZE + 1))
    values = {name: dict(value) for name, value in parsed(text) if isinstance(value, list)}
    assert values["max_batch_size"] == {"value": str(sizes[-1])}
    assert "pad_variable_length_inputs" not in dict(parsed(text))


def test_metrics_are_where_prometheus_asks():
    ((name, values),) = parsed(artifacts.MONITORING)
    assert name == "prometheus_config" and dict(values)["enable"] == "true"
    assert '"/monitoring/prometheus/metrics"' in artifacts.MONITORING


@pytest.fixture(scope="module")
def config(demo_files):
    return load_config(demo_files / "shapes.yaml")


SOURCE = {
    "config": "MODEL: {}\n",
    "weights_name": "shapes.pkl",
    "weights_sha256": "ab" * 32,
    "precision": "float32",
}


def test_assets_say_where_a_model_comes_from(tmp_path, config):
    artifacts.write_assets(tmp_path, config, SOURCE, {"masks": "roi", "max_detections": 50})
    record = json.loads((tmp_path / "assets" / "export.json").read_text())
    assert record["weights"] == {"name": "shapes.pkl", "sha256": "ab" * 32}
    assert record["options"] == {"masks": "roi", "max_detections": 50} and record["precision"] == "float32"
    assert record["meta_architecture"] == "GeneralizedRCNN" and record["tensorflow"] == tf.__version__
    assert (tmp_path / "assets" / "config.yaml").read_text() == "MODEL: {}\n"
    names = tmp_path / "assets" / "class_names.txt"
    assert record["class_names"] == (names.read_text().splitlines() if names.exists() else [])
    assert not (tmp_path / "assets" / "keypoint_names.txt").exists()  # this model has none


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A SavedModel with a signature like an export's, and nothing behind it."""
    folder = tmp_path_factory.mktemp("saved")

    class Nothing(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "inputs")])
        def serve(self, inputs):
            count = tf.shape(inputs)[0]
            return {
                "detection_boxes": tf.zeros([count, 5, 4]),
                "detection_scores": tf.zeros([count, 5]),
                "num_detections": tf.zeros([count], tf.int32),
            }

    model = Nothing()
    tf.saved_model.save(model, str(folder), signatures={"serving_default": model.serve})
    return folder


def test_the_table_of_a_signature_is_read_from_the_model(saved):
    rows = artifacts.signature_table(saved, "serving_default").split("\n")
    assert rows[2].startswith("| in | `inputs` | uint8 | [B, ?, ?, 3] | ")
    assert [row.split(" | ")[1] for row in rows[3:]] == [
        "`detection_boxes`",
        "`detection_scores`",
        "`num_detections`",
    ]
    assert " | float32 | [B, 5, 4] | " in rows[3] and " | int32 | [B] | " in rows[5]
    assert all(row.rstrip(" |").rpartition("| ")[2] for row in rows[2:])  # each says what it means


def test_a_signature_that_is_not_there_is_an_error(saved):
    with pytest.raises((KeyError, ValueError, IndexError)):
        artifacts.signature_table(saved, "serving_nothing").index("`inputs`")
