"""torch.export, for inference and for training, and what else writes operators down: the graph has attention's, or the call is refused."""

from __future__ import annotations

import io

import pytest

import fcgen as fc
from fcgen.errors import FcError

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
from torch.export.experimental import _export_forward_backward  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
WIDTH, HEADS = 32, 2


@pytest.fixture(autouse=True)
def programs(kernels, monkeypatch):
    monkeypatch.setattr("fcgen.attend.training._fits", lambda *_: True)
    return kernels


class Block(torch.nn.Module):
    """Projections around an attention, and a bias where it takes one."""

    def __init__(self, call, biased=False):
        super().__init__()
        self.into, self.out, self.call = torch.nn.Linear(WIDTH, 3 * WIDTH).half(), torch.nn.Linear(WIDTH, WIDTH).half(), call
        self.bias = torch.nn.Parameter(torch.randn(1, HEADS, 1, 1)) if biased else None

    def forward(self, x):
        q, k, v = (y.view(*x.shape[:2], HEADS, -1).transpose(1, 2) for y in self.into(x).chunk(3, -1))
        return self.out(self.call(q, k, v, *([] if self.bias is None else [self.bias])).transpose(1, 2).reshape(x.shape))


CALLS = {"attention": lambda q, k, v: fc.attention(q, k, v, causal=True),
         "scaled_dot_product_attention": lambda q, k, v: fc.scaled_dot_product_attention(q, k, v, is_causal=True),
         "a learnt bias": lambda q, k, v, bias: fc.scaled_dot_product_attention(q, k, v, attn_mask=bias)}


def half(*shape):
    return torch.randn(*shape).half()


def block(name):
    return Block(CALLS[name], name == "a learnt bias")


def exported(module, strict):
    dims = {0: torch.export.Dim("b"), 1: torch.export.Dim("n", min=2, max=512)}
    return torch.export.export(module, (half(2, 9, WIDTH),), dynamic_shapes=(dims,), strict=strict)


def operators(graph):
    return [str(n.target).split(".")[1] for n in graph.nodes if "fcgen" in str(n.target)]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_inference(name, strict) -> None:
    module = block(name)
    with torch.no_grad():
        program = exported(module, strict)
        assert operators(program.graph) == ["attend" if "bias" in name else "attention"]
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        for again in (program, torch.export.load(file), *([] if strict else [program.run_decompositions()])):
            for x in (half(2, 9, WIDTH), half(3, 14, WIDTH)):
                assert torch.equal(again.module()(x), module(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_training(name, strict) -> None:
    module = block(name)
    again = exported(module, strict).module()
    for x in (half(2, 9, WIDTH), half(3, 14, WIDTH)):
        want, got = [dict(m.named_parameters()) for m in (module, again)]
        for m in (module, again):
            m.zero_grad()
            m(x).float().square().sum().backward()
        assert set(want) == set(got) and all(torch.equal(want[n].grad, got[n].grad) for n in want)


@pytest.mark.parametrize("name", CALLS)
def test_a_graph_of_both_passes(name) -> None:
    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block(name)

        def forward(self, x):
            return self.block(x).float().square().sum()

    joint = _export_forward_backward(torch.export.export(Loss(), (half(2, 9, WIDTH),)))
    op = "attend_learnt" if "bias" in name or name.startswith("scaled") else "attention_trained"
    assert operators(joint.graph) == [op, f"{op}_gradients"] and joint.graph_signature.backward_signature is not None


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_writes_the_operator(mode) -> None:
    q = half(1, 2, 9, 16)
    for _ in range(3):
        fc.attention(q, q, q)
    call = lambda q: fc.attention(q, q + 1, q, causal="top_left", return_lse=True)
    graph = make_fx(call, tracing_mode=mode)(q)
    assert operators(graph.graph) == ["attention_lse"]
    assert all(torch.equal(x, y) for x, y in zip(graph(-q), call(-q)))


def packed(q):
    ends = torch.tensor([0, 4, 9], dtype=torch.int32)
    return fc.attention_varlen(q[0].transpose(0, 1), q[0].transpose(0, 1), q[0].transpose(0, 1), ends, ends)


@fc.kernel
def twice(A: "f32[N]", O: "out f32[N]"):
    (n,) = fc.grid(fc.tile(A.N, "BLOCK"))
    fc.store(O[n], fc.load(A[n]) * 2.0)


def own_spec(q):
    x, out = q.float().flatten(), torch.empty(q.numel())
    twice.compile(target="sm_90", schedule=fc.Schedule(tiles={"BLOCK": 32}, warps=1), check=False)(x, out)
    return out


NO_OPERATORS = {"a score": lambda q: fc.attention(q, q, q, score=lambda s, b, h, i, j: s * 0.5), "packed sequences": packed, "a spec": own_spec}


@pytest.mark.parametrize("mode", ["real", "fake"])
@pytest.mark.parametrize("name", NO_OPERATORS)
def test_what_is_no_operator_is_refused_where_graphs_are_made(name, mode) -> None:
    """A launch is nothing that torch sees: the graph would have an output that nobody writes."""
    with pytest.raises(FcError, match="a launch is no operator" if mode == "real" else "FakeTensor"):
        make_fx(NO_OPERATORS[name], tracing_mode=mode)(half(1, 2, 9, 16))


@pytest.mark.parametrize("call", [lambda q, k, v: fc.flex_attention(q, k, v, lambda s, b, h, i, j: s * 0.5),
                                  lambda q, k, v: fc.attention(q, k, v, score=lambda s, b, h, i, j: s * 0.5)], ids=["flex", "a score"])
def test_functions_of_python_are_not_exported(call) -> None:
    with pytest.raises(FcError) as e:
        exported(Block(call), False)
    assert "fcgen.scaled_dot_product_attention" in str(e.value)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="fcgen"):
        exported(Block(call), True)


def test_modes_that_only_look_on_see_an_operator() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen, q = [], half(1, 2, 9, 16)
    with Names():
        got = fc.attention(q, q, q)
    assert seen == ["fcgen.attention.default"] and torch.equal(got, fc.attention(q, q, q))
