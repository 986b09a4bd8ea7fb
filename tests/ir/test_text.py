"""Kernels print, parse back and print again identically."""

from __future__ import annotations

import pytest

from fcgen.ir.ops import verify
from fcgen.ir.text import parse_kernel, print_kernel

from .programs import machine_kernel, same, tile_kernel

KERNELS = {"tile": tile_kernel, "machine": machine_kernel}


@pytest.mark.parametrize("name", KERNELS)
def test_round_trip(name):
    kernel = verify(KERNELS[name]())
    text = print_kernel(kernel)
    again = parse_kernel(text, "k.fcir")
    assert print_kernel(again) == text
    same(kernel, again)
