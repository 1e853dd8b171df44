"""Layers under detectron2's module names."""

from tf_d2 import kernels

kernels.check_keras_backend()  # before any module of this package imports Keras
