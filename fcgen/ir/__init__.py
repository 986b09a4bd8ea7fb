"""The two IRs: types, layouts, ops, verification and text."""

from . import text  # noqa: F401  (it says how `str` writes kernels and ops)
