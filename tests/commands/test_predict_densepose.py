"""What tf-d2 predict writes for DensePose: the compact file and the drawing."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from support.recordings import eagerly

import tf_d2
import weights
from tf_d2.commands.predict import files
from tf_d2.densepose import closest_vertices, from_file

FILE = Path(__file__).parents[1] / "data" / "point_rend_densepose" / "densepose_cse.npz"


def test_files_of_a_picture(tmp_path):
    with np.load(FILE) as file:
        arrays = {key: file[key] for key in file.files}
    (tmp_path / "config.yaml").write_text(str(arrays["config"]))
    state = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
    weights.write_detectron2_pkl(tmp_path / "model.pkl", state)
    predictor = tf_d2.Predictor(tmp_path / "config.yaml", tmp_path / "model.pkl", opts=["MODEL.WEIGHTS", ""])
    image = arrays["input/image"]
    with eagerly():
        result = predictor(image)
    written = files(result, image, predictor, "7", ["person"])
    assert {"json", "densepose.json", "densepose.png", "detections.png"} <= set(written)
    kept = json.loads(written["densepose.json"])
    found = closest_vertices(result["instances"], predictor.class_to_mesh, predictor.vertex_embeddings)
    assert len(kept["pred_densepose"]) == len(found) == len(result["instances"])
    for row, one in zip(kept["pred_densepose"], found, strict=True):
        np.testing.assert_array_equal(from_file(row), np.where(one.mask, one.vertices, -1))
    drawn = np.asarray(Image.open(io.BytesIO(written["densepose.png"])))
    assert drawn.shape == image.shape and (drawn != image[:, :, ::-1]).any()
    assert "densepose.png" not in files(result, image, predictor, "7", None)
