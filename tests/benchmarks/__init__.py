"""What the benchmarks do before they need a GPU."""
