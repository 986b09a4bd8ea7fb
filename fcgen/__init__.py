"""fcgen: tiled kernels from a small Python DSL, as readable CUDA C++, checked without a GPU."""

__version__ = "0.1.0"
