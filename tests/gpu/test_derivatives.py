"""On the GPU: tangents, second derivatives and batches of torch.func; a training step in a CUDA graph; exported programs."""

import pytest

import fcgen as fc

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch")


def half(*shape, dtype="float16"):
    return torch.randn(*shape, device="cuda").to(getattr(torch, dtype))


def exactly(q, k, v, causal=False, cap=None):
    k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    s = q @ k.transpose(-1, -2) * q.shape[-1]**-0.5
    s = s if cap is None else cap * torch.tanh(s / cap)
    if causal:
        s = s.masked_fill(torch.arange(s.shape[-1], device="cuda") > torch.arange(s.shape[-2], device="cuda")[:, None], -torch.inf)
    return s.softmax(-1) @ v


def close(got, want, tolerance=6e-3):
    for n, (x, y) in enumerate(zip(got, want)):
        assert x.shape == y.shape and (x.double() - y).abs().max() <= tolerance * (0.5 + y.abs().max()), (n, (x.double() - y).abs().max())


CAP = {"score": lambda s, b, h, i, j: 3.0 * fc.tanh(s * (1.0 / 3.0))}
CASES = {
    "D=64, causal, grouped": (dict(d=64, groups=2, dtype="bfloat16"), {"causal": "top_left"}, {"causal": True}, 3e-2),
    "D=128, a soft cap": (dict(d=128), CAP, {"cap": 3.0}, 6e-3),
    "D=256": (dict(d=256, m=130, n=70), {}, {}, 6e-3),
}


def draw(d, groups=4, m=200, n=333, dtype="float16"):
    return half(2, 4, m, d, dtype=dtype), half(2, groups, n, d, dtype=dtype), half(2, groups, n, d, dtype=dtype)


@pytest.mark.parametrize("name", CASES)
def test_tangents_and_second_derivatives(name):
    shape, more, theirs, tolerance = CASES[name]
    xs, ts = draw(**shape), draw(**shape)
    g, tg = torch.randn_like(xs[0]), torch.randn_like(xs[0])
    doubles = lambda *x: tuple(t.double() for t in x)
    ours, want = lambda *x: fc.attention(*x, **more), lambda *x: exactly(*x, **theirs)
    close(torch.func.jvp(ours, xs, ts), torch.func.jvp(want, doubles(*xs), doubles(*ts)), tolerance)
    gradients = lambda f: lambda q, k, v, g: torch.func.vjp(f, q, k, v)[1](g)
    got = torch.func.jvp(gradients(ours), (*xs, g), (*ts, tg))
    close(sum(got, ()), sum(torch.func.jvp(gradients(want), doubles(*xs, g), doubles(*ts, tg)), ()), tolerance)

    def twice(f, xs):
        xs = [x.clone().requires_grad_() for x in xs]
        first = torch.autograd.grad(f(*xs[:3]), xs[:3], xs[3], create_graph=True)
        return torch.autograd.grad(first, xs, [t.to(xs[0].dtype) for t in ts])

    close(twice(ours, (*xs, g)), twice(want, doubles(*xs, g)), tolerance)


def test_batches_of_torch_func():
    q, k, v = half(3, 2, 4, 70, 64), half(3, 2, 4, 90, 64), half(2, 4, 90, 64)
    run = lambda f, *xs: torch.func.vmap(f, (0, 0, None))(*xs)
    close([run(fc.attention, q, k, v)], [run(exactly, q.double(), k.double(), v.double())])
    each = lambda f, *xs: torch.func.vmap(torch.func.grad(lambda q, k, v: f(q, k, v).double().square().sum(), (0, 1, 2)), (0, 0, None))(*xs)
    close(each(fc.attention, q, k, v), each(exactly, q.double(), k.double(), v.double()), 1e-2)


def test_a_training_step_in_a_cuda_graph():
    xs = [half(2, 4, 200, 64).requires_grad_() for _ in range(3)]
    g = half(2, 4, 200, 64)

    def step():
        for x in xs:
            x.grad = None
        fc.scaled_dot_product_attention(*xs, is_causal=True).backward(g)
        return [x.grad for x in xs]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    for _ in range(2):
        with torch.no_grad():
            for x in (*xs, g):
                x.copy_(torch.randn_like(x))
        graph.replay()
        ys = [x.detach().double().requires_grad_() for x in xs]
        close(found, torch.autograd.grad(exactly(*ys, causal=True), ys, g.double()), 1e-2)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.into = torch.nn.Linear(128, 384, device="cuda", dtype=torch.float16)

    def forward(self, x):
        q, k, v = (y.view(*x.shape[:2], 2, 64).transpose(1, 2) for y in self.into(x).chunk(3, -1))
        return fc.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)


def test_exported_training_programs():
    """Packages of AOTInductor: `benchmarks.aot_inductor`, as one that cannot be loaded ends its process."""
    module = Block()
    dims = {0: torch.export.Dim("b", max=64), 1: torch.export.Dim("n", min=2, max=4096)}
    again = torch.export.export(module, (half(2, 90, 128),), dynamic_shapes=(dims,)).module()
    x = half(3, 140, 128)
    for m in (module, again):
        m(x).float().square().sum().backward()
    close([again.into.weight.grad], [module.into.weight.grad.double()])
