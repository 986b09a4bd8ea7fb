"""Running programs without a GPU: tile IR in NumPy."""
