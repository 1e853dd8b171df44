"""Exports for stock TensorFlow Serving: decoding, resizing, detection and rescaling in one graph."""

from tf_d2.serving.exporter import ExportReport, export
from tf_d2.serving.saved_model import ExportError

__all__ = ["ExportError", "ExportReport", "export"]
