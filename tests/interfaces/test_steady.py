"""A call with masks, caps or sinks that has been made before launches what the slow way would, and is looked at less."""

from __future__ import annotations

import hashlib

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
import fcgen  # noqa: E402
from fcgen import masks, scores  # noqa: E402
from fcgen.attend import backward_plans, calls, forward, packed, trained, training, varlen  # noqa: E402
from fcgen.build import compiler  # noqa: E402
from fcgen.errors import FcError  # noqa: E402
from fcgen.launch import Launcher  # noqa: E402
from fcgen.runtime import cache, cubin, nvrtc  # noqa: E402
from fcgen.torch.core import attend  # noqa: E402
from tests.interfaces.interpreted import alone  # noqa: E402
from tests.runtime.pretend import Driver, install, real_torch  # noqa: E402


@pytest.fixture
def launched(monkeypatch):
    """What is launched: [(name, grid, {parameter: bytes} but for those of outputs)]."""
    alone(monkeypatch)
    fake = install(monkeypatch, Driver())
    real_torch(monkeypatch)
    monkeypatch.setattr(nvrtc, "compile_cuda", lambda source, arch, *, name, **_: nvrtc.Binary(hashlib.sha256(source.encode()).digest(), "", arch, name))
    monkeypatch.setattr(compiler, "nvrtc_fingerprint", lambda: "pretend")
    monkeypatch.setattr(cache, "open_cache", lambda: cache.DiskCache(None))
    monkeypatch.setattr(cubin, "resources", lambda binary, log="": Anything())
    monkeypatch.setattr(torch.Tensor, "get_device", lambda self: 0)
    names, start = {}, Launcher.__init__

    def made(self, built, narrower=None):
        start(self, built, narrower)
        names[built.cubin] = [(kind, name) for kind, name, *_ in built.facts.flat]
        fake.kernels[built.cubin] = [128 if kind == "map" else 4 if kind in ("scalar", "size") else 8 for kind, _ in names[built.cubin]]

    monkeypatch.setattr(Launcher, "__init__", made)
    launch, out = fake.cuLaunchKernelEx, []

    def seen(config, function, params, extra):
        status = launch(config, function, params, extra)
        grid, *_, arguments = fake.launches[-1]
        of = names[fake.cubins[function - 1]]
        out.append((grid, (("kernel", fake.cubins[function - 1]), *((key, x) for key, x in zip(of, arguments) if key[1] not in MADE))))
        return status

    monkeypatch.setattr(fake, "cuLaunchKernelEx", seen)
    return out


#: tensors that calls make
MADE = ("O", "LSE", "Sequence", "Number", "Count", "List", "PartCount", "Part", "dQ", "dK", "dV", "Delta", "LSE2", "Sums")


class Anything(dict):
    """What any kernel needs: little."""

    def __missing__(self, name):
        return cubin.Resources(64, 0, 0, None, 0, 0, 0)


def half(*shape):
    return torch.randn(*shape).half()


SINKS = torch.randn(4)
DENSE = {"a window": {"causal": "bottom_right", "left": 9}, "a cap, with the log-sum-exp": {"softcap": 5.0, "lse": True}, "sinks": {"sinks": SINKS, "causal": "top_left"},
         "a bias": {"table": torch.randn(1, 1, 33, 50)}, "positions": {"causal": "shifted", "shift": 5, "left": 7}}


def tensors():
    return half(1, 4, 33, 64), half(1, 2, 50, 64), half(1, 2, 50, 64)


@pytest.mark.parametrize("name", DENSE)
def test_other_tensors_of_the_same_sizes_are_launched_as_the_slow_way_would(launched, name, monkeypatch):
    call = lambda given: attend(*given, **DENSE[name])
    before, given = tensors(), tensors()
    call(before)
    call(before)
    with monkeypatch.context() as patch:
        patch.setattr(forward, "_unknown", None)  # no slow way
        out = call(given)
    calls.kinds.clear()
    call(given)
    first, _, known, slow = (dict(arguments) | {"grid": grid} for grid, arguments in launched)
    assert [key for key in slow if slow[key] != known.get(key)] == [] and known != first
    assert isinstance(out, tuple) == bool(DENSE[name].get("lse"))


def alone_here(monkeypatch):
    """Programs and plans of backward passes are this test's."""
    monkeypatch.setattr(training, "_plans", {})
    monkeypatch.setattr(training, "_programs", {})


BACKWARD = {"full": ({}, "qkv", False), "causal": ({"causal": "top_left"}, "qkv", False), "in order": ({}, "qkv", True), "of q alone": ({}, "q", False),
            "of keys alone": ({"causal": "top_left"}, "kv", False)}


@pytest.mark.parametrize("name", BACKWARD)
def test_a_backward_pass_that_is_known_launches_what_the_slow_way_would(launched, name, monkeypatch):
    options, learn, in_order = BACKWARD[name]
    alone_here(monkeypatch)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: in_order)
    given = [tuple(x.requires_grad_(n in learn) for n, x in zip("qkv", (half(2, m, 4, 64).transpose(1, 2), half(2, 50, 2, 64).transpose(1, 2),
                                                                       half(2, 50, 2, 64).transpose(1, 2)))) for m in (33, 33, 35)]
    outs, into = [fcgen.attention(*xs, **options) for xs in given], [half(2, m, 4, 64).transpose(1, 2) for m in (33, 33, 35)]

    def run(n):
        del launched[:]
        wanted = [x for x in given[n] if x.requires_grad]
        grads = torch.autograd.grad(outs[n], wanted, into[n], retain_graph=True)
        assert all(g.shape == x.shape and g.stride() == x.stride() for g, x in zip(grads, wanted))
        return [(dict(arguments) | {"grid": grid}) for grid, arguments in launched]

    run(0)
    with monkeypatch.context() as patch:
        patch.setattr(training.Ready, "launch", lambda *_: pytest.fail("the slow way"))
        known = [run(1), run(2)]
    for plan in training._plans.values():
        plan.kinds.clear()
    monkeypatch.setattr(backward_plans, "learn", lambda *_: None)
    assert known == [run(1), run(2)] and known[0] != known[1] and len(known[0]) == {"full": 3, "of q alone": 1}.get(name, 2)


@pytest.mark.parametrize("name", BACKWARD)
def test_a_call_that_trains_and_is_known_launches_what_the_slow_way_would(launched, name, monkeypatch):
    options, learn, in_order = BACKWARD[name]
    alone_here(monkeypatch)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: in_order)
    given = [[x.requires_grad_(n in learn) for n, x in zip("qkv", tensors())] for _ in range(2)]

    def run(xs):
        del launched[:]
        out, lse = fcgen.attention(*xs, **options, return_lse=True)
        torch.autograd.grad([out, lse], [x for x in xs if x.requires_grad], [torch.ones_like(out), torch.ones_like(lse)])
        (grid, arguments), *others = launched
        return dict(arguments) | {"grid": grid}, [(grid, dict(arguments)["kernel"]) for grid, arguments in others]

    first = run(given[0])
    with monkeypatch.context() as patch:
        patch.setattr(forward, "_training_call", lambda *_, **__: pytest.fail("the slow way"))
        patch.setattr(forward, "_checked", lambda *_: pytest.fail("the slow way"))
        known = run(given[1])
    trained._passes.clear()
    calls.kinds.clear()
    assert first != known == run(given[1])


def test_a_call_that_trains_is_looked_at_where_something_else_is_asked_for(launched, monkeypatch):
    alone_here(monkeypatch)
    q, k, v = (x.requires_grad_() for x in tensors())
    fcgen.attention(q, k, v)
    odd = torch.zeros(k.numel() + 1).half()[1:].view_as(k).requires_grad_()  # begins on no multiple of 16 bytes
    looked, call_of = [], forward._training_call
    monkeypatch.setattr(forward, "_training_call", lambda *xs, **more: looked.append(1) or call_of(*xs, **more))
    others = [((q, k, v), {"causal": "top_left"}), ((q, k, v), {"scale": 0.5}), ((q.detach(), k, v), {}), ((q, odd, v), {}), ((q[:, :, :30], k, v), {}),
              ((q, k, v), {"score": lambda s, b, h, i, j: s * 2.0})]
    for n, (xs, more) in enumerate(others):
        fcgen.attention(*xs, **more)
        assert len(looked) == n + 1
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    fcgen.attention(q, k, v)
    fcgen.attention(q, k, v)
    assert len(looked) == len(others) + 1
    with pytest.raises(FcError, match="is not a strided tensor"):
        fcgen.attention(q.detach().to_sparse().requires_grad_(), k, v)


def test_a_backward_pass_that_is_not_quite_ordinary_goes_the_slow_way(launched, monkeypatch):
    alone_here(monkeypatch)
    xs = [x.requires_grad_() for x in tensors()]
    out, lse = fcgen.attention(*xs, return_lse=True)
    into = half(*out.shape)
    grads = lambda of, into: torch.autograd.grad(of, xs, into, retain_graph=True)
    grads(out, into)
    slow: list = []
    launch = training.Ready.launch
    monkeypatch.setattr(training.Ready, "launch", lambda *args: (slow.append(args[0]), launch(*args)))
    grads(out, into)
    assert not slow
    for of, g in (((out, lse), (into, torch.ones_like(lse))), (out, into.neg().resolve_neg().mT.contiguous().mT), (out, half(1).expand(out.shape))):
        grads(of, g)
        assert len(slow) == 3
        slow.clear()


CU, KU, USED = (torch.tensor(x, dtype=torch.int32) for x in ([0, 10, 10, 33], [0, 20, 40, 50], [8, 0, 23]))
IDS, BIAS = [(torch.arange(400, dtype=torch.int32) + n) // 100 for n in range(4)], [torch.randn(4) for _ in range(4)]
USED_KEYS = USED.clone()


def long_ones(n=400):
    return half(1, 4, n, 64), half(1, 2, n, 64), half(1, 2, n, 64)


def packed_ones(rows=33, keys=50):
    return half(rows, 4, 64), half(keys, 2, 64), half(keys, 2, 64)


def closure(by, bias):
    return lambda s, b, h, i, j: s * by + bias[h]


HELD = {
    "a closure": (tensors, lambda x, n: fcgen.attention(*x, score=closure(1.5 + n, BIAS[n]))),
    "a mask that is made at the call": (tensors, lambda x, n: fcgen.attention(*x, mask=masks.window(5 + n, 2) & masks.causal(n))),
    "lists of blocks": (long_ones, lambda x, n: fcgen.attention(*x, mask=masks.documents(IDS[n]))),
    "lists of blocks, causal": (long_ones, lambda x, n: fcgen.attention(*x, causal="bottom_right", mask=masks.documents(IDS[n]), return_lse=True)),
    "lists of what one kernel asks about every element": (long_ones, lambda x, n: fcgen.attention(*x, mask=masks.documents(IDS[n]) & masks.dilated(3 + n))),
    "dropout": (tensors, lambda x, n: fcgen.attention(*x, dropout=fcgen.Dropout(0.25, 7 + n, 1 << 40))),
    "packed": (packed_ones, lambda x, n: fcgen.attention_varlen(*x, CU, KU)),
    "packed, of one tensor of lengths": (packed_ones, lambda x, n: fcgen.attention_varlen(x[0], *(t[:33] for t in x[1:]), CU, CU, causal=True)),
    "packed, a window, lengths that are used": (packed_ones, lambda x, n: fcgen.attention_varlen(*x, CU, KU, 23, 20, seqused_q=USED, seqused_k=USED_KEYS,
                                                                                           window=(3 + n, None), return_lse=True)),
    "packed, with functions": (packed_ones, lambda x, n: fcgen.attention_varlen(*x, CU, KU, causal=True, score=scores.soft_cap(5.0 + n), sinks=SINKS))}


@pytest.mark.parametrize("name", HELD)
def test_what_a_call_holds_is_read_at_the_call(launched, name, monkeypatch):
    make, call = HELD[name]
    held = [(make(), n) for n in range(4)]
    for x, n in held[:2]:
        call(x, n)
    each = len(launched) // 2
    with monkeypatch.context() as patch:
        patch.setattr(forward, "_unknown", None)  # no slow way
        patch.setattr(varlen, "learns", None)
        compiled = fcgen.compile_count()
        for x, n in held[1:]:
            call(x, n)
    assert fcgen.compile_count() == compiled
    known = launched[2 * each:]
    del launched[:]
    calls.kinds.clear()
    packed.kinds.clear()
    for x, n in held[1:]:
        call(x, n)
    different = lambda a, b: [k for k in dict(a[1]) if dict(a[1])[k] != dict(b[1])[k]]
    assert len(known) == len(launched) == 3 * each and [a[0] for a in known] == [b[0] for b in launched]
    assert [different(a, b) for a, b in zip(known, launched)] == [[]] * (3 * each)


def test_what_is_not_such_a_call_goes_the_slow_way(launched):
    q, k, v = half(1, 4, 33, 64), half(1, 2, 50, 64), half(1, 2, 50, 64)
    call = lambda q, k=k, v=v, left=9: attend(q, k, v, causal="bottom_right", left=left)
    for _ in range(3):
        call(q)
    count = len(launched)
    assert call(q.clone().requires_grad_()).grad_fn is not None and len(launched) == count + 1
    del launched[-1]
    assert torch.vmap(call)(q[None]).shape == (1, *q.shape) and len(launched) == count + 1
    with torch.autograd.forward_ad.dual_level():
        out = call(torch.autograd.forward_ad.make_dual(q, torch.ones_like(q)))
        assert torch.autograd.forward_ad.unpack_dual(out).tangent is not None
    del launched[count:]
    others = {"unaligned": lambda: call(torch.zeros(q.numel() + 8, dtype=torch.float16)[1:q.numel() + 1].view(q.shape)), "another length": lambda: call(half(1, 4, 40, 64)),
              "another number": lambda: call(q, left=10), "one tensor twice": lambda: call(q, k, k)}
    for n, (name, other) in enumerate(others.items()):
        other()
        assert len(launched) == count + 2 * n + 1 and launched[-1] != launched[count - 1], name
        call(q)
        assert launched[-1] == launched[count - 1]
