"""Models: detectron2's meta-architectures as Keras models."""

from tf_d2.modeling.meta_arch import META_ARCHITECTURES, D2Model, build_model

__all__ = ["META_ARCHITECTURES", "D2Model", "build_model"]
