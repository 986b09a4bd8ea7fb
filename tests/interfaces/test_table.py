"""The table of docs/interfaces.md is true: what it says is taken runs, what it says is refused is an FcError."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
from torch.nn.attention.flex_attention import create_block_mask  # noqa: E402

import fcgen  # noqa: E402
from fcgen import masks, scores  # noqa: E402
from fcgen.compat import flash_attn_interface as flash  # noqa: E402
from fcgen.errors import FcError  # noqa: E402

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "interfaces.md").read_text(encoding="utf-8")
ROWS = [[c.strip() for c in line.strip("|").split("|")] for line in TEXT.split("## What each takes")[1].splitlines() if line.startswith("| ")]
(_, *NAMES), BODY = ROWS[0], {name: cells for name, *cells in ROWS[1:]}
CELLS = [(what, name, word) for what, cells in BODY.items() for name, word in zip(NAMES, cells) if word != "-"]
M, N = 9, 12


def given(packed, m=M, n=N, h=4, g=4, d=16, e=None, dtype=torch.float16, kv=None, device="cpu"):
    """q, k, v, packed or [B, H, M, D]."""
    of = lambda length, heads, size, dtype: torch.randn((length, heads, size) if packed else (1, heads, length, size)).to(dtype).to(device)
    return of(m, h, d, dtype), of(n, g, d, kv or dtype), of(n, g, e or d, kv or dtype)


def options(what, name, x):
    """The arguments by which an interface is asked for it."""
    flex, sdpa, flash_like = name == "flex_attention", name.startswith("scaled"), name.startswith("flash")
    block = lambda mask: {"block_mask": create_block_mask(mask, None, None, M, N, device="cpu")}
    bools, bias, shift = torch.ones(M, N, dtype=torch.bool).tril(1), torch.randn(1, 4, M, N), N - M
    read = bools.to(torch.uint8)
    return {
        "causal, aligned at the start": {"is_causal": True} if sdpa else block(lambda b, h, i, j: i >= j) if flex else {"causal": "top_left"},
        "causal, aligned at the end": block(lambda b, h, i, j: i + shift >= j) if flex else {"causal": True if flash_like else "bottom_right"},
        "a window": block(lambda b, h, i, j: (i + shift - j < 4) & (i + shift >= j)) if flex else {"window_size": (3, 0)} if flash_like
        else {"window": (3, 0)} if name == "attention_varlen" else {"mask": masks.window(3, 0, shift)},
        "a mask function": block(lambda b, h, i, j: (i + j) % 3 != 0) if flex else {"mask": lambda b, h, i, j: (i + j) % 3 != 0},
        "a mask of bools": {"attn_mask": bools} if sdpa else block(lambda b, h, i, j: bools[i, j]) if flex else
        {"mask": lambda b, h, i, j: read[i, j] != 0},
        "a score function": {"score_mod" if flex else "score": lambda s, b, h, i, j: s * 0.5},
        "a bias tensor": {"attn_mask": bias} if sdpa else {"score_mod": lambda s, b, h, i, j: s + bias[b, h, i, j]} if flex else
        {"score": scores.bias(bias)},
        "soft cap": {"softcap": 3.0} if flash_like else {"score_mod": lambda s, b, h, i, j: 3.0 * torch.tanh(s / 3.0)} if flex else {"score": scores.soft_cap(3.0)},
        "sinks": {"sinks": torch.randn(4)},
        "dropout": {"dropout_p": 0.5} if sdpa else {"dropout": fcgen.Dropout(0.5, 1)},
        "a scale of any sign": {"softmax_scale" if flash_like else "scale": -0.2},
        "the log-sum-exp": {"return_attn_probs" if flash_like else "return_lse": True},
        "an output to write to": {"out": torch.empty_like(x[0])}, "an output that overlaps an input": {"out": x[0]},
        "grouped heads": {"enable_gqa": True} if sdpa or flex else {}, "heads that do not divide": {"enable_gqa": True} if sdpa or flex else {},
    }.get(what, {})


SHAPES = {"grouped heads": {"g": 2}, "heads that do not divide": {"g": 3}, "a head size of the values": {"e": 24}, "f32 tensors": {"dtype": torch.float32},
          "head sizes that are no multiple of 8": {"d": 20}, "head sizes beyond 512": {"d": 520}, "no keys at all": {"n": 0},
          "dtypes that differ": {"kv": torch.bfloat16}, "tensors without memory (meta)": {"device": "meta"}}


def call(name, x, more):
    if name == "attention":
        return fcgen.attention(*x, **more)
    cu = [torch.tensor([0, t.shape[0]], dtype=torch.int32) for t in x[:2]]
    if name == "attention_varlen":
        return fcgen.attention_varlen(*x, *cu, **more)
    if name == "flash_attn_varlen_func":
        return flash.flash_attn_varlen_func(*x, *cu, x[0].shape[0], x[1].shape[0], **more)
    if name == "flash_attn_func":
        return flash.flash_attn_func(*(t.transpose(1, 2) for t in x), **more)
    return getattr(fcgen, name)(*x, **more)


@pytest.mark.parametrize(("what", "name", "word"), CELLS, ids=[f"{what}: {name}" for what, name, _ in CELLS])
@pytest.mark.filterwarnings("ignore")
def test_a_cell(kernels, what, name, word):
    x = given("varlen" in name, **SHAPES.get(what, {}))
    assert word in ("yes", "refused")
    if word == "yes":
        again = (lambda f, *t: torch.vmap(f)(*(y[None] for y in t))[0]) if "vmap" in what else lambda f, *t: f(*t)
        more = options(what, name, x)
        result = again(lambda *t: call(name, t, more), *x)
        assert (result[0] if isinstance(result, tuple) else result).shape[-1] == x[2].shape[-1] and (kernels or what == "no keys at all")
    elif "vmap" in what:
        with pytest.raises(FcError):
            torch.vmap(lambda *t: call(name, t, {}))(*(t[None] for t in x))
    else:
        with pytest.raises(FcError):
            call(name, x, options(what, name, x))


def test_the_table_is_of_every_interface():
    assert NAMES == ["attention", "attention_varlen", "scaled_dot_product_attention", "flex_attention", "flash_attn_func", "flash_attn_varlen_func"]
    assert len(BODY) > 20 and all(len(cells) == len(NAMES) for cells in BODY.values())
    for page in set(re.findall(r"\]\((\w+\.md)\)", TEXT)):
        assert (Path(__file__).resolve().parents[2] / "docs" / page).exists(), page
