"""`fcgen.flex_attention` takes torch's functions and block masks, and computes what FlexAttention does."""

from __future__ import annotations

import pytest

import fcgen
from fcgen.errors import FcError

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
theirs = pytest.importorskip("torch.nn.attention.flex_attention", reason="needs a torch with FlexAttention")
pytestmark = pytest.mark.filterwarnings("ignore")
F = torch.nn.functional
M, N = 70, 90


def half(*shape):
    return torch.randn(*shape).half()


def inputs(groups=4):
    return half(2, 4, M, 16), half(2, groups, N, 16), half(2, groups, N, 16)


def compare(q, k, v, *args, **named):
    want = theirs.flex_attention(q.float(), k.float(), v.float(), *args, **named)
    got = fcgen.flex_attention(q, k, v, *args, **named)
    assert (got - want).abs().max() < 4e-3


def block_mask(fn, B=None, H=None):
    return theirs.create_block_mask(fn, B, H, M, N, device="cpu", BLOCK_SIZE=16)


def held():
    return {"slopes": torch.randn(4), "bias": half(2, 4, M, N), "doc": torch.arange(N) // 23, "cap": 20.0, "number": torch.tensor(3), "keys": torch.rand(N) > 0.4, "table": torch.randn(N),
            "signed": torch.randint(-N, N, (N,))}


SCORES = {
    "none": lambda x: None, "slopes of integers": lambda x: lambda s, b, h, i, j: s + x["slopes"][h] * (j - i),
    "a cap and a bias": lambda x: lambda s, b, h, i, j: x["cap"] * torch.tanh(s / x["cap"]) + x["bias"][b, h, i, j],
    "where": lambda x: lambda s, b, h, i, j: torch.where((x["doc"][i] - x["doc"][j]).abs() < 2, s, s * 0.5),
    "where of a number": lambda x: lambda s, b, h, i, j: torch.where(i >= j, s, -float("inf")),
    "distances": lambda x: lambda s, b, h, i, j: s + (i - j) / 8, "clamp": lambda x: lambda s, b, h, i, j: torch.clamp(s, min=-1.0, max=x["cap"] / 10) + torch.minimum(i, j) / 30,
    "one index after the other": lambda x: lambda s, b, h, i, j: s + x["bias"][b][h][i, j] + x["bias"][1][h, i][j] + x["slopes"][h],
    "activations": lambda x: lambda s, b, h, i, j: torch.nn.functional.silu(s) + F.gelu(s) - F.gelu(s, approximate="tanh") + F.softplus(s, 2.0) + F.relu(i - j) / 50,
    "positions from the end": lambda x: lambda s, b, h, i, j: s + x["table"][i - j] + x["table"][x["signed"][j]] + x["bias"][b, h, i - M, j - N],
    "filled": lambda x: lambda s, b, h, i, j: torch.where(i > 3 + torch.zeros_like(j), s, torch.full_like(s, -1.0)) + torch.ones_like(s),
    "odd numbers": lambda x: lambda s, b, h, i, j: torch.where(torch.isnan(s) | s.isinf(), 0.0, s) + torch.log1p(s.abs()) + torch.expm1(-s.abs()),
    "tangents": lambda x: lambda s, b, h, i, j: s + torch.tan(s / 9).relu(),
    "methods": lambda x: lambda s, b, h, i, j: (s.exp().log() + (i - j).abs().float().sqrt() * 0.1).to(torch.float32)}
MASKS = {
    "causal": lambda x: lambda b, h, i, j: i >= j, "window": lambda x: lambda b, h, i, j: torch.abs(i - j) <= 10,
    "documents": lambda x: lambda b, h, i, j: x["doc"][i] == x["doc"][j],
    "and": lambda x: theirs.and_masks(lambda b, h, i, j: i >= j, lambda b, h, i, j: (i - j).abs() <= 10),
    "or of and": lambda x: theirs.or_masks(theirs.and_masks(MASKS["causal"](x), MASKS["documents"](x)), MASKS["window"](x)),
    "batch and head": lambda x: lambda b, h, i, j: (j < 30 + b * 5) & (h * 10 <= i), "rows without keys": lambda x: lambda b, h, i, j: x["keys"][j] & (i > 10),
    "what cannot be traced": lambda x: lambda b, h, i, j: x["bias"][0, 0].flatten()[i * N + j] > 0, "nothing": lambda x: lambda b, h, i, j: (i >= 0) & (j < 0)}


@pytest.mark.parametrize("name", [n for n in SCORES])
def test_score_functions(kernels, name):
    score = SCORES[name](held())
    compare(*inputs(), score)
    assert len(kernels) == 1


@pytest.mark.parametrize("name", MASKS)
def test_mask_functions(kernels, name):
    compare(*inputs(), None, block_mask(MASKS[name](held()), 2, 4))
    launched = [p.name for p in kernels if "attention" in p.name]
    assert len(launched) == 1


def test_scores_masks_groups_and_a_scale_together(kernels):
    x = held()
    compare(*inputs(2), SCORES["slopes of integers"](x), block_mask(MASKS["causal"](x)), scale=0.3, enable_gqa=True)


@pytest.mark.parametrize("size", [(16, 16), (64, 32)], ids=str)
@pytest.mark.parametrize("kind", ["partial", "partial with a function", "partial and full"])
def test_lists_of_blocks_count_where_they_are_not_the_functions(kernels, kind, size):
    tall, wide = size
    rows, columns = -(-M // tall), -(-N // wide)
    count = torch.randint(1, columns // 2 + 1, (1, 1, rows), dtype=torch.int32)
    index = torch.stack([torch.randperm(columns) for _ in range(rows)])[None, None].int()
    full = (count, index.flip(-1)) if kind.endswith("full") else (None, None)
    window = lambda b, h, i, j: (i - j).abs() <= 20
    mask = None if kind == "partial" else window
    block = theirs.BlockMask.from_kv_blocks(count, index, *full, BLOCK_SIZE=size, mask_mod=mask, seq_lengths=(M, N))
    table = torch.zeros(rows, columns, dtype=torch.int)
    for row in range(rows):
        table[row, index[0, 0, row, :count[0, 0, row]].long()] = 1
        if full[0] is not None:
            table[row, index.flip(-1)[0, 0, row, :count[0, 0, row]].long()] = 2
    i, j = torch.arange(M)[:, None], torch.arange(N)[None]
    seen = table[i // tall, j // wide]
    seen = (seen == 2) | ((seen == 1) & (mask(0, 0, i, j) if mask else torch.tensor(True)))
    q, k, v = inputs()
    want = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=seen)
    assert (fcgen.flex_attention(q, k, v, block_mask=block) - want).abs().max() < 4e-3


def test_the_log_sum_exp_in_both_spellings(kernels):
    q, k, v = inputs()
    _, want = theirs.flex_attention(q.float(), k.float(), v.float(), return_lse=True)
    aux = fcgen.flex_attention(q, k, v, return_aux=theirs.AuxRequest(lse=True))[1]
    assert (aux.lse - want).abs().max() < 1e-4 and aux.max_scores is None
    assert torch.equal(fcgen.flex_attention(q, k, v, return_lse=True)[1], aux.lse)


def test_other_tensors_and_numbers_compile_nothing(kernels):
    q, k, v = inputs()
    for _ in range(3):
        x = held()
        compare(q, k, v, SCORES["slopes of integers"](x), block_mask(MASKS["documents"](x)))
    assert len({id(p) for p in kernels if "attention" in p.name}) == 1


@pytest.mark.parametrize(("score", "said"), [
    (lambda s, b, h, i, j: s + torch.cumsum(s, 0), "torch.cumsum"), (lambda s, b, h, i, j: s if i > j else -s, "no truth value"), (3, "not a function")])
def test_a_mistake_names_the_line_of_the_function(kernels, score, said):
    with pytest.raises(FcError, match=said) as caught:
        fcgen.flex_attention(*inputs(), score)
    assert score == 3 or (__file__.endswith(caught.value.loc.file) and "cumsum" in caught.value.loc.source_line())


@pytest.mark.parametrize(("options", "said"), [
    ({"kernel_options": {"BLOCK_M": 64}}, "kernel_options"), ({"return_aux": theirs.AuxRequest(max_scores=True)}, "maxima"), ({"block_mask": 3}, "not a BlockMask"),
    ({"return_lse": True, "return_aux": theirs.AuxRequest(lse=True)}, "both given")], ids=lambda x: str(x)[:20])
def test_refused(kernels, options, said):
    with pytest.raises(FcError, match=said):
        fcgen.flex_attention(*inputs(), **options)
    with pytest.raises(FcError, match="other lengths"):
        fcgen.flex_attention(*inputs(), block_mask=theirs.create_block_mask(MASKS["causal"](None), None, None, M, N + 1, device="cpu", BLOCK_SIZE=16))
    with pytest.raises(FcError, match="enable_gqa"):
        fcgen.flex_attention(*inputs(2))


def test_one_graph_for_all_lengths_and_all_that_functions_hold(kernels, fresh):
    backend, made = fresh
    block = torch.compile(lambda q, k, v, score, mask: fcgen.flex_attention(q * 1, k, v, score, mask) + 1, fullgraph=True, backend=backend)

    def check(n):
        slopes, doc, width = torch.randn(4), torch.arange(n) // 11, n // 4
        q, k, v = (half(2, 4, n, 16) for _ in range(3))
        score = lambda s, b, h, i, j: s + slopes[h] * (j - i)
        mask = theirs.create_block_mask(theirs.and_masks(lambda b, h, i, j: doc[i] == doc[j], lambda b, h, i, j: (i - j).abs() <= width), None, None, n, n, device="cpu", BLOCK_SIZE=16)
        assert (block(q, k, v, score, mask) - theirs.flex_attention(q.float(), k.float(), v.float(), score, mask) - 1).abs().max() < 4e-3

    for n in (40, 56, 72):
        check(n)
    graphs = len(made)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (88, 104):
            check(n)
    assert len(made) == graphs <= 3 and "fcgen.flex" in str(made[-1].code)


@pytest.mark.parametrize("name", ["documents", "not to be traced"])
def test_masks_are_evaluated_in_modes_of_torchs_dispatcher(kernels, name):
    """The first run of a compiled graph is in one, and operators that stand below it cannot reach torch.vmap as they are."""
    from torch.utils.flop_counter import FlopCounterMode

    doc, keys = held()["doc"], held()["keys"]
    function = (lambda b, h, i, j: doc[i] == doc[j]) if name == "documents" else lambda b, h, i, j: keys.cumsum(0)[j] > i / 2
    q, k, v = inputs()
    mask = block_mask(function)
    want = fcgen.flex_attention(q, k, v, block_mask=mask)
    with FlopCounterMode(display=False):
        assert torch.equal(fcgen.flex_attention(q, k, v, block_mask=mask), want)


def test_a_function_made_inside_of_a_graph_is_refused_there_and_works_around_it(kernels, fresh):
    def block(q, k, v):
        table = q.sum(dim=(0, 2, 3)).float() * 0
        return fcgen.flex_attention(q, k, v, lambda s, b, h, i, j: s + table[h])

    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(block, fullgraph=True, backend="eager")(*inputs())
    q, k, v = inputs()
    assert (torch.compile(block, backend="eager")(q, k, v) - fcgen.flex_attention(q, k, v)).abs().max() < 1e-3


@pytest.mark.parametrize("sizes", [(17, 17), (24, 30), (94, 121)], ids=str)
def test_head_sizes_that_kernels_have_not_are_padded(kernels, sizes):
    q, k, v = half(2, 4, M, sizes[0]), half(2, 4, N, sizes[0]), half(2, 4, N, sizes[1])
    compare(q, k, v, SCORES["where of a number"](None))
    out, lse = fcgen.flex_attention(q, k, v, return_lse=True)
    assert out.shape == (2, 4, M, sizes[1]) and lse.shape == (2, 4, M)


class Shift:
    def __init__(self):
        self.by, self.table, self.unused = 3, torch.randn(N + 8), "words"

    def score_mod(self, inner):
        return lambda s, b, h, i, j: inner(s, b, h, i, j) + self.table[j + self.by]


def test_a_graph_holds_the_attributes_that_a_function_names(kernels, fresh):
    backend, _ = fresh
    block = torch.compile(lambda q, k, v, score: fcgen.flex_attention(q, k, v, score), fullgraph=True, backend=backend)
    q, k, v = inputs()
    for by in (1, 5):
        shift = Shift()
        shift.by = by
        score = shift.score_mod(SCORES["where of a number"](None))
        assert torch.equal(block(q, k, v, score), fcgen.flex_attention(q, k, v, score))
        assert (block(q, k, v, score) - theirs.flex_attention(q.float(), k.float(), v.float(), score)).abs().max() < 4e-3


GLOBAL = torch.ones(N)


def test_a_gradient_that_would_not_reach_a_global_is_refused_in_a_graph(kernels, fresh, monkeypatch):
    score = lambda s, b, h, i, j: s + GLOBAL[j]
    block = torch.compile(lambda q, k, v: fcgen.flex_attention(q, k, v, score), backend="eager")
    block(*inputs())
    torch._dynamo.reset()
    monkeypatch.setitem(globals(), "GLOBAL", torch.ones(N).requires_grad_())
    with pytest.raises(Exception, match="no gradient would reach it"):
        block(*inputs())


POINTS = {
    "added": lambda x: lambda s, b, h, i, j: s + x["whole"], "on the left": lambda x: lambda s, b, h, i, j: x["real"] * s - x["short"],
    "an index": lambda x: lambda s, b, h, i, j: s + x["table"][h][x["whole"], i] + x["table"][x["short"], x["whole"], j],
    "with positions": lambda x: lambda s, b, h, i, j: torch.where(i >= j - x["whole"], s + (i - j) * x["real"] / 90, -float("inf")),
    "arguments": lambda x: lambda s, b, h, i, j: torch.clamp(s, max=x["real"]) + torch.maximum(s, x["half"]),
    "a condition": lambda x: lambda s, b, h, i, j: torch.where(x["true"] & (i > j), s, s * 0.5), "negated": lambda x: lambda s, b, h, i, j: s + (-x["real"])}


@pytest.mark.parametrize("name", POINTS)
def test_captured_tensors_without_axes_are_read_on_the_gpu(kernels, monkeypatch, name):
    from fcgen.lang import captures

    monkeypatch.setattr(captures, "_on_gpu", lambda x: True)
    x = {"whole": torch.tensor(3), "short": torch.tensor(2, dtype=torch.int32), "real": torch.tensor(1.5), "half": torch.tensor(0.5).half(),
         "true": torch.tensor(True), "table": torch.randn(4, 4, N)}
    q, k, v = (t.requires_grad_() for t in inputs())
    score = POINTS[name](x)
    for _ in range(2):
        want = theirs.flex_attention(*(t.detach().float() for t in (q, k, v)), score)
        assert (fcgen.flex_attention(q, k, v, score) - want).abs().max() < 8e-3
        x["real"].add_(1.0)  # what it holds then counts
    out = fcgen.flex_attention(q, k, v, score)
    out.float().sum().backward()
    assert len({id(p) for p in kernels if "attention" in p.name and "backward" not in p.name}) == 1


def test_keys_in_pages_of_torchs(kernels, fresh):
    from torch.nn.attention.experimental._paged_attention import PagedAttention

    backend, _ = fresh
    q, k, v = half(2, 2, 40, 16), half(2, 2, 64, 16), half(2, 2, 64, 16)
    pages = PagedAttention(8, 16, 3, device="cpu")
    for b, size in ((0, 20), (1, 64), (0, 64)):
        pages.reserve(torch.tensor(b), torch.tensor(size))
    stored = [torch.zeros(1, 2, 128, 16).half() for _ in range(2)]
    pages.assign(torch.arange(2), torch.arange(64).expand(2, 64), k, v, *stored)
    lengths, twice = torch.full((2,), 64), lambda s, b, h, i, j: s * 2
    mask = theirs.create_block_mask(lambda b, h, i, j: i + 24 >= j, 2, 1, 40, 64, device="cpu", BLOCK_SIZE=16)
    given = pages.get_score_mod(twice, kv_len=lengths), pages.convert_logical_block_mask(mask, kv_len=lengths)
    want = theirs.flex_attention(q.float(), k.float(), v.float(), twice, mask)
    for call in (fcgen.flex_attention, torch.compile(fcgen.flex_attention, fullgraph=True, backend=backend)):
        assert (call(q, *stored, *given) - want).abs().max() < 4e-3
