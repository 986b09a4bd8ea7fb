"""Gradients through torch's interfaces on the GPU: random calls of each, graphs that Inductor compiles, models of Hugging Face, large heads."""

from __future__ import annotations

from pathlib import Path

import pytest

import fcgen as fc

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch")
from benchmarks import random_gradients as drawn  # noqa: E402
from tests.gradients import compare, example  # noqa: E402

F = torch.nn.functional


def half(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16).requires_grad_()


@pytest.mark.parametrize("number", [0, 3, 4, 5, 6, 7, 19])
def test_random_calls(number):
    for call in (3, 7):
        _, wrong = drawn.run(drawn.draw(drawn.kind(number), call))
        assert not wrong, (drawn.draw(drawn.kind(number), call), wrong)


def test_a_graph_of_inductor_with_checkpoints():
    """Its backward pass makes the forward call again; masks of floats are learnt through it."""
    torch._dynamo.reset()
    bias = torch.randn(1, 4, 130, 130, device="cuda").requires_grad_()
    xs = [half(2, 4, 130, 64) for _ in range(3)]

    def block(q, k, v, bias):
        return torch.utils.checkpoint.checkpoint(lambda q, k, v: fc.scaled_dot_product_attention(q * 2, k, v, attn_mask=bias), q, k, v,
                                                 use_reentrant=False).float()

    found = []
    for call in (block, torch.compile(block, fullgraph=True)):
        out = call(*xs, bias)
        found.append(torch.autograd.grad(out, [*xs, bias], torch.ones_like(out)))
    for x, y in zip(*found):
        assert (x - y).abs().max() <= 2e-2 * (1e-2 + y.abs().max())
    torch._dynamo.reset()


def test_transforms_of_torch_func():
    xs = [half(1, 2, 100, 64).detach() for _ in range(3)]
    got = torch.func.grad(lambda *x: fc.attention(*x, causal=True).float().square().sum(), (0, 1, 2))(*xs)
    ys = [x.double().requires_grad_() for x in xs]
    F.scaled_dot_product_attention(*ys, is_causal=True).square().sum().backward()
    for x, y in zip(got, ys):
        assert (x - y.grad).abs().max() < 5e-2 * y.grad.abs().max()


def test_a_step_of_training_of_a_model():
    T = pytest.importorskip("transformers", minversion="4.56")
    from fcgen.integrations import transformers as ours

    ours.register()
    torch.manual_seed(1)
    small = dict(vocab_size=97, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=64)
    model = T.LlamaForCausalLM(T.LlamaConfig(**small)).train().to("cuda", torch.bfloat16)
    ids = torch.randint(0, 97, (2, 130), device="cuda")
    found = {}
    for implementation in ("sdpa", "fcgen"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        found[implementation] = {n: p.grad.float().clone() for n, p in model.named_parameters()}
    for n, g in found["sdpa"].items():
        assert (found["fcgen"][n] - g).norm() < 0.05 * g.norm() + 1e-6, n


@pytest.mark.parametrize("d", [264, 384, 512])
def test_large_heads(d):
    xs = [half(1, 2, n, d) for n in (70, 100, 100)]
    ys = [x.detach().double().requires_grad_() for x in xs]
    out = fc.attention(*xs, causal="bottom_right")
    g = torch.randn_like(out)
    out.backward(g)
    seen = torch.ones(70, 100, dtype=torch.bool, device="cuda").tril(30)
    F.scaled_dot_product_attention(*ys, attn_mask=seen).backward(g.double())
    for x, y in zip(xs, ys):
        assert (x.grad - y.grad).abs().max() < 3e-2 * y.grad.abs().max()


def test_the_training_example_on_its_way_down(monkeypatch):
    pytest.importorskip("torch.nn.functional")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import train

    found = train.run(train.Settings(steps=60, batch=8, context=128, layers=2, width=128, heads=2))
    assert found["final"]["fcgen"] < 2.6 and found["apart"]["fcgen"] < 0.05 + 3 * found["apart"]["sdpa in float32"]


def test_the_gradient_of_a_spec(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import gemm

    program = fc.grad(gemm.gemm_bias_gelu).compile(T=fc.f16, check=False)
    a, b, bias = (torch.randn(*s, device="cuda").half() for s in ((300, 200), (136, 200), (136,)))
    xs = [a, b, bias.float()]
    ys = [x.double().requires_grad_() for x in xs]
    c = F.gelu(ys[0] @ ys[1].T + ys[2])
    dc = torch.randn(300, 136, device="cuda").half()
    c.backward(dc.double())
    found = [torch.zeros_like(x, dtype=torch.float32) for x in xs]
    program(**dict(zip(("A", "B", "bias", "dC", "dA", "dB", "dbias"), (*xs, dc, *found))))
    for x, y in zip(found, ys):
        assert (x - y.grad).abs().max() < 1e-2 * y.grad.abs().max()


_TILES = {"BLOCK_M": 64, "BLOCK_N": 64}
_HOPPER = {"warps": 8, "math": "wgmma", "copy": "tma", "epilogue": "direct", "persistent": "static"}
#: spec -> sizes, binding, schedules on Hopper and elsewhere
LOOPS = {
    "sigmoid_attention": ({"m": 200, "n": 136}, {"E": 64}, fc.Schedule(tiles=_TILES, **_HOPPER), fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32}, warps=4)),
    "differential_attention": ({"m": 200, "n": 264}, {"E": 64}, fc.Schedule(tiles=_TILES, late="acc", grid={"s": (1, 1)}, **_HOPPER),
                               fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 16}, warps=8, hold_a=False)),
    "attention": ({"n": 200}, {"E": 64}, fc.Schedule(tiles=_TILES, **_HOPPER), fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32}, warps=4)),
    "linear_attention": ({"m": 200}, {"E": 64}, fc.Schedule(tiles={"BLOCK_M": 64}, makers=4, **_HOPPER), fc.Schedule(tiles={"BLOCK_M": 32}, warps=4)),
    "softmax": ({"m": 50, "n": 456}, {}, *[fc.Schedule(tiles={"BLOCK_M": 4, "BLOCK_N": 128}, warps=4)] * 2)}


@pytest.mark.parametrize("path", ["own", "mma"])
@pytest.mark.parametrize("name", LOOPS)
def test_gradients_of_loops(name, path):
    sizes, binding, hopper, mma = LOOPS[name]
    e, given = example(name, **sizes)
    own = fc.gpu_target()
    target, schedule = (own, hopper) if path == "own" and own == "sm_90a" else (own.rstrip("a"), mma)
    compare(e.spec, e.reference, given, {"T": fc.f16, **({"D": 64, **binding} if binding else {})}, schedule, target, runs=("run",))
