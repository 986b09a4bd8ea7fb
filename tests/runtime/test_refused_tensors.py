"""What looks like a tensor and is not its memory is refused before anything is launched, whatever was called before. torch's own classes."""

from __future__ import annotations

import contextlib

import pytest
from pretend import Driver, install, real_torch
from test_forward_steady import Program

import fcgen
from fcgen.attend import calls, forward, guards
from fcgen.errors import FcError
from fcgen.runtime import tensors

torch = pytest.importorskip("torch")
SHAPE = (2, 4, 64, 64)


@pytest.fixture
def fake(monkeypatch):
    fake = install(monkeypatch, Driver())
    real_torch(monkeypatch)
    made = {}

    def compiled(dtype, d, e, mask, lse, arch, schedule=None, positive=True, lazy=0.0, sums=""):
        key = (dtype, d, e, mask, lse, positive)
        if key not in made:
            made[key] = Program(dtype, lse, positive)
            fake.kernels[made[key].launcher.built.cubin] = made[key].sizes
        return made[key]

    monkeypatch.setattr(forward, "compiled", compiled)
    monkeypatch.setattr(calls, "kinds", {})
    monkeypatch.setattr(calls, "last", None)
    forward._arch.cache_clear()
    yield fake
    forward._arch.cache_clear()


def tensor(*shape, **more):
    return torch.zeros(shape or SHAPE, dtype=torch.float16, **more)


def fake_tensor():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return tensor()


def freed():
    x = tensor()
    x.untyped_storage().resize_(0)
    return x


def dtensor():
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return distribute_tensor(tensor(), init_device_mesh("cpu", (1,)), [Replicate()])


class Logged(torch.Tensor):
    """A class with operations of its own, and memory."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError("an operation")


class Named(torch.Tensor):
    """A class that adds nothing but a name."""


BAD = {
    "meta": (lambda: tensor(device="meta"), "has no memory"), "fake": (fake_tensor, "FakeTensor"), "freed": (freed, "has no memory"),
    "DTensor": (dtensor, "to_local"), "zero": (lambda: torch._efficientzerotensor(SHAPE, dtype=torch.float16), "has no memory"),
    "dispatch": (lambda: tensor().as_subclass(Logged), "Logged"), "negated": (lambda: torch._neg_view(tensor()), "resolve_neg"),
    "sparse": (lambda: tensor().to_sparse(), "not a strided tensor"),
    "nested": (lambda: torch.nested.nested_tensor([tensor(4, 64, 64)] * 2), "not a strided tensor"),
}


@pytest.mark.parametrize("before", [0, 20])
@pytest.mark.parametrize("position", [0, 1, 2, 3])
@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore")
def test_refused_whatever_was_called_before(fake, name, position, before):
    for _ in range(before):
        fcgen.attention(tensor(), tensor(), tensor(), out=tensor() if position == 3 else None)
    make, said = BAD[name]
    given = [tensor(), tensor(), tensor(), tensor() if position == 3 else None]
    given[position] = make()
    launched = len(fake.launches)
    for _ in range(2):
        with pytest.raises(FcError, match=said) as caught:
            fcgen.attention(*given[:3], out=given[3])
        assert caught.value.code == "call/argument" and f"`{('q', 'k', 'v', 'out')[position]}`" in str(caught.value)
    assert len(fake.launches) == launched
    fcgen.attention(tensor(), tensor(), tensor())


@pytest.mark.parametrize("before", [0, 20])
@pytest.mark.parametrize("transform", ["vmap", "functionalize"])
def test_transforms_are_followed_or_refused(fake, transform, before):
    for _ in range(before):
        fcgen.attention(tensor(), tensor(), tensor())
    call, launched = lambda q: fcgen.attention(q, tensor(), tensor()), len(fake.launches)
    if transform == "vmap":
        assert torch.vmap(call)(tensor(3, *SHAPE)).shape == (3, *SHAPE) and len(fake.launches) == launched + 1
        return
    with pytest.raises(FcError, match="a transform of torch"):
        torch.func.functionalize(call)(tensor())
    assert len(fake.launches) == launched


@pytest.mark.parametrize("before", [0, 20])
@pytest.mark.parametrize("no_grad", [False, True])
def test_a_tangent_is_not_lost(fake, before, no_grad):
    forward_ad = torch.autograd.forward_ad
    for _ in range(before):
        fcgen.attention(tensor(), tensor(), tensor())
    with forward_ad.dual_level(), torch.no_grad() if no_grad else contextlib.nullcontext():
        dual = forward_ad.make_dual(tensor(), torch.ones(SHAPE, dtype=torch.float16))
        launched = len(fake.launches)
        out = fcgen.attention(tensor(), dual, tensor())
        assert forward_ad.unpack_dual(out).tangent is not None and len(fake.launches) > launched
        out = fcgen.attention(tensor(), forward_ad.unpack_dual(dual).primal, tensor())
        assert forward_ad.unpack_dual(out).tangent is None


@pytest.mark.parametrize("before", [0, 20])
def test_without_grad_mode_parameters_are_values(fake, before):
    for _ in range(before):
        fcgen.attention(tensor(), tensor(), tensor())
    q, k = torch.nn.Parameter(tensor()), tensor(requires_grad=True)
    for _ in range(12):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                out = fcgen.attention(q, k, q.detach())
            assert not out.requires_grad and fake.launches
        assert fcgen.attention(q, k, q).requires_grad
        with pytest.raises(FcError, match=r"`out` requires grad(.|\n)*detach"):
            fcgen.attention(tensor(), tensor(), tensor(), out=tensor(requires_grad=True))
    assert len(fake.launches) == 36 + before


def test_plain_subclasses_and_buffers_are_tensors(fake):
    for _ in range(12):
        out = fcgen.attention(tensor().as_subclass(Named), torch.nn.Parameter(tensor(), requires_grad=False), tensor())
        assert out.shape == SHAPE and type(out) in (Named, torch.Tensor)


def test_an_output_that_was_saved_for_backward_is_known_to_have_changed(fake):
    out, weight = tensor(), torch.ones(SHAPE, dtype=torch.float16, requires_grad=True)
    for _ in range(20):
        product = weight * out  # saves out
        fcgen.attention(tensor(), tensor(), tensor(), out=out)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()


def views():
    """name -> (q, k, v, out, what is said)"""
    q, k, v = tensor(), tensor(), tensor()
    both = tensor(2, 4, 64, 128)
    flat = torch.zeros(2 * 2 * 4 * 64 * 64, dtype=torch.float16)
    first = flat[:2 * 4 * 64 * 64].view(SHAPE)
    return {"q": (q, k, v, q, "shares memory with `q`"), "k": (q, k, v, k, "shares memory with `k`"), "v": (q, k, v, v, "shares memory with `v`"),
            "view": (q, k, v, k.view(SHAPE), "shares memory with `k`"),
            "tail": (first, k, v, flat[-2 * 4 * 64 * 64:].view(SHAPE), None),
            "behind": (first, k, v, flat[2 * 4 * 64 * 64 - 64:-64].view(SHAPE), "shares memory with `q`"),
            "interleaved": (both[..., :64], k, v, both[..., 64:], None), "half": (both[..., :64], k, v, both[..., 32:96], "shares memory with `q`"),
            "expanded": (q, k, v, tensor(2, 1, 64, 64).expand(SHAPE), "elements of it share memory"),
            "inputs": (q, q, q, v, None), "flipped heads": (q, k, v, q[:, :, ::1], "shares memory with `q`")}


@pytest.mark.parametrize("before", [0, 1, 20])
@pytest.mark.parametrize("name", views())
def test_out_has_memory_of_its_own(fake, name, before):
    q, k, v, out, said = views()[name]
    like = lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
    for _ in range(before):
        fcgen.attention(like(q), like(k), like(v), out=tensor() if 0 in out.stride() else like(out))
    launched = len(fake.launches)
    if said is None:
        fcgen.attention(q, k, v, out=out)
        assert len(fake.launches) == launched + 1
    else:
        with pytest.raises(FcError, match=said) as caught:
            fcgen.attention(q, k, v, out=out)
        assert caught.value.code == "call/argument" and len(fake.launches) == launched and "`out`" in str(caught.value)


def test_guards_are_still_what_the_short_way_takes_them_for():
    """`guards` rests on these answers of torch's."""
    like = (tensor(), tensor(), tensor())
    loose, exact = guards.guard(like), guards.guard(like, sizes=True)
    longer = (tensor(), tensor(2, 4, 65, 64), tensor(2, 4, 65, 64))
    assert [g(*like) for g in (loose, exact)] == [True, True] and [g(*longer) for g in (loose, exact)] == [True, False]
    others = [tensor().float(), tensor()[0], tensor(device="meta"), tensor(requires_grad=True), torch._neg_view(tensor()),
              torch.nn.Parameter(tensor(), requires_grad=False), tensor().as_subclass(Named), fake_tensor(), None, 3, [1.0]]
    for other in others:
        for g in (loose, exact):
            assert not g(other, *like[1:]) and not g(*like[:2], other)
    with torch.inference_mode():
        assert not loose(*like)
    assert tensors.describe(like[0], "q", cpu_ok=True).ptr
