"""`fcgen.integrations.flash_backend`: what torch's flash attention operators become, and that nothing changes before it is asked for."""

from __future__ import annotations

import itertools

import pytest

from fcgen.errors import FcError

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
from fcgen.integrations import flash_backend  # noqa: E402

F = torch.nn.functional
pytestmark = pytest.mark.filterwarnings("ignore")


def half(*shape):
    return torch.randn(*shape).half()


def exact(q, k, v, causal):
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(k.shape[-2] - q.shape[-2]) if causal else None
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=seen)


@pytest.mark.parametrize("causal", [False, True])
def test_dense_operators(kernels, causal):
    q, k, v = half(2, 3, 20, 16), half(2, 3, 33, 16), half(2, 3, 33, 16)
    out, lse, *rest = flash_backend.sdpa(q.requires_grad_(), k, v, is_causal=causal)
    assert (out - exact(q, k, v, causal)).abs().max() < 4e-3 and lse.shape == (2, 3, 20) and len(rest) == 7
    flat, also, *rest = flash_backend.flash(*(x.transpose(1, 2) for x in (q, k, v)), None, None, 20, 33, 0.0, causal, False)
    assert torch.equal(flat.transpose(1, 2), out) and torch.equal(also, lse) and len(rest) == 3


def test_packed_sequences(kernels):
    at = torch.tensor([0, *itertools.accumulate([7, 0, 13])], dtype=torch.int32)
    q, k, v = (half(20, 2, 16) for _ in range(3))
    out, lse, *_ = flash_backend.flash(q, k, v, at, at, 13, 13, 0.0, True, False, window_size_left=-1)
    want = torch.cat([exact(*(x[a:b].transpose(0, 1) for x in (q, k, v)), True).transpose(0, 1) for a, b in ((0, 7), (7, 20))])
    assert (out - want).abs().max() < 4e-3 and lse.shape == (2, 20)


@pytest.mark.parametrize(("named", "said"), [({"alibi_slopes": half(2)}, "alibi_slopes"), ({"block_table": half(2)}, "block_table"), ({"seqused_k": half(2)}, "seqused_k")])
def test_refused(kernels, named, said):
    q = half(2, 9, 2, 16)
    with pytest.raises(FcError, match=said):
        flash_backend.flash(q, q, q, None, None, 9, 9, 0.0, False, False, **named)
    for dropout, debug in ((0.1, False), (0.0, True)):
        with pytest.raises(FcError, match=r"dropout|debug"):
            flash_backend.sdpa(q, q, q, dropout, False, debug)
    assert not kernels


def test_it_is_registered_activated_and_undone():
    names = torch.nn.attention
    if not hasattr(names, "register_flash_attention_impl"):
        with pytest.raises(FcError, match=r"2\.11"):
            flash_backend.register()
        return
    assert "fcgen" not in names.list_flash_attention_impls()
    flash_backend.register()
    assert "fcgen" in names.list_flash_attention_impls() and names.current_flash_attention_impl() is None
    names.activate_flash_attention_impl("fcgen")
    assert names.current_flash_attention_impl() == "fcgen"
    names.restore_flash_attention_impl()
    assert names.current_flash_attention_impl() is None
    torch.nn.attention._registry._FLASH_ATTENTION_IMPLS.pop("fcgen")
