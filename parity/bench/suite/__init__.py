"""Measures the tables of this repository (`parity/results/bench`)."""
