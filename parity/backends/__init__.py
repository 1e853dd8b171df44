"""What can be compared. Each backend is one file here, a program that runs under the interpreter it is asked for
(`python -m parity.backends.tf --job job.json`, see `parity.backends.driver`), and one line below."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """How a backend is named and started.

    module: the program. torch: runs under the interpreter of `--torch-python` and reads a plain state dict. target:
    what follows its name and a colon ("" for nothing); such a backend gives the results of a file or a server, in
    float32.
    """

    module: str
    torch: bool = False
    target: str = ""


BACKENDS = {
    "torch": Kind("parity.backends.torch", torch=True),
    "detectron2": Kind("parity.backends.detectron2", torch=True),
    "tf": Kind("parity.backends.tf"),
    "tf-eager": Kind("parity.backends.tf"),
    "savedmodel": Kind("parity.backends.savedmodel", target="DIR"),
    "serving": Kind("parity.backends.serving", target="URL"),
    "onnxruntime": Kind("parity.backends.onnxruntime", target="FILE.onnx"),
    "openvino": Kind("parity.backends.openvino", target="FILE.onnx"),
}
