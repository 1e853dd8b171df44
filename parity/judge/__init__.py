"""Judges two traces: which arrays agree, which do not, and where it starts."""
