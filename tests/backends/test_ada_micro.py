"""What the GPU tests of instruction wrappers will run compiles: all of them, in one module."""

from __future__ import annotations

import re

import pytest

from tests.gpu import micro


def test_every_kernel_compiles_without_complaints() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    made = micro.compiled(micro.source("sm_89"), "sm_89", "micro")
    assert not made.warnings
    assert {f"t_{n}" for n in re.findall(r" t_(\w+)\(", "\n".join(micro.kernels("sm_89")))} == set(made.resources())
