"""Names and shapes of the blobs that Detectron's own model builder makes for its published configurations.

    python detectron_blobs.py CHECKOUT target.json.gz

The checkout is not changed; Caffe2's model helper is a stand-in that only notes parameters. Needs what
`detectron_oracle.py` needs, Cython apart.
"""

import gzip
import importlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from detectron_oracle import stand_ins

# detectron2's catalogue of Detectron's models: its name -> the configuration in the checkout
ROWS = {
    **{
        name: f"12_2017_baselines/{name}"
        for name in (
            "e2e_faster_rcnn_R-50-C4_1x",
            "e2e_faster_rcnn_R-50-FPN_1x",
            "e2e_faster_rcnn_R-101-FPN_1x",
            "e2e_faster_rcnn_X-101-32x8d-FPN_1x",
            "e2e_mask_rcnn_R-50-C4_1x",
            "e2e_mask_rcnn_R-50-FPN_1x",
            "e2e_mask_rcnn_R-101-FPN_1x",
            "e2e_mask_rcnn_X-101-32x8d-FPN_1x",
            "e2e_keypoint_rcnn_R-50-FPN_1x",
            "rpn_R-50-C4_1x",
            "rpn_R-50-FPN_1x",
        )
    },
    "fast_R-50-FPN_1x": "12_2017_baselines/fast_rcnn_R-50-FPN_1x",
    "e2e_mask_rcnn_R-50-FPN_2x_gn": "04_2018_gn_baselines/e2e_mask_rcnn_R-50-FPN_2x_gn",
}
Shape = list[int]


def _out(blobs: Any) -> Any:
    """What an operator returns: its outputs' names."""
    if isinstance(blobs, (list, tuple)):
        return blobs[0] if len(blobs) == 1 else tuple(blobs)
    return blobs


class Net:
    """A Caffe2 net whose operators do nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("Proto", "Clone"):
            return MagicMock()
        if name == "Python":  # an operator in Python: called with the function, then with blobs
            return lambda function: lambda blob_in, blob_out, **options: _out(blob_out)
        return lambda blob_in=None, blob_out=None, *rest, **options: _out(blob_out or blob_in)


class ModelHelper:
    """Caffe2's CNNModelHelper, as far as parameters go."""

    noted: dict[str, Shape]

    def __init__(self, **options: Any) -> None:
        self.net, self.param_init_net = Net(), Net()
        self.order, self.use_cudnn, self.ws_nbytes_limit = "NCHW", False, None
        self.params: list[str] = []
        self.weights: list[str] = []
        self.biases: list[str] = []

    def note(self, name: str, shape: Shape) -> str:
        type(self).noted[name] = [int(side) for side in shape]
        self.params.append(name)
        return name

    def create_param(self, param_name: str, initializer: Any, tags: Any, shape: Shape) -> str:
        return self.note(param_name, shape)

    def _layer(self, blob_out: str, shape: Shape, bias: int, no_bias: Any) -> str:
        self.weights.append(self.note(f"{blob_out}_w", shape))
        if not no_bias:
            self.biases.append(self.note(f"{blob_out}_b", [bias]))
        return blob_out

    def Conv(
        self, blob_in: Any, blob_out: str, dim_in: int, dim_out: int, kernel: int, **options: Any
    ) -> str:
        shape = [dim_out, dim_in // options.get("group", 1), kernel, kernel]
        return self._layer(blob_out, shape, dim_out, options.get("no_bias"))

    def ConvTranspose(
        self, blob_in: Any, blob_out: str, dim_in: int, dim_out: int, kernel: int, **options: Any
    ) -> str:
        return self._layer(blob_out, [dim_in, dim_out, kernel, kernel], dim_out, False)

    def FC(self, blob_in: Any, blob_out: str, dim_in: int, dim_out: int, **options: Any) -> str:
        return self._layer(blob_out, [dim_out, dim_in], dim_out, False)

    def SpatialGN(self, blob_in: Any, blob_out: str, dim_in: int, **options: Any) -> str:
        self.note(f"{blob_out}_s", [dim_in])
        self.note(f"{blob_out}_b", [dim_in])
        return blob_out

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda blob_in=None, blob_out=None, *rest, **options: _out(blob_out or blob_in)


def blobs(config: Path) -> dict[str, Shape]:
    """Parameters of the model of one configuration."""
    settings = importlib.import_module("detectron.core.config")
    builder = importlib.import_module("detectron.modeling.model_builder")
    builder.optim.build_data_parallel_model = lambda model, build: build(model)
    builder.c2_utils.SuffixNet = lambda name, net, length, out: (MagicMock(), out)
    ModelHelper.noted = {}
    settings.merge_cfg_from_file(str(config))
    settings.cfg.NUM_GPUS = 1
    settings.assert_and_infer_cfg(cache_urls=False, make_immutable=False)
    builder.create(settings.cfg.MODEL.TYPE, train=False)
    return ModelHelper.noted


def main(checkout: str, target: str) -> None:
    """One process per configuration, since Detectron's settings are global."""
    root = Path(checkout).resolve()
    if target.endswith(".yaml"):  # in the child
        sys.path.insert(0, str(root))
        stand_ins()
        yaml = importlib.import_module("yaml")
        load = yaml.load
        yaml.load = lambda stream, loader=yaml.SafeLoader: load(
            stream, loader
        )  # an older one needs no loader
        cnn: Any = MagicMock()
        cnn.CNNModelHelper = ModelHelper
        sys.modules["caffe2.python"].cnn = cnn  # pyright: ignore[reportAttributeAccessIssue]
        for name in ("cython_nms", "cython_bbox"):
            sys.modules[f"detectron.utils.{name}"] = MagicMock()
        print(json.dumps(blobs(Path(target))))
        return
    import subprocess

    found = {}
    for name, config in ROWS.items():
        command = [sys.executable, __file__, checkout, str(root / "configs" / f"{config}.yaml")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    with open(target, "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.write(json.dumps(found, sort_keys=True).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
