"""Models: detectron2's meta-architectures as Keras models."""

from tf_d2 import kernels

kernels.check_keras_backend()  # before any module below imports Keras

from tf_d2.modeling.model import D2Model, build_model  # noqa: E402

__all__ = ["D2Model", "build_model"]
