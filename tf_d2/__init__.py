"""detectron2 models in TensorFlow."""
