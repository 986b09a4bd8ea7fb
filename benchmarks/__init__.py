"""Measurements of fcgen. Every script runs from the repository's root as `python -m benchmarks.NAME`, and with `--dry` without a GPU."""
