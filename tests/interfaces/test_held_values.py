"""The short way reads what functions hold when they are called, however they hold it, and knows a function by what it is."""

from __future__ import annotations

import functools
import sys
import threading
import types

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
import fcgen  # noqa: E402
from fcgen import scores  # noqa: E402
from fcgen.attend import calls, forward, packed  # noqa: E402
from fcgen.errors import FcError  # noqa: E402

from .test_steady import half, launched, tensors  # noqa: E402, F401

GLOBAL, TABLE = 1.5, [torch.randn(4), torch.randn(4)]


class Holder:
    def __init__(self, by, bias):
        self.by, self.bias = by, bias

    def method(self, s, b, h, i, j):
        return s * self.by + self.bias[h]

    def __call__(self, s, b, h, i, j):
        return s * self.by - self.bias[h]


def cells():
    by, bias = 1.5, TABLE[0]

    def change():
        nonlocal by, bias
        by, bias = 2.5, TABLE[1]

    return (lambda s, b, h, i, j: s * by + bias[h]), change


def members():
    held = {"by": 1.5, "of": [TABLE[0]]}

    def change():
        held["by"], held["of"][0] = 2.5, TABLE[1]

    return (lambda s, b, h, i, j: s * held["by"] + held["of"][0][h]), change


def names():
    space = types.ModuleType("user")
    sys.modules["user"] = space
    exec("by = 1.5\ndef score(s, b, h, i, j): return s * by + 1.0", vars(space))
    return space.score, lambda: setattr(space, "by", 2.5)


def attributes(method=True):
    held = Holder(1.5, TABLE[0])
    return held.method if method else held, lambda: vars(held).update(by=2.5, bias=TABLE[1])


def defaults():
    def score(s, b, h, i, j, by=1.5, *, more=0.5):
        return s * by + more

    def change():
        score.__defaults__, score.__kwdefaults__ = (2.5,), {"more": 1.0}

    return score, change


def partials():
    held = {"by": 1.5}
    f = lambda by, s, b, h, i, j, *, more: s * by["by"] + more
    return functools.partial(f, held, more=0.5), lambda: held.update(by=2.5)


def in_place():
    bias = TABLE[0].clone()
    return (lambda s, b, h, i, j: s + bias[h]), lambda: bias.add_(1.0)


def inner():
    by = 1.5
    scaled = lambda s: s * by

    def change():
        nonlocal by
        by = 2.5

    return (lambda s, b, h, i, j: scaled(s)), change


def other_kinds():
    by = 2

    def change():
        nonlocal by
        by = 2.0  # another type: traced again

    return (lambda s, b, h, i, j: s * by), change


def branches():
    by = 1

    def change():
        nonlocal by
        by = -1

    return (lambda s, b, h, i, j: s * 2.0 if by > 0 else s * 3.0), change


HOLDERS = [cells, members, names, attributes, lambda: attributes(False), defaults, partials, in_place, inner, other_kinds, branches]


@pytest.mark.parametrize("make", HOLDERS, ids=[getattr(f, "__name__", "objects").replace("<lambda>", "objects") for f in HOLDERS])
def test_a_change_of_what_a_function_holds_is_seen(launched, make):  # noqa: F811
    score, change = make()
    x = tensors()
    call = lambda: fcgen.attention(*x, score=score)
    for _ in range(4):
        call()
    assert launched[2] == launched[3]
    change()
    call()
    call()
    calls.kinds.clear()
    call()
    short, again, slow = launched[4:]
    assert short == again == slow
    assert (short != launched[3]) == (make is not in_place and make is not other_kinds), "in place, only memory changes"


def test_functions_of_one_name_or_text_are_told_apart(launched):  # noqa: F811
    x = tensors()

    def scored(by, sign):
        if sign:
            def score(s, b, h, i, j):
                return s * by
        else:
            def score(s, b, h, i, j):
                return s + by
        return score

    order = [(1.5, True), (1.5, False), (2.5, True), (2.5, False)] * 3
    for by, sign in order:
        fcgen.attention(*x, score=scored(by, sign))
    assert [launched[n] for n in range(4)] == launched[4:8] == launched[8:] and len(set(map(str, launched[:4]))) == 4


BAD = {"requires grad": lambda: torch.randn(4, requires_grad=True), "is on the CPU": lambda: torch.randn(4).numpy(), "wrong dtype": lambda: torch.randn(4).to(torch.complex64),
       "not contiguous": lambda: torch.randn(8)[::2], "no memory": lambda: torch.empty(4, device="meta")}


@pytest.mark.parametrize("said", BAD)
def test_what_no_kernel_takes_is_refused_after_any_number_of_calls(launched, said):  # noqa: F811
    bias = TABLE[0]
    score = lambda s, b, h, i, j: s + bias[h]
    call = lambda: fcgen.attention(*x, score=score, out=out)
    x = tensors()
    out = torch.empty_like(x[0])
    for _ in range(4):
        call()
    count, bias = len(launched), BAD[said]()
    for _ in range(3):
        with pytest.raises(FcError):
            call()
    assert len(launched) == count
    bias = TABLE[1]
    call()
    assert len(launched) == count + 1


def test_an_output_that_a_function_holds_too_is_refused(launched):  # noqa: F811
    x = tensors()
    out, held = torch.empty_like(x[0]), torch.randn(1, 4, 33, 64).half()
    score = lambda s, b, h, i, j: s + held[b, h, i, 0].to(fcgen.f32)
    for _ in range(4):
        fcgen.attention(*x, score=score, out=out)
    count, held = len(launched), out
    for _ in range(2):
        with pytest.raises(FcError, match="shares memory"):
            fcgen.attention(*x, score=score, out=out)
    assert len(launched) == count


def test_parameters_are_read_where_no_gradient_is_kept(launched):  # noqa: F811
    sinks, x = torch.nn.Parameter(torch.randn(4)), tensors()
    with torch.no_grad():
        for _ in range(3):
            fcgen.attention(*x, sinks=sinks)
        unknown, forward._unknown = forward._unknown, None
        try:
            fcgen.attention(*x, sinks=sinks)
        finally:
            forward._unknown = unknown
    count = len(launched)
    out = fcgen.attention(*x, sinks=sinks)
    assert out.requires_grad and len(launched) >= count + 1, "where one is, the call is trained"


def test_two_threads_with_one_plan(launched):  # noqa: F811
    x = tensors()

    def run(by):
        for _ in range(50):
            fcgen.attention(*x, score=lambda s, b, h, i, j: s * by)

    fcgen.attention(*x, score=lambda s, b, h, i, j: s * 1.0)
    run(4.0)
    before = len(launched)
    threads = [threading.Thread(target=run, args=(by,)) for by in (2.0, 3.0)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    scales = [dict(arguments)["scalar", "score_0"] for _, arguments in launched[before:]]
    assert len(scales) == 100 and {len([s for s in scales if s == one]) for one in set(scales)} == {50}


def test_a_thousand_changes_compile_nothing(launched):  # noqa: F811
    """Lengths, batch, heads, strides, captured numbers and tensors."""
    by, bias = 1.0, torch.randn(9, 64)
    score = lambda s, b, h, i, j: s * by + bias[b, h]
    run = lambda n, **more: fcgen.attention(*(half(1 + n % 3, h, 1 + n % 40, 64) for h in (4 * (1 + n % 2), 2, 2)), **more)
    every = [lambda n: run(n), lambda n: run(n, causal=True), lambda n: run(n, score=score), lambda n: run(n, mask=fcgen.masks.window(n % 9, 0))]
    every.append(lambda n: fcgen.attention(*(half(2, 20 + n % 9, 4, 64).transpose(1, 2) for _ in range(3)), scale=0.1 + n / 1000))
    for call in every:
        for n in range(72):
            by, bias = 1.0 + n, torch.randn(9, 64)[:, n % 7:]
            call(n)
    before = fcgen.compile_count()
    for n in range(200):
        for call in every:
            by = 0.5 - n
            call(n)
    assert fcgen.compile_count() == before and len(launched) >= 1000


def ints(*shape):
    return torch.ones(shape, dtype=torch.int32)


#: (what is given with a tensor, one that covers 1 batch, 4 heads, 33 rows and 50 keys, one that does not, what it lacks)
TOO_SMALL = {
    "sinks": (lambda t: {"sinks": t}, torch.ones(4), torch.ones(3), "4 heads"),
    "slopes": (lambda t: {"score": scores.alibi(t)}, torch.ones(4), torch.ones(2), "4 heads"),
    "factors": (lambda t: {"score": scores.soft_cap(3.0) + scores.temperature(t)}, torch.ones(4), torch.ones(1), "4 heads"),
    "a table of distances": (lambda t: {"score": scores.relative(t)}, torch.ones(4, 7), torch.ones(2, 7), "4 heads"),
    "a bias": (lambda t: {"score": scores.bias(t)}, torch.ones(33, 50), torch.ones(33, 49), "50 keys"),
    "documents": (lambda t: {"mask": fcgen.masks.documents(t[:33], t)}, ints(50), ints(40), "50 keys"),
    "rows of documents": (lambda t: {"mask": ~fcgen.masks.documents(t, ints(50)) | fcgen.masks.causal()}, ints(33), ints(32), "33 rows"),
    "blocks": (lambda t: {"mask": fcgen.masks.block_sparse(t, 16) & fcgen.masks.causal()}, ints(3, 4), ints(2, 4), "33 rows"),
    "lengths": (lambda t: {"mask": fcgen.masks.padding(t)}, ints(1), ints(0), "1 batches"),
}


@pytest.mark.parametrize("name", TOO_SMALL)
def test_a_tensor_of_a_ready_made_function_covers_the_call(launched, name):  # noqa: F811
    """Past its end it would be read as zero: other heads, rows and keys would get another sink, slope or document."""
    make, enough, small, lacks = TOO_SMALL[name]
    x = tensors()
    for _ in range(3):
        fcgen.attention(*x, **make(enough))
    for again in (True, False):  # the short way, the long way
        before = len(launched)
        with pytest.raises(FcError, match="too small for this call") as e:
            fcgen.attention(*x, **make(small))
        assert e.value.expected == lacks and len(launched) == before
        if again:
            calls.kinds.clear()


def test_a_tensor_of_a_ready_made_function_covers_packed_sequences(launched):  # noqa: F811
    q, k, offsets = half(60, 4, 64), half(60, 2, 64), torch.tensor([0, 20, 60], dtype=torch.int32)
    call = lambda sinks, lengths: fcgen.attention_varlen(q, k, k, offsets, sinks=sinks, mask=fcgen.masks.padding(lengths))
    for _ in range(3):
        call(torch.ones(4), ints(2))
    for sinks, lengths in ((torch.ones(3), ints(2)), (torch.ones(4), ints(1))):
        for _ in range(2):
            with pytest.raises(FcError, match="too small for this call"):
                call(sinks, lengths)
            packed.kinds.clear()
