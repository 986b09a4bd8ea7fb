"""Tests that launch kernels: `pytest -m gpu`."""
