"""The library of kernels, written in the DSL."""
