"""tf-d2 zoo list and show."""

import json

import pytest
import typer
from typer.testing import CliRunner

from tf_d2.commands import zoo
from tf_d2.config import load_config, load_config_text


@pytest.fixture
def run():
    app = typer.Typer()
    zoo.register(app)
    return lambda *args: CliRunner().invoke(app, ["zoo", *args], env={"COLUMNS": "200"})


def test_list_as_json(run):
    rows = json.loads(run("list", "--json").stdout)
    assert len(rows) == 174
    for row in rows:
        assert row["supported"] == (row["reason"] is None)
        assert row["url"].startswith("https://")
    supported = json.loads(run("list", "--json", "--supported").stdout)
    unsupported = json.loads(run("list", "--json", "--unsupported").stdout)
    assert supported and unsupported and len(supported) + len(unsupported) == 174
    for row in supported[:5]:
        load_config(row["name"])


def test_list_as_a_table(run):
    result = run("list", "--family", "retinanet")
    assert result.exit_code == 0
    assert "COCO-Detection/retinanet_R_101_FPN_3x" in result.stdout
    assert "3 models: 3 run, 0 are no detectors" in result.stdout
    assert "11 are no detectors" in run("list").stdout


def test_without_a_command_the_models_are_listed(run):
    result = run()
    assert result.exit_code == 0 and "174 models" in result.stdout
    assert result.stdout == run("list").stdout


def test_an_unknown_family_lists_the_known(run):
    result = run("list", "--family", "yolo")
    assert result.exit_code == 1 and "Panoptic FPN" in result.stderr


def test_show(run):
    name = "COCO-Detection/retinanet_R_50_FPN_1x"
    result = run("show", name + ".yaml")
    assert result.exit_code == 0
    assert "190397773/model_final_bfca0b.pkl" in result.stdout
    assert load_config_text(result.stdout) == load_config(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("COCO-Detection/retinanet_R_50_FPN_2x", "did you mean COCO-Detection/retinanet_R_50_FPN"),
        ("catalog://ImageNetPretrained/FAIR/R-50-GN", "not a detector"),
    ],
)
def test_show_of_what_cannot_be_shown(run, name, message):
    result = run("show", name)
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output
