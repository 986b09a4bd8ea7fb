"""Gradients of `fcgen.attention` on the GPU, against torch's autograd in float64: head sizes, dtypes, masks, groups, functions, strides."""

from __future__ import annotations

import pytest

import fcgen as fc

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")


def draw(b=2, h=4, g=4, m=200, n=300, d=64, e=None, dtype="float16"):
    gen = torch.Generator("cuda").manual_seed(1)
    make = lambda *s: torch.randn(*s, device="cuda", generator=gen).to(getattr(torch, dtype)).requires_grad_()
    return [make(b, h, m, d), make(b, g, n, d), make(b, g, n, e or d)]


def exact(q, k, v, scale=None, seen=None, score=None, sink=None):
    (b, h, m, d), g = q.shape, k.shape[1]
    k, v = (x.repeat_interleave(h // g, 1) for x in (k, v))
    s = q @ k.transpose(2, 3) * (d**-0.5 if scale is None else scale)
    s = s if score is None else score(s)
    s = s if seen is None else torch.where(seen, s, -torch.inf)
    every = s if sink is None else torch.cat([s, sink[None, :, None, None].expand(b, h, m, 1)], -1)
    lse = torch.logsumexp(every, -1)
    return torch.exp(s - torch.where(lse.isneginf(), 0.0, lse)[..., None]) @ v, lse


def compare(xs, options, more=(), lse=False, tolerance=1e-2, **theirs):
    """more: tensors besides q, k and v that get gradients; theirs: what `exact` takes, of float64 copies."""
    every = [*xs, *more]
    ys = [x.detach().double().requires_grad_() for x in every]
    out, l = fc.attention(*xs, return_lse=True, **options)
    theirs = {name: f(*ys[3:]) if name in ("score", "sink") else f for name, f in theirs.items()}
    o, exactly = exact(*ys[:3], **theirs)
    g, gl = torch.randn_like(out), torch.randn_like(l)
    torch.autograd.backward([out, l] if lse else [out], [g, gl] if lse else [g])
    torch.autograd.backward([o, exactly] if lse else [o], [g.double(), gl.double()] if lse else [g.double()])
    for name, x, y in zip(["q", "k", "v", *map(str, range(len(more)))], every, ys):
        assert x.grad.isfinite().all(), name
        worst = ((x.grad.double() - y.grad).abs().max() / (0.2 + y.grad.abs().max())).item()
        assert worst < tolerance, (name, worst)


M, N = 200, 300
I, J = (None, None) if not torch.cuda.is_available() else (torch.arange(M, device="cuda")[:, None], torch.arange(N, device="cuda"))


@pytest.mark.parametrize("d", [16, 24, 32, 40, 64, 72, 80, 96, 128, 192, 256])
def test_head_sizes(d):
    compare(draw(b=1, h=2, g=2, d=d), {})


@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("causal", ["top_left", "bottom_right"])
def test_causal(causal, d):
    compare(draw(d=d), {"causal": causal}, seen=I + (N - M if causal == "bottom_right" else 0) >= J, lse=True)


@pytest.mark.parametrize("case", ["bf16", "grouped", "one head", "values", "negative", "one row", "one key", "long"])
def test_shapes(case):
    more = {"bf16": {"dtype": "bfloat16"}, "grouped": {"g": 2}, "one head": {"h": 6, "g": 1}, "values": {"d": 96, "e": 128},
            "one row": {"m": 1}, "one key": {"n": 1}, "long": {"b": 1, "h": 1, "g": 1, "m": 1500, "n": 2100}}.get(case, {})
    scale = {"scale": -0.2} if case == "negative" else {}
    compare(draw(**more), scale, tolerance=4e-2 if case == "bf16" else 1e-2, **scale)


@pytest.mark.parametrize("d", [64, 128])
def test_functions_and_what_they_hold(d):
    xs = draw(d=d)
    bias, slopes, heat, sinks, table = (torch.randn(s, device="cuda").requires_grad_() for s in ((4, M, N), 4, 1, 4, 64))

    def score(s, b, h, i, j):
        return 5.0 * fc.tanh(s * heat[0] / 5.0) + bias[h, i, j] + slopes[h] * (j - i).to(fc.f32) * 0.01 + table[(j - i) // 8 + 30]

    def theirs(bias, slopes, heat, sinks, table):
        at = (J - I) // 8 + 30
        entry = torch.where((at >= 0) & (at < 64), table[at.clamp(0, 63)], 0.0)
        return lambda s: 5 * torch.tanh(s * heat / 5) + bias + slopes[:, None, None] * (J - I) * 0.01 + entry

    compare(xs, {"score": score, "sinks": sinks, "mask": lambda b, h, i, j: j <= i + 150}, (bias, slopes, heat, sinks, table), True,
            seen=J <= I + 150, score=theirs, sink=lambda *x: x[3])


@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape, heads", [((2, 4, M, N), 4), ((2, 4, M, N), 2), ((4, M, N), 4), ((4, M, N + 4), 4), ((M, N), 4)])
def test_the_gradient_of_a_table_of_16_bits_whatever_it_has_in_common(shape, heads, causal, d):
    """Stored where each element is one score's alone, added up in the table's dtype where it is few scores', else in f32."""
    from fcgen import scores

    table = torch.randn(shape, device="cuda").half().requires_grad_()
    compare(draw(d=d, g=heads), {"score": scores.bias(table), **({"causal": "top_left"} if causal else {})}, [table],
            score=lambda t: lambda s: s + t[..., :N], seen=I >= J if causal else None)


@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("mask", ["none", "top_left", "window"])
def test_heads_that_share_keys_in_one_loop(mask, d):
    from fcgen import masks

    options = {"none": {}, "top_left": {"causal": "top_left"}, "window": {"mask": masks.window(70, 5)}}[mask]
    seen = {"none": None, "top_left": I >= J, "window": (J >= I - 70) & (J <= I + 5)}[mask]
    compare(draw(h=6, g=2, d=d), options, seen=seen, lse=True)


def test_strides_and_gradients_that_are_expanded():
    xs = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in draw()]
    compare(xs, {})
    q, k, v = draw()
    fc.attention(q, k, v).sum().backward()
    mine = q.grad
    q.grad = None
    exact(q.double(), k.double(), v.double())[0].sum().backward()
    assert (mine - q.grad).abs().max() < 2e-2 * q.grad.abs().max() + 1e-3


def test_deterministic_gradients_are_the_same_each_time():
    xs = draw(b=1, h=2, g=2, m=700, n=900)
    g = torch.randn(1, 2, 700, 64, device="cuda").half()
    torch.use_deterministic_algorithms(True)
    try:
        runs = [torch.autograd.grad(fc.attention(*xs, causal="top_left"), xs, g) for _ in range(20)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, y) for run in runs[1:] for x, y in zip(run, runs[0]))
    compare(xs, {"causal": "top_left"}, seen=torch.arange(900, device="cuda") <= torch.arange(700, device="cuda")[:, None])


def test_dropout_is_drawn_again():
    xs = draw(m=64, n=128)
    drop = fc.Dropout(0.25, 7, 0)
    kept = torch.tensor(drop.mask(2, 4, 64, 128), device="cuda")
    ys = [x.detach().double().requires_grad_() for x in xs]
    g = torch.randn(2, 4, 64, 64, device="cuda").half()
    fc.attention(*xs, dropout=drop).backward(g)
    p = torch.softmax(ys[0] @ ys[1].transpose(2, 3) / 8, -1)
    (torch.where(kept, p / 0.75, 0.0) @ ys[2]).backward(g.double())
    for x, y in zip(xs, ys):
        assert (x.grad.double() - y.grad).abs().max() < 1e-2 * y.grad.abs().max()


@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("causal", [False, True])
def test_ragged_batches(causal, d):
    lengths, keys = [5, 0, 300, 130], [70, 7, 260, 400]
    h, g = 4, 2
    ends = [torch.tensor([sum(n[:i]) for i in range(5)], dtype=torch.int32, device="cuda") for n in (lengths, keys)]
    xs = [torch.randn(sum(n), heads, d, device="cuda").half().requires_grad_() for n, heads in ((lengths, h), (keys, g), (keys, g))]
    out = fc.attention_varlen(*xs, *ends, 300, 400, causal=causal)
    go = torch.randn_like(out)
    out.backward(go)
    ys = [x.detach().double().requires_grad_() for x in xs]
    total, at, to = 0.0, 0, 0
    for m, n in zip(lengths, keys):
        if m:
            q, k, v = (y[a:a + c].transpose(0, 1)[None] for y, a, c in zip(ys, (at, to, to), (m, n, n)))
            i, j = torch.arange(m, device="cuda")[:, None], torch.arange(n, device="cuda")
            o, _ = exact(q, k, v, seen=j <= i + n - m if causal else None)
            total = total + (o[0].transpose(0, 1) * go[at:at + m].double()).sum()
        at, to = at + m, to + n
    total.backward()
    for x, y in zip(xs, ys):
        assert (x.grad.double() - y.grad).abs().max() < 1e-2 * y.grad.abs().max()


@pytest.mark.parametrize("d, e, groups, causal, in_order", [(64, 64, 4, False, True), (64, 64, 4, True, True), (128, 128, 4, False, True),
                                                             (128, 128, 4, True, False), (128, 128, 1, False, False), (64, 64, 1, False, False),
                                                             (128, 128, 1, True, False), (192, 128, 4, True, False), (256, 256, 4, True, False)])
def test_passes_that_are_known_where_blocks_take_many_tiles(d, e, groups, causal, in_order):
    """The second pass over other tensors is launched by what the first one left behind; several times as many tiles as multiprocessors.
    Summed up in one order, the same bits come again."""
    torch.use_deterministic_algorithms(in_order, warn_only=True)
    try:
        for turn in range(2):
            xs = [x.detach().mul(1 + turn).requires_grad_() for x in draw(b=6, h=16 if groups == 1 else 4, g=groups, m=1100, n=1100, d=d, e=e)]
            ys = [x.detach().double().requires_grad_() for x in xs]
            out, g = fc.attention(*xs, causal=causal), torch.randn(6, xs[0].shape[1], 1100, e, device="cuda").half()
            grads = torch.autograd.grad(out, xs, g, retain_graph=True)
            at = torch.arange(1100, device="cuda")
            want = torch.autograd.grad(exact(*ys, seen=at[:, None] >= at if causal else None)[0], ys, g.double())
            for x, y in zip(grads, want):
                assert ((x.double() - y).norm() / y.norm()).item() < 5e-3
            again = torch.autograd.grad(out, xs, g)
            assert not in_order or all(bool((x == y).all()) for x, y in zip(grads, again))
    finally:
        torch.use_deterministic_algorithms(False)
