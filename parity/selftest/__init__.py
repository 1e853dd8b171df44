"""Bugs planted in the TensorFlow model: does parity find each one, and name where it is?"""
