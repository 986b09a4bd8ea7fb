"""Measurements on a GPU. Each script is run from the repository's root: `python -m benchmarks.NAME --help`."""
