"""Models: detectron2's meta-architectures as Keras models."""

from tf_d2.modeling.model import D2Model, build_model

__all__ = ["D2Model", "build_model"]
