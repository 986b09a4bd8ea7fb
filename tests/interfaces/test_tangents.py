"""Forward mode, second derivatives and batches of torch.func through attention, against torch's own in float64; what has none is refused."""

from __future__ import annotations

import pytest

import fcgen as fc
from fcgen.errors import FcError

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
import torch.autograd.forward_ad as forward_ad  # noqa: E402

func, F = torch.func, torch.nn.functional
pytestmark = pytest.mark.filterwarnings("ignore")
B, H, M, N, D = 2, 2, 9, 11, 16


@pytest.fixture(autouse=True)
def programs(gradient_kernels, monkeypatch):
    from fcgen.attend import training

    listed, small = training.candidates, fc.Schedule(tiles={"BLOCK_M": 16, "BLOCK_N": 16}, warps=2)
    monkeypatch.setattr(training, "candidates", lambda name, *more: (small,) if "tangent" in name else listed(name, *more))
    return gradient_kernels


def half(*shape):
    return torch.randn(*shape).half()


def draw(groups=H, e=D, lead=()):
    return half(*lead, B, H, M, D), half(*lead, B, groups, N, D), half(*lead, B, groups, N, e)


def close(got, want, tolerance=4e-3):
    got, want = (x if isinstance(x, (tuple, list)) else (x,) for x in (got, want))
    assert len(got) == len(want)
    for n, (x, y) in enumerate(zip(got, want)):
        assert x.shape == y.shape and (x.double() - y).abs().max() <= tolerance * (0.5 + y.abs().max()), (n, (x.double() - y).abs().max())


def doubles(*xs):
    return tuple(x.double() for x in xs)


def exactly(q, k, v, bias=None, causal=False, cap=None, sink=None, left=None):
    k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    s = q @ k.transpose(-1, -2) * q.shape[-1]**-0.5
    s = s if cap is None else cap * torch.tanh(s / cap)
    s = s if bias is None else s + bias
    if causal:
        s = s.masked_fill(torch.arange(s.shape[-1]) > torch.arange(s.shape[-2])[:, None], -torch.inf)
    if left is not None:  # the last rows of nine see no key
        seen = torch.arange(s.shape[-1]) < left - 2 * torch.arange(s.shape[-2])[:, None]
        s = torch.where(seen, s, -1e30)
        return torch.where(seen.any(-1, keepdim=True), s.softmax(-1), 0.0) @ v
    if sink is not None:
        return torch.cat([s, torch.full_like(s[..., :1], sink)], -1).softmax(-1)[..., :-1] @ v
    return s.softmax(-1) @ v


CAP = {"score": lambda s, b, h, i, j: 3.0 * fc.tanh(s * (1.0 / 3.0))}
BIAS = torch.randn(1, H, M, N)
WAYS = {
    "plain": (lambda *x: fc.attention(*x), exactly, {}),
    "causal, grouped, a head size of the values": (lambda *x: fc.attention(*x, causal="top_left"), lambda *x: exactly(*x, causal=True),
                                                   {"groups": 1, "e": 24}),
    "a score": (lambda *x: fc.attention(*x, **CAP), lambda *x: exactly(*x, cap=3.0), {}),
    "scaled_dot_product_attention": (lambda *x: fc.scaled_dot_product_attention(*x, attn_mask=BIAS), lambda *x: exactly(*x, BIAS.double()), {"e": 11}),
    "sinks": (lambda *x: fc.attention(*x, sinks=0.5), lambda *x: exactly(*x, sink=0.5), {}),
    "rows without a key": (lambda *x: fc.attention(*x, mask=lambda b, h, i, j: j < 9 - 2 * i), lambda *x: exactly(*x, left=9), {}),
    "flex_attention": (lambda *x: fc.flex_attention(*x, lambda s, b, h, i, j: s * 0.5), lambda q, k, v: exactly(q * 0.5, k, v), {}),
}


@pytest.mark.parametrize("name", WAYS)
def test_tangents(name) -> None:
    ours, want, shape = WAYS[name]
    xs, ts = draw(**shape), draw(**shape)
    close(func.jvp(ours, xs, ts), func.jvp(want, doubles(*xs), doubles(*ts)))


@pytest.mark.parametrize("moved", [(0,), (1,), (2,), (0, 2)])
def test_dual_numbers_of_some_operands(moved, programs) -> None:
    """Of what stays nothing is computed."""
    xs, ts = draw(), draw()
    with forward_ad.dual_level():
        out, lse = fc.attention(*[forward_ad.make_dual(x, t) if n in moved else x for n, (x, t) in enumerate(zip(xs, ts))], return_lse=True)
        got = [forward_ad.unpack_dual(x).tangent for x in (out, lse)]
    ys = doubles(*xs)
    both = lambda *x: (exactly(*x), (x[0] @ x[1].transpose(-1, -2) * D**-0.5).logsumexp(-1))
    _, want = func.jvp(both, ys, tuple(t.double() if n in moved else torch.zeros_like(t.double()) for n, t in enumerate(ts)))
    close(got, want)
    program = next(p for p in programs if p.name == "tangent")
    assert {f"t{'QKV'[n]}" for n in moved} == {"tQ", "tK", "tV"} & {p.name for p in program.params}


def test_dropout_drops_the_same_weights() -> None:
    """The output is linear in the values, and so are its tangent and the gradient of its gradient."""
    q, k, v = draw()
    t = half(*v.shape)

    def run(v):
        torch.manual_seed(3)
        return fc.scaled_dot_product_attention(q, k, v, dropout_p=0.5)

    out, moved = func.jvp(run, (v,), (t,))
    close((out, moved), doubles(run(v), run(t)))
    assert (moved - fc.attention(q, k, t)).abs().max() > 0.1
    g = half(*out.shape).requires_grad_()
    (first,) = torch.autograd.grad(run(x := v.clone().requires_grad_()), x, g, create_graph=True)
    close(torch.autograd.grad(first, g, t), doubles(moved))


def gradients(f, dtype):
    return lambda q, k, v, g: func.grad(lambda *x: (f(*x).to(dtype) * g).sum(), (0, 1, 2))(q, k, v)


@pytest.mark.parametrize("name", WAYS)
def test_tangents_of_gradients(name) -> None:
    """What a Hessian is multiplied with."""
    ours, want, shape = WAYS[name]
    xs, ts = draw(**shape), draw(**shape)
    g, tg = half(B, H, M, xs[2].shape[-1]), half(B, H, M, xs[2].shape[-1])
    got = func.jvp(gradients(ours, torch.float16), (*xs, g), (*ts, tg))
    close(sum(got, ()), sum(func.jvp(gradients(want, torch.float64), doubles(*xs, g), doubles(*ts, tg)), ()))


@pytest.mark.parametrize("name", WAYS)
def test_gradients_of_gradients(name) -> None:
    ours, want, shape = WAYS[name]
    xs = draw(**shape)
    g, ts = half(B, H, M, xs[2].shape[-1]), draw(**shape)

    def twice(f, xs, ts):
        xs = [x.clone().requires_grad_() for x in xs]
        first = torch.autograd.grad(f(*xs[:3]), xs[:3], xs[3], create_graph=True)
        return torch.autograd.grad(sum((x * t).sum() for x, t in zip(first, ts)), xs)

    close(twice(ours, (*xs, g), ts), twice(want, doubles(*xs, g), doubles(*ts)))


def test_a_penalty_on_the_gradient_of_the_log_sum_exp() -> None:
    q, k, v = draw()

    def penalty(f, q, k, v):
        q = q.clone().requires_grad_()
        out, lse = f(q, k, v)
        (g,) = torch.autograd.grad(out.double().sum() + lse.double().square().sum(), q, create_graph=True)
        return torch.autograd.grad(g.double().square().sum(), q)

    close(penalty(lambda *x: fc.attention(*x, return_lse=True), q, k, v),
          penalty(lambda q, k, v: (exactly(q, k, v), (q @ k.transpose(-1, -2) * D**-0.5).logsumexp(-1)), *doubles(q, k, v)), 1e-2)


def test_gradients_of_tangents() -> None:
    xs, ts = draw(), draw()
    run = lambda f, xs, ts: func.grad(lambda *x: (func.jvp(f, x[:3], x[3:])[1].double() ** 2).sum(), tuple(range(6)))(*xs, *ts)
    close(run(fc.attention, xs, ts), run(exactly, doubles(*xs), doubles(*ts)))


@pytest.mark.parametrize("name", ["plain", "a score", "scaled_dot_product_attention"])
def test_batches(name, programs) -> None:
    ours, want, shape = WAYS[name]
    q, k, v = draw(**shape)
    q, k = half(B, H, M, 3, D), half(3, B, H, N, D)
    close(func.vmap(ours, (3, 0, None))(q, k, v), func.vmap(want, (3, 0, None))(*doubles(q, k, v)))
    assert len(programs) == (1 if name == "plain" else 3)  # one call, or one for each
    total = lambda f: lambda k, v: func.vmap(lambda q, k: f(q, k, v), (3, 0))(q.to(v.dtype), k).double().square().sum()
    close(func.grad(total(ours), (0, 1))(k, v), func.grad(total(want), (0, 1))(*doubles(k, v)), 1e-2)
    each = lambda f, q, k: func.vmap(func.grad(lambda q, k: f(q, k, v.to(q.dtype)).double().square().sum()), (3, 0))(q, k)
    close(each(ours, q, k), each(want, *doubles(q, k)), 1e-2)


def test_no_batch() -> None:
    q, k, v = draw()
    for ours in (fc.attention, lambda *x: fc.attention(*x, mask=lambda b, h, i, j: j <= i)):
        assert func.vmap(ours, (0, None, None))(q[None][:0], k, v).shape == (0, B, H, M, D)


def test_jacobians_and_hessians() -> None:
    q, k, v = half(1, 1, 1, 8), half(1, 1, 3, 8), half(1, 1, 3, 8)
    ours, want = lambda q: fc.attention(q, k, v), lambda q: exactly(q, *doubles(k, v))
    close(func.jacrev(ours)(q), func.jacrev(want)(q.double()))
    close(func.jacfwd(ours)(q), func.jacfwd(want)(q.double()))
    square = lambda f: lambda q: f(q).double().square().sum()
    close(func.hessian(square(ours))(q), func.hessian(square(want))(q.double()))


def sdpa(q, k, v, bias):
    return fc.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def packed(q):
    ends = torch.tensor([0, 4, M], dtype=torch.int32)
    return fc.attention_varlen(q, q, q, ends, ends)


def thrice(f):
    g = lambda f: lambda q: func.grad(lambda q: f(q).float().sum())(q)
    return g(g(g(f)))


REFUSED = {
    "the tangent of a bias": (lambda q, k, v: func.jvp(lambda b: sdpa(q, k, v, b), (BIAS,), (BIAS,)), "holds is given a tangent"),
    "the dual number of a bias": (lambda q, k, v: dual_bias(q, k, v), "holds is given a tangent"),
    "a bias, beside other tangents": (lambda q, k, v: func.jvp(lambda q, b: sdpa(q, k, v, b), (q, BIAS), (q, BIAS)), "holds is given a tangent"),
    "the second derivative of a bias": (lambda q, k, v: func.grad(lambda b: func.grad(lambda b: sdpa(q, k, v, b).sum())(b).sum())(BIAS),
                                        "a second derivative"),
    "a bias of a batch": (lambda q, k, v: func.vmap(lambda b: sdpa(q, k, v, b))(torch.stack([BIAS] * 2)), "another axis"),
    "seeds of a batch": (lambda q, k, v: func.vmap(lambda q: fc.scaled_dot_product_attention(q, k, v, dropout_p=0.5),
                                                   randomness="different")(torch.stack([q] * 2)), "another seed"),
    "a third derivative": (lambda q, k, v: thrice(lambda q: fc.attention(q, k, v))(q), "a third time"),
    "the tangent of a tangent": (lambda q, k, v: func.jvp(lambda q: func.jvp(lambda q: fc.attention(q, k, v), (q,), (q,))[1], (q,), (q,)),
                                 "its tangent is given tangents"),
    "tangents of packed sequences": (lambda q, k, v: func.jvp(packed, (q[0].transpose(0, 1).contiguous(),) , (q[0].transpose(0, 1).contiguous(),)),
                                     "packed sequences"),
    "a batch of packed sequences": (lambda q, k, v: func.vmap(packed)(q.transpose(1, 2).contiguous()), "vmap"),
    "an output to write to": (lambda q, k, v: func.jvp(lambda q: fc.attention(q, k, v, out=torch.empty_like(q)), (q,), (q,)), "`out`"),
}


def dual_bias(q, k, v):
    with forward_ad.dual_level():
        return sdpa(q, k, v, forward_ad.make_dual(BIAS, BIAS))


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_derivative_is_refused(name) -> None:
    call, said = REFUSED[name]
    with pytest.raises(FcError, match=said) as e:
        call(*draw())
    assert e.value.code == "call/argument" and (e.value.expected or e.value.hint)


def test_a_number_that_has_changed_since_the_call_is_noticed() -> None:
    q, k, v = (x.requires_grad_() for x in draw())
    factor = 0.5
    out = fc.attention(q, k, v, score=lambda s, b, h, i, j: s * factor)
    (g,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    factor = 0.25
    with pytest.raises(FcError, match="has changed"):
        g.sum().backward()


# ---- in graphs, and operators by themselves -------------------------------------------------------------------------------------------

GRAPHS = {"attention": (lambda *x: fc.attention(*x), exactly), "scaled_dot_product_attention": (lambda *x: fc.scaled_dot_product_attention(*x), exactly),
          "flex_attention": WAYS["flex_attention"][:2]}
TRANSFORMS = {"grad": lambda f, q, k, v: func.grad(lambda q: f(q, k, v).double().square().sum())(q), "vmap": lambda f, q, k, v: func.vmap(f)(q[None], k[None], v[None]),
              "jvp": lambda f, q, k, v: func.jvp(lambda q: f(q, k, v), (q,), (k[:, :, :M],))[1]}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", GRAPHS)
def test_transforms_break_a_graph(name, transform) -> None:
    """Operators of graphs have no derivatives of torch.func: they had a gradient of zero there."""
    torch._dynamo.reset()
    (ours, want), run, xs = GRAPHS[name], TRANSFORMS[transform], draw()
    close(torch.compile(lambda *x: run(ours, *x), backend="aot_eager")(*xs), run(want, *doubles(*xs)), 1e-2)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"transforms of torch\.func and tangents follow"):
        torch.compile(lambda *x: run(ours, *x), backend="aot_eager", fullgraph=True)(*xs)
    torch._dynamo.reset()


OPERATORS = {"attention": lambda q, k, v: torch.ops.fcgen.attention(q, k, v, "none", None),
             "attention_lse": lambda q, k, v: torch.ops.fcgen.attention_lse(q, k, v, "none", None)[0],
             "attention_trained": lambda q, k, v: torch.ops.fcgen.attention_trained(q, k, v, "none", None)[0],
             "attend": lambda q, k, v: torch.ops.fcgen.attend(q, k, v, None, None, "none", -1, -1, None, 0, None, None, None),
             "attend_learnt": lambda q, k, v: torch.ops.fcgen.attend_learnt(q, k, v, None, None, "none", -1, -1, None, 0, None, None, None, None, False)[0]}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", OPERATORS)
def test_transforms_of_operators(name, transform) -> None:
    import fcgen.torch.core  # noqa: F401

    xs = draw()
    close(TRANSFORMS[transform](OPERATORS[name], *xs), TRANSFORMS[transform](exactly, *doubles(*xs)), 1e-2)


@pytest.mark.parametrize("mode", ["real", "fake"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_that_are_written_down_are_refused(transform, mode) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    with pytest.raises(FcError, match="is asked for in a graph"):
        make_fx(lambda *x: TRANSFORMS[transform](fc.scaled_dot_product_attention, *x), tracing_mode=mode)(*draw())


@pytest.mark.parametrize("made", ["before", "with them", "around them"])
@pytest.mark.parametrize("name", GRAPHS)
def test_dual_numbers_and_graphs(name, made) -> None:
    torch._dynamo.reset()
    (ours, want), (q, k, v), t = GRAPHS[name], draw(), half(B, H, M, D)

    def moved(f):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(q, t), k, v)).tangent

    compiled = torch.compile(ours, backend="aot_eager")
    if made == "before":
        compiled(q, k, v)
    got = torch.compile(lambda: moved(ours), backend="aot_eager")() if made == "around them" else moved(compiled)
    close(got, func.jvp(lambda q: want(q, *doubles(k, v)), doubles(q), doubles(t))[1])
    torch._dynamo.reset()
