"""Time and memory of PyTorch and TensorFlow, side by side in one run."""
