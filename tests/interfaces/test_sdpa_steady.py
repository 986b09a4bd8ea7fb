"""The function of torch's name, called again: what it takes the short way is what it would take the long way, and corners stay torch's."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import fcgen  # noqa: E402
from fcgen.attend import calls, forward  # noqa: E402
from fcgen.errors import FcError  # noqa: E402

from .test_steady import half, launched  # noqa: E402, F401

sdpa = fcgen.scaled_dot_product_attention
M, N = 33, 50


def three(b=2, h=4, g=4, m=M, n=N):
    return half(b, h, m, 64), half(b, g, n, 64), half(b, g, n, 64)


MASKS = {"none": None, "bools, two axes": torch.ones(M, N, dtype=torch.bool).tril(), "a row of each batch": torch.rand(2, 1, 1, N) < 0.5,
         "floats": torch.randn(2, 4, M, N), "halves that broadcast": torch.randn(1, 4, 1, N).half(), "a column": torch.randn(1, 1, M, 1)}


@pytest.mark.parametrize("name", MASKS)
def test_a_call_that_is_known_launches_what_the_long_way_launches(launched, name, monkeypatch):  # noqa: F811
    held = [three() for _ in range(4)]
    mask, before = MASKS[name], held.pop()
    options = {"attn_mask": mask} if mask is not None else {"is_causal": True, "scale": 0.3}
    for _ in range(3):
        sdpa(*before, **options)
    each = len(launched) // 3
    with monkeypatch.context() as patch:
        patch.setattr(forward, "_unknown", None)
        patch.setattr("fcgen.torch.sdpa._attention", None)
        for x in held:
            sdpa(*x, **options)
    known = launched[3 * each:]
    del launched[:]
    calls.kinds.clear()
    calls.last = None
    for x in held:
        sdpa(*x, **options)
    different = lambda a, b: [k for k in dict(a[1]) if dict(a[1])[k] != dict(b[1])[k]]
    assert len(known) == len(launched) == 3 * each and [different(a, b) for a, b in zip(known, launched)] == [[]] * (3 * each)


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


REFUSED = {"heads without enable_gqa": lambda: sdpa(*three(g=2)), "both masks": lambda: sdpa(*three(), MASKS["bools, two axes"], is_causal=True),
           "a mask of another length": lambda: sdpa(*three(n=51), MASKS["bools, two axes"]), "a mask of halves in bf16": lambda: sdpa(
               *(t.bfloat16() for t in three()), MASKS["halves that broadcast"]), "a scale that is none": lambda: sdpa(*three(), scale=True),
           "a causal mask that is none": lambda: sdpa(*three(), is_causal=1), "dtypes that differ": lambda: sdpa(*three()[:2],
                                                                                                 three()[2].float()),
           "a transform": lambda: torch.func.functionalize(sdpa)(*three()), "meta": lambda: sdpa(*(t.to("meta") for t in three()))}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_stays_refused(launched, name):  # noqa: F811
    for _ in range(4):
        sdpa(*three(g=2), enable_gqa=True)
        sdpa(*three(), is_causal=True)
        sdpa(*three(), MASKS["bools, two axes"])
        sdpa(*three(), MASKS["halves that broadcast"])
    before = len(launched)
    for _ in range(2):
        with pytest.raises(FcError):
            REFUSED[name]()
    assert len(launched) == before


def test_batches_that_broadcast_and_autocast_go_the_long_way(launched, monkeypatch):  # noqa: F811
    q, k, v = three()
    for _ in range(4):
        sdpa(q, k, v)
    assert sdpa(q, k[:1], v[:1]).shape == q.shape and sdpa(q[0], k[0], v[0]).shape == q.shape[1:]
    kinds = dict(calls.kinds)
    with monkeypatch.context() as patch:  # without CUDA torch turns autocast off
        patch.setattr(torch, "is_autocast_enabled", lambda kind: True)
        patch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
        assert sdpa(q, k, v).dtype == torch.bfloat16
    with Mode():
        assert sdpa(q, k, v).shape == q.shape
    assert set(kinds) <= set(calls.kinds)
