"""`fcgen.attention` under torch's autograd: gradients against torch's own in float64, on the CPU with programs in the tile interpreter."""

from __future__ import annotations

import types

import numpy as np
import pytest

import fcgen as fc
from benchmarks.on_cpu import Runs
from fcgen.attend import backward_plans, calls, forward, packed, variants
from fcgen.build.program import Program
from fcgen.errors import FcError
from fcgen.runtime import driver, tensors

torch = pytest.importorskip("torch")
from fcgen.attend import trained, training  # noqa: E402

H, M, N, D = 2, 37, 45, 16


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    """Tensors of the CPU pass for tensors of a GPU; what is launched runs in the interpreter."""
    def describe(x, name):
        tensors._check_plain(x, name)
        return tensors.TensorArg(x.data_ptr(), tuple(x.shape), x.stride(), str(tensors._OURS[str(x.dtype).removeprefix("torch.")]), 0)

    monkeypatch.setattr(tensors, "_from_torch", describe)
    monkeypatch.setattr(driver, "device_info", lambda device: types.SimpleNamespace(arch="sm_89", sm_count=132))
    for module in (forward, variants):
        monkeypatch.setattr(module, "_arch", lambda device, schedule=None: "sm_89")
    monkeypatch.setattr(Program, "launcher", property(Runs))
    monkeypatch.setattr(Program, "begin", lambda program: program)
    monkeypatch.setattr(Runs, "seen", [])
    monkeypatch.setattr(training, "_fits", lambda *_: True)
    monkeypatch.setattr("fcgen.attend.variants._fits", lambda program: True)
    monkeypatch.setattr(backward_plans, "learn", lambda *_: None)
    for module in (calls, packed):  # what is known is launched by other means
        monkeypatch.setattr(module, "learn", lambda *_: None)
        monkeypatch.setattr(module, "kinds", {})
    return Runs.seen


def draw(groups=H, e=D, dtype=None):
    torch.manual_seed(0)
    shapes = (1, H, M, D), (1, groups, N, D), (1, groups, N, e)
    return [torch.randn(s).to(dtype or torch.float16).requires_grad_() for s in shapes]


def exact(q, k, v, score=lambda s: s, seen=None, sink=None, scale=D**-0.5):
    """In float64: (out, log-sum-exp), of copies that require a gradient."""
    k, v = (x.repeat_interleave(H // x.shape[1], 1) for x in (k, v))
    s = score(q @ k.transpose(2, 3) * scale)
    s = s if seen is None else torch.where(seen, s, -torch.inf)
    every = s if sink is None else torch.cat([s, sink[None, :, None, None].expand(1, H, M, 1)], -1)
    lse = torch.logsumexp(every, -1)
    return torch.where(torch.isneginf(lse)[..., None], 0.0, torch.exp(s - torch.where(torch.isneginf(lse), 0.0, lse)[..., None])) @ v, lse


def agree(ours, theirs, tolerance=6e-3):
    for n, (x, y) in enumerate(zip(ours, theirs)):
        assert x.grad is not None and x.grad.dtype == x.dtype and x.grad.shape == x.shape, n
        assert (x.grad.double() - y.grad).abs().max() <= tolerance * (1e-3 + y.grad.abs().max()), (n, x.grad.double() - y.grad)


def copies(xs):
    return [x.detach().double().requires_grad_() for x in xs]


class Held:
    factor = 0.5


I, J = torch.arange(M)[:, None], torch.arange(N)
CASES = {
    "plain": ({}, {}), "bottom_right": ({"causal": "bottom_right"}, {"seen": J <= I + N - M}), "scale": ({"scale": -0.3}, {"scale": -0.3}),
    "mask": ({"mask": lambda b, h, i, j: (j <= i) | (j % 3 == 0)}, {"seen": (J <= I) | (J % 3 == 0)}),
    "score": ({"score": lambda s, b, h, i, j: 2.0 * fc.tanh(s * 0.5)}, {"score": lambda s: 2 * torch.tanh(s * 0.5)}),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_q_k_and_v(name) -> None:
    ours, theirs = CASES[name]
    xs = draw()
    ys, g = copies(xs), torch.randn(1, H, M, D)
    out = fc.attention(*xs, **ours)
    assert out.grad_fn is not None and out.dtype == torch.float16
    out.backward(g.half())
    exact(*ys, **theirs)[0].backward(g.double())
    agree(xs, ys)


def test_grouped_heads_values_of_another_size_and_the_gradient_of_the_log_sum_exp() -> None:
    xs = draw(groups=1, e=24, dtype=torch.bfloat16)
    ys, g, l = copies(xs), torch.randn(1, H, M, 24).bfloat16(), torch.randn(1, H, M)
    out, lse = fc.attention(*xs, return_lse=True)
    torch.autograd.backward([out, lse], [g, l])
    o, exactly = exact(*ys)
    torch.autograd.backward([o, exactly], [g.double(), l.double()])
    agree(xs, ys, 3e-2)
    for x in xs:
        x.grad = None
    fc.attention(*xs, return_lse=True)[1].sum().backward()
    for y in ys:
        y.grad = None
    exact(*ys)[1].sum().backward()
    agree(xs[:2], ys[:2], 3e-2)
    assert not xs[2].grad.any()


def test_gradients_of_what_functions_hold() -> None:
    """A bias, a slope and a temperature that are learnt, one that is not, and sinks; each is read, and saved, at the call."""
    xs = draw()
    learnt = [torch.randn(s).requires_grad_() for s in ((H, M, N), (H,), (1,), (H,))]
    fixed = torch.randn(N)

    def score(s, b, h, i, j):
        return s * learnt[2][0] + learnt[0][h, i, j] + learnt[1][h] * (j - i).to(fc.f32) * 0.1 + fixed[j]

    ys = copies([*xs, *learnt])
    g = torch.randn(1, H, M, D)
    fc.attention(*xs, score=score, sinks=learnt[3]).backward(g.half())
    bias, slope, heat, sink = ys[3:]
    theirs = lambda s: s * heat + bias + slope[:, None, None] * (J - I) * 0.1 + fixed
    exact(*ys[:3], score=theirs, sink=sink)[0].backward(g.double())
    agree([*xs, *learnt], ys)


@pytest.mark.parametrize("d, e", [(264, 264), (40, 296), (512, 512)])
def test_large_heads(d, e, on_cpu) -> None:
    """They have programs for multiples of 32; others are padded."""
    torch.manual_seed(0)
    xs = [torch.randn(1, 1, n, size).half().requires_grad_() for n, size in ((9, d), (13, d), (13, e))]
    ys, g = copies(xs), torch.randn(1, 1, 9, e)
    out = fc.attention(*xs)
    assert out.shape == g.shape
    out.backward(g.half())
    ((ys[0] @ ys[1].mT * d**-0.5).softmax(-1) @ ys[2]).backward(g.double())
    agree(xs, ys)
    (sizes,) = [p.type.dims for p in on_cpu[-2].params if p.name == "K"]
    assert sizes[-1] == d + -d % 32
    ends = torch.tensor([0, 9], dtype=torch.int32), torch.tensor([0, 13], dtype=torch.int32)
    packed = [x.detach()[0].transpose(0, 1).clone().requires_grad_() for x in xs]
    fc.attention_varlen(*packed, *ends).backward(g[0].transpose(0, 1).half())
    agree(packed, [types.SimpleNamespace(grad=y.grad[0].transpose(0, 1)) for y in ys])


def test_backward_programs_are_made_from_the_forward_call_on_and_once_more_where_that_failed(monkeypatch) -> None:
    made, compiled, broken = [], training._compiled, [True]

    def making(spec, arch, facts, functions):
        made.append(spec.name)
        if broken[0]:
            raise FcError("compile/toolchain", "NVRTC is being installed")
        return compiled(spec, arch, facts, functions)

    for module, name in ((training, "_programs"), (training, "_plans"), (trained, "_passes")):
        monkeypatch.setattr(module, name, {})
    monkeypatch.setattr(training, "_compiled", making)
    xs = draw()
    out = fc.attention(*xs)
    begun = list(training._programs.values())
    assert begun and all(isinstance(later._found.exception(60), FcError) for later in begun)
    assert "backward" in made and len(made) == len(set(made))
    with pytest.raises(FcError, match="being installed"):
        out.sum().backward()
    broken[0], ys, g = False, copies(xs), torch.randn(1, H, M, D)
    fc.attention(*xs).backward(g.half())
    exact(*ys)[0].backward(g.double())
    agree(xs, ys)


def test_heads_that_no_backward_program_fits_are_refused(monkeypatch) -> None:
    """Of 512 on 100 KB of shared memory: its key and value alone are 64 KB for 32 keys."""
    xs = [torch.randn(1, 1, 16, 512).half().requires_grad_() for _ in range(3)]
    monkeypatch.setattr("fcgen.attend.training._fits", lambda program, few: program.machine is not None)
    monkeypatch.setattr(training, "_programs", {})
    monkeypatch.setattr(training, "_plans", {})
    with pytest.raises(FcError, match="no tile of the backward pass") as said:
        fc.attention(*xs).sum().backward()
    assert said.value.code == "compile/budget" and "256" in said.value.hint


WIDE = 48
SEEN = torch.rand(32, WIDE, generator=torch.Generator().manual_seed(1)) > 0.3
BIAS = torch.randn(32, WIDE, generator=torch.Generator().manual_seed(2))
TURNED = SEEN.T.contiguous(), BIAS.T.contiguous()
ORDERS = {
    "a mask by rows": ({"mask": lambda b, h, i, j: SEEN[i, j]}, {"seen": SEEN}),
    "a mask by keys": ({"mask": lambda b, h, i, j: TURNED[0][j, i]}, {"seen": SEEN}),
    "what is held first, by rows": ({"score": lambda s, b, h, i, j: BIAS[i, j] + s}, {"score": lambda s: s + BIAS}),
    "what is held first, by keys": ({"score": lambda s, b, h, i, j: TURNED[1][j, i] * s}, {"score": lambda s: s * BIAS}),
    "what is held alone": ({"score": lambda s, b, h, i, j: TURNED[1][j, i]}, {"score": lambda s: s * 0 + BIAS}),
}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", ORDERS)
def test_functions_may_name_axes_in_any_order(name, deterministic) -> None:
    """Tables whose rows are whole 16 bytes are read as tiles, with axes in the table's order; programs have scores in an order of their own."""
    torch.manual_seed(0)
    xs = [torch.randn(1, H, s, D).half().requires_grad_() for s in (32, WIDE, WIDE)]
    ys, g = copies(xs), torch.randn(1, H, 32, D)
    ours, theirs = ORDERS[name]
    torch.use_deterministic_algorithms(deterministic)
    try:
        fc.attention(*xs, **ours).backward(g.half())
    finally:
        torch.use_deterministic_algorithms(False)
    score, seen = theirs.get("score", lambda s: s), theirs.get("seen", torch.ones(32, WIDE, dtype=torch.bool))
    s = score(ys[0] @ ys[1].mT * D**-0.5)
    (torch.where(seen, s, -torch.inf).softmax(-1) @ ys[2]).backward(g.double())
    agree(xs, ys)


def test_only_what_is_asked_for_is_computed(on_cpu) -> None:
    def ran(needs, **more):
        xs = [x.detach().requires_grad_(n) for x, n in zip(draw(), needs)]
        out = fc.attention(*xs, **more)
        del on_cpu[:]
        out.sum().backward()
        assert [x.grad is not None for x in xs] == list(needs)
        return [p.name for p in on_cpu]

    assert ran((True, True, True)) == ["rows_before", "backward", "rows_after"]
    assert ran((True, False, False)) == ["backward_rows"]
    assert ran((False, False, True)) == ["rows_before", "backward"]
    bias = torch.randn(M, N, requires_grad=True)
    assert ran((False, False, False), score=lambda s, b, h, i, j: s + bias[i, j]) == ["rows_before", "backward"] and bias.grad is not None
    torch.use_deterministic_algorithms(True)
    try:
        assert ran((True, True, True)) == ["backward_rows", "backward"]
    finally:
        torch.use_deterministic_algorithms(False)


def test_tensors_that_were_written_to_are_noticed() -> None:
    xs = draw()
    bias = torch.randn(M, N, requires_grad=True)
    out = fc.attention(*xs, score=lambda s, b, h, i, j: s + bias[i, j])
    with torch.no_grad():
        bias.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_numbers_are_those_of_the_forward_call() -> None:
    held = Held()
    xs = draw()
    out = fc.attention(*xs, score=lambda s, b, h, i, j: s * held.factor)
    held.factor = 100.0
    ys = copies(xs)
    out.sum().backward()
    exact(*ys, score=lambda s: s * 0.5)[0].sum().backward()
    agree(xs, ys)


def test_lengths_of_zero_rows_that_see_no_key_and_gradients_of_any_strides() -> None:
    q, k, v = draw()
    out = fc.attention(q, k[:, :, :0], v[:, :, :0])
    out.sum().backward()
    assert not q.grad.any() and not k.grad.any()
    xs = draw()
    ys = copies(xs)
    fc.attention(*xs, mask=lambda b, h, i, j: i > j + 20).transpose(2, 3).sum(-1).backward(torch.ones(1, H, D).expand(1, H, D))
    exact(*ys, seen=I > J + 20)[0].sum().backward()
    agree(xs, ys)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("causal, groups, used", [(False, 2, False), (True, 1, False), ("top_left", 2, True)])
def test_sequences_that_lie_one_behind_the_other(causal, groups, used, deterministic) -> None:
    lengths, keys = [5, 0, 33, 20], [30, 7, 21, 40]
    rows_used, keys_used = ([3, 0, 33, 11], [30, 7, 9, 40]) if used else (lengths, keys)
    make = lambda n, h: torch.randn(n, h, D).half().requires_grad_()
    torch.manual_seed(1)
    xs = [make(sum(lengths), H), make(sum(keys), groups), make(sum(keys), groups)]
    bias = torch.randn(H, 64).requires_grad_()
    ends = [torch.tensor([sum(n[:i]) for i in range(5)], dtype=torch.int32) for n in (lengths, keys)]
    more = {"seqused_q": torch.tensor(rows_used, dtype=torch.int32), "seqused_k": torch.tensor(keys_used, dtype=torch.int32)} if used else {}
    torch.use_deterministic_algorithms(deterministic)
    try:
        out = fc.attention_varlen(*xs, *ends, 33, 40, causal=causal, score=lambda s, b, h, i, j: s + bias[h, j], **more)
        g = torch.randn_like(out)
        out.backward(g)
    finally:
        torch.use_deterministic_algorithms(False)
    ys = copies([*xs, bias])
    total = 0.0
    for n, (a, c) in enumerate(zip(rows_used, keys_used)):
        at, to = int(ends[0][n]), int(ends[1][n])
        q, k, v = ys[0][at:at + a].transpose(0, 1), *(y[to:to + c].transpose(0, 1).repeat_interleave(H // groups, 0) for y in ys[1:3])
        s = q @ k.transpose(1, 2) * D**-0.5 + ys[3][:, None, :c]
        i, j = torch.arange(a)[:, None], torch.arange(c)
        seen = j <= i + (0 if causal == "top_left" else c - a) if causal else j >= 0
        s = torch.where(seen, s, -torch.inf)
        lse = torch.logsumexp(s, -1, keepdim=True)
        p = torch.where(lse.isneginf(), 0.0, torch.exp(s - torch.where(lse.isneginf(), 0.0, lse)))
        total = total + ((p @ v).transpose(0, 1) * g[at:at + a].double()).sum()
    total.backward()
    agree([*xs, bias], ys)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"causal": "bottom_right", "scale": 0.3, "return_lse": True}])
def test_a_graph_of_torch_compile_has_gradients(options) -> None:
    torch._dynamo.reset()
    xs = draw()
    ys = [x.detach().clone().requires_grad_() for x in xs]

    def step(q, k, v):
        out = fc.attention(q * 2, k, v, **options)
        return out[0].float() * out[1][..., None] if options else out.float()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    g = torch.randn(1, H, M, D)
    compiled(*xs).backward(g)
    step(*ys).backward(g)
    for x, y in zip(xs, ys):
        torch.testing.assert_close(x.grad, y.grad)


def test_nothing_flows_where_no_gradient_is_wanted(on_cpu) -> None:
    xs = draw()
    with torch.no_grad():
        assert fc.attention(*xs).grad_fn is None
    assert fc.attention(*[x.detach() for x in xs]).grad_fn is None
    assert [p.name for p in on_cpu] == ["attention"] * 2


def test_refused() -> None:
    xs = draw()
    with pytest.raises(FcError, match="`out` is written"):
        fc.attention(*xs, out=torch.empty_like(xs[0]))
    with pytest.raises(FcError, match="there is no derivative through a loop"):
        def looped(s, b, h, i, j):
            x = fc.var(s)
            for _ in fc.loop(2):
                x <<= x * s
            return x

        fc.attention(*xs, score=looped)
    np.testing.assert_equal(xs[0].grad, None)


def test_a_schedule_that_tensors_of_the_first_call_left_room_for_is_left_for_another(monkeypatch):
    """Rows of 301 numbers are read one by one, rows of 304 as tiles, which have no room beside the rings of the others."""
    monkeypatch.undo()
    from fcgen import scores
    from fcgen.ir.types import DTYPES

    facts = {"T": DTYPES["f16"], "D": 64, "E": 64, "mask": "causal_top_left", "grouped": False}
    table = lambda *shape: scores.bias(torch.zeros(*shape, requires_grad=True))
    score = lambda n: {"score": table(2, 200, n) + table(200, n)}
    made = [training._ready(training.DENSE.keys, "sm_90a", facts, score(n), []).make() for n in (301, 304)]
    assert [p.built.facts.smem_bytes <= 232448 for p in made] == [True, True] and made[0].schedule != made[1].schedule


@pytest.mark.parametrize("shape, causal", [((1, H, M, N), False), ((1, H, M, N), True), ((1, H, M + 3, N + 8), False), ((H, M, N), True),
                                           ((1, H, 1, N), False), ((M, N), False)])
def test_the_gradient_of_a_table_of_16_bits_whatever_it_has_in_common(shape, causal) -> None:
    """Where it is stored, what no tile comes to is 0."""
    from fcgen import scores

    xs = draw()
    table = torch.randn(shape).half().requires_grad_()
    ys = copies([*xs, table])
    g = torch.randn(1, H, M, D)
    fc.attention(*xs, score=scores.bias(table), causal="top_left" if causal else False).backward(g.half())
    held = ys[3][..., :M, :N] if shape[-2] >= M else ys[3][..., :N]
    exact(*ys[:3], score=lambda s: s + held, seen=J <= I if causal else None)[0].backward(g.double())
    agree([*xs, table], ys)
