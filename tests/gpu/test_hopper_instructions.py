"""Hopper's instruction records against the hardware: products, bulk copies, barriers, and what keeps registers and proxies in order."""

import numpy as np
import pytest

from fcgen.backends.targets.hopper import HINTS, INSTRS, WIDTHS, wgmma_name
from fcgen.ir.elementwise import to_dtype
from fcgen.ir.layout import SmemLayout
from fcgen.ir.types import DTYPES
from fcgen.runtime import driver, tensormap
from fcgen.sim.memory import encode

from . import micro_hopper as micro

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(driver.available()[0] and driver.device_info().capability != (9, 0),
                                                  reason="needs a GPU of compute capability 9.0: sm_90a runs on no other")]
torch = pytest.importorskip("torch")
rng = np.random.default_rng(0)


def gpu(x):
    return torch.from_numpy(np.ascontiguousarray(x)).cuda()


def empty(shape, dtype):
    """Filled with a pattern that no test expects."""
    return torch.full(shape, 0x7FC0FEED if dtype == torch.int32 else float("nan"), dtype=dtype, device="cuda")


def bits(x, dtype):
    return encode(x, DTYPES[dtype], 2)[..., 0]


def draw(dtype, *shape):
    return to_dtype(rng.standard_normal(shape), DTYPES[dtype]).astype(np.float32)


# ---- products -------------------------------------------------------------------------------------------------------------


def spans(rows, down):
    """Swizzles in which the operand is whole panels, by span in bytes; 0 is none."""
    return [s for s in (128, 64, 32, 0) if not down or rows % ((s or 16) // 2) == 0]


def packed(registers, dtype):
    """[4, lanes, n] -> the 32-bit registers of a warpgroup's threads."""
    return bits(registers, dtype).reshape(128, -1).view(np.uint32).view(np.int32)


@pytest.mark.parametrize("regs", [False, True], ids=["both_stored", "left_in_registers"])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("cols", WIDTHS)
def test_matrix_products(cols, dtype, regs):
    """Both majors and every swizzle of what is stored, at every step of depth; with and without the accumulator. What is not the
    operand's is NaN. The sums are within a few float32 roundings of exact ones."""
    name = wgmma_name(cols, dtype, regs)
    record = INSTRS[name]
    for ta, tb in micro.turns(cols, regs):
        for a_span in [128] if regs else spans(64, ta):
            for b_span in spans(cols, tb):
                part = (a_span + b_span) // 32 % 4
                right = micro.Operand(cols, b_span, bool(tb), part, 0)
                left = micro.Operand(64, a_span, bool(ta), part + 1, right.end)
                a, b, c = draw(dtype, 64, 16), draw(dtype, 16, cols), rng.standard_normal((4, 32, cols // 2)).astype(np.float32)
                image = np.full(left.end // 2, 0x7FFF, np.uint16)
                right.put(image, bits(b.T, dtype))
                if regs:
                    at = record.a.coords(4)
                    a = a[at[..., 0], at[..., 1]]
                else:
                    left.put(image, bits(a, dtype))
                words = gpu(packed(a, dtype)) if regs else torch.zeros(512, dtype=torch.int32, device="cuda")
                for add in (0, 1):
                    out = gpu(c if add else np.full_like(c, np.nan))
                    micro.launch(dtype, f"{name}_{ta}{tb}", ("ptr",) * 5 + ("i32", "i32"),
                                 [out, gpu(image.view(np.int32)), words, left.descriptor, right.descriptor, len(image) // 2, add],
                                 threads=128, smem=left.end)
                    np.testing.assert_allclose(out.cpu().numpy(), record.effect(a, b, c, bool(add)), rtol=0, atol=5e-5,
                                               err_msg=f"a {left.layout} transposed {ta}, b {right.layout} transposed {tb}, add {add}")


def test_groups_end_in_order():
    """After `wgmma_wait<1>` the first of two groups has its sums, after `wgmma_wait<0>` the second; right operand shared, left twice."""
    stored = [micro.Operand(64, 128, False, 0, start) for start in (0, 8192)]
    a, b = draw("f16", 64, 64), draw("f16", 64, 64)
    image = np.full(8192, 0x7FFF, np.uint16)
    stored[0].put(image, bits(a, "f16"))
    stored[1].put(image, bits(b.T, "f16"))
    at = INSTRS[wgmma_name(64, "f16", True)].a.coords(4)
    steps = [a[:, k:k + 16] for k in range(0, 64, 16)]
    registers = np.concatenate([s[at[..., 0], at[..., 1]] for s in steps], axis=-1)
    out = empty((2, 4, 32, 32), torch.float32)
    micro.launch("f16", "groups", ("ptr",) * 5 + ("i32",),
                 [out, gpu(image.view(np.int32)), gpu(packed(registers, "f16")), stored[0].descriptor, stored[1].descriptor, 4096],
                 threads=128, smem=16384)
    for n, regs in enumerate((False, True)):
        effect, want = INSTRS[wgmma_name(64, "f16", regs)].effect, np.zeros((4, 32, 32), np.float32)
        for k, step in enumerate(steps):
            want = effect(step[at[..., 0], at[..., 1]] if regs else step, b[16 * k:16 * k + 16], want)
        np.testing.assert_allclose(out[n].cpu().numpy(), want, rtol=0, atol=2e-4)


def test_descriptors():
    at = rng.integers(0, 2**14, 128) * 16
    out = torch.zeros((len(micro.FIELDS), 128), dtype=torch.int64, device="cuda")
    micro.launch("rest", "descriptors", ("ptr", "ptr"), [out, gpu(at.astype(np.int32))], threads=128)
    want = [INSTRS["smem_desc"].effect(*fields, at) for fields in micro.FIELDS]
    np.testing.assert_array_equal(out.cpu().numpy().view(np.uint64), want)


# ---- copies ---------------------------------------------------------------------------------------------------------------

#: shape, box, first coordinates (all outermost first): inside, over each end, before the start, wholly outside. Along the last axis they are
#: multiples of 16 bytes: elsewhere the copy is an illegal instruction.
COPIES = [
    ((70, 96), (40, 16), [(0, 0), (40, 64), (-7, -24), (69, 88), (-40, 0), (0, 96)]),
    ((5, 40, 72), (1, 32, 32), [(0, 0, 0), (4, 24, 48), (3, -9, -8), (-1, 0, 0), (5, 0, 0)]),
    ((2, 3, 33, 80), (1, 2, 16, 64), [(1, 0, 0, 0), (0, 2, 24, 40), (1, -1, -3, -16), (2, 0, 0, 0)]),
    ((2, 3, 2, 20, 48), (2, 1, 2, 8, 32), [(0, 0, 0, 0, 0), (1, 2, 1, 16, 24), (-1, 1, -1, -5, -8), (0, -1, 0, 0, 0)]),
]
TORCH = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "i32": torch.int32}


@pytest.mark.parametrize("span", [0, 32, 64, 128])
@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("shape, box, places", COPIES, ids=[f"{len(c[0])}d" for c in COPIES])
@pytest.mark.parametrize("hint", ["", *HINTS])
def test_bulk_copies(shape, box, places, dtype, span, hint):
    """One copy per panel of a tile, as the printer writes them: each element is where the tile's layout says, what lies outside of the
    tensor is zero, and no other byte of shared memory is touched."""
    size = DTYPES[dtype].bytes
    panel = span // size if span else box[-1]
    rows, boxes = int(np.prod(box[:-1])), max(1, box[-1] // panel)
    if rows % 8 and span:
        boxes = 1  # the next panel would not start on the swizzle's period
    one = (*box[:-1], panel)
    layout, tile = SmemLayout(panel, 0, span), (rows, panel * boxes)
    values = rng.integers(1, 100, (*shape[:-1], shape[-1] + 16)).astype(np.float32)
    tensor = torch.from_numpy(values).to(TORCH[dtype]).cuda()[..., :shape[-1]]  # rows apart; every value is exact in every dtype
    map_ = tensormap.encode(tensor.data_ptr(), dtype, tuple(tensor.shape), tuple(tensor.stride()), one, span, "x")
    record = INSTRS[f"tma_load_{len(shape)}d" + ("_hint" if hint else "")]
    i, j = np.meshgrid(np.arange(rows), np.arange(tile[1]), indexing="ij")
    to = np.asarray(layout.address(tile, size, i, j))
    for place in places:
        at = [int(c) for c in reversed(place)]
        out = empty((micro.COPY_BYTES // 4,), torch.int32)
        micro.launch("rest", f"copy_{len(shape)}d" + (f"_{hint}" if hint else ""), ("tensormap", "ptr") + ("i32",) * (3 + len(shape)),
                     [map_, out, rows * panel * size, boxes, panel, *at], threads=160, smem=micro.COPY_BYTES + 64)
        parts = [record.effect(values[..., :shape[-1]], one, at[0] + b * panel, *at[1:]).reshape(rows, panel) for b in range(boxes)]
        raw = encode(np.concatenate(parts, axis=1), DTYPES[dtype], 2)
        want = np.full(micro.COPY_BYTES // 2, 0xFFFF, np.uint16)
        want[to[..., None] // 2 + np.arange(size // 2)] = raw
        np.testing.assert_array_equal(out.cpu().numpy().view(np.uint16), want, err_msg=f"{dtype} box {one} at {place}, {layout}")


# ---- barriers -------------------------------------------------------------------------------------------------------------

INIT, ARRIVE, EXPECT, LAND = range(4)
EVENTS = {
    "count of one": [(INIT, 1), *[(ARRIVE, 0)] * 5],
    "count of three": [(INIT, 3), *[(ARRIVE, 0)] * 7],
    "bytes hold a phase open": [(INIT, 1), (EXPECT, 256), (LAND, 128), (LAND, 128), (EXPECT, 16), (LAND, 16), (ARRIVE, 0)],
    "an announcement is an arrival": [(INIT, 2), (EXPECT, 64), (LAND, 64), (ARRIVE, 0), (ARRIVE, 0), (EXPECT, 32), (LAND, 32)],
    "bytes before their announcement": [(INIT, 1), (LAND, 512), (EXPECT, 1024), (LAND, 512), (ARRIVE, 0)],
    "two announcements": [(INIT, 2), (EXPECT, 48), (EXPECT, 80), (LAND, 48), (LAND, 80), (ARRIVE, 0), (EXPECT, 0)],
}


def states(events):
    """Which parities' phases have ended, after each event: the phase ends with the last arrival and the last byte."""
    count = pending = transfer = phase = 0
    for what, x in events:
        if what == INIT:
            count = pending = x
            transfer = phase = 0
        transfer += {EXPECT: x, LAND: -x}.get(what, 0)
        pending -= what in (ARRIVE, EXPECT)
        if pending == 0 and transfer == 0:
            phase, pending = phase + 1, count
        yield [int(phase % 2 != parity) for parity in (0, 1)]


@pytest.mark.parametrize("name", EVENTS)
def test_barrier_states(name):
    events = EVENTS[name]
    out = empty((len(events), 2), torch.int32)
    micro.launch("rest", "states", ("ptr", "ptr", "i32"), [out, gpu(np.array(events, np.int32)), len(events)], threads=32)
    np.testing.assert_array_equal(out.cpu().numpy(), list(states(events)))


@pytest.mark.parametrize("rounds", [1, 2, 3, 9])
def test_waits(rounds):
    """127 threads see in each phase what the first thread wrote in it, late."""
    out = empty((rounds, 128), torch.int32)
    micro.launch("rest", "waits", ("ptr", "i32"), [out, rounds], threads=160)
    np.testing.assert_array_equal(out.cpu().numpy()[:, 1:], np.broadcast_to(np.arange(rounds)[:, None], (rounds, 127)))


@pytest.mark.parametrize("slow_load, slow_read", [(0, 0), (50000, 0), (0, 50000)], ids=["even", "slow_producer", "slow_consumers"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 32])
def test_a_ring(steps, slow_load, slow_read):
    """Whichever side waits, every tile arrives once and whole: a wait for the wrong phase would copy an old tile, or half a new one."""
    x = gpu(rng.integers(0, 2**31, (32 * steps, 32), dtype=np.int32))
    out = torch.full_like(x, -1)
    map_ = tensormap.encode(x.data_ptr(), "i32", tuple(x.shape), (32, 1), (32, 32), 0, "x")
    micro.launch("rest", "ring", ("tensormap", "ptr", "i32", "i32", "i32"), [map_, out, steps, slow_load, slow_read], threads=416)
    np.testing.assert_array_equal(out.cpu().numpy(), x.cpu().numpy())


@pytest.mark.parametrize("slow_write, slow_read", [(0, 0), (30000, 0), (0, 30000)], ids=["even", "slow_writer", "slow_reader"])
def test_named_barriers(slow_write, slow_read):
    rounds = 12
    out = empty((rounds, 128), torch.int32)
    micro.launch("rest", "turns", ("ptr", "i32", "i32", "i32"), [out, rounds, slow_write, slow_read], threads=288)
    np.testing.assert_array_equal(out.cpu().numpy(), np.arange(rounds)[:, None] * 1000 + 127 - np.arange(128))


# ---- registers and numbers ------------------------------------------------------------------------------------------------


def test_registers_move_between_warpgroups():
    """40 + 2 * 232 registers per thread of three warpgroups, launched with 168 each: all of them hold what they should."""
    rounds, x = 37, rng.integers(-1000, 1000, (160, 384)).astype(np.float32)
    out = empty((176, 384), torch.float32)
    micro.launch("rest", "registers", ("ptr", "ptr", "i32"), [out, gpu(x), rounds], threads=384)
    got = out.cpu().numpy()
    np.testing.assert_array_equal(got[:16], x[:16])
    np.testing.assert_array_equal(got[16:, 128:], np.roll(x, -rounds, axis=0)[:, 128:] + rounds)


def test_what_is_kept():
    x, f = rng.integers(-2**31, 2**31, (3, 128), dtype=np.int64).astype(np.int32), rng.standard_normal((3, 128)).astype(np.float32)
    words, floats = empty((3, 128), torch.int32), empty((3, 128), torch.float32)
    micro.launch("rest", "kept", ("ptr",) * 4, [words, gpu(x), floats, gpu(f)], threads=128)
    np.testing.assert_array_equal(words.cpu().numpy(), INSTRS["touch_b32"].effect(INSTRS["opaque"].effect(x)))
    np.testing.assert_array_equal(floats.cpu().numpy(), INSTRS["touch"].effect(f))


def test_largest_of_three():
    a, b, c = (rng.integers(-2**31, 2**31, 1024, dtype=np.int64).astype(np.int32) for _ in range(3))
    out = empty((1024,), torch.int32)
    micro.launch("rest", "vmax3", ("ptr",) * 4, [out, gpu(a), gpu(b), gpu(c)], threads=128, blocks=8)
    np.testing.assert_array_equal(out.cpu().numpy(), INSTRS["vmax3"].effect(a, b, c))


@pytest.mark.alone
def test_a_grid_begins_early_and_waits():
    """Each of a chain of launches reads, after its wait, what the one in front wrote at its end; and began before that."""
    launches = 12
    out, count = torch.full((launches, 3), -1, dtype=torch.int64, device="cuda"), torch.zeros(1, dtype=torch.int32, device="cuda")
    for n in range(launches):
        micro.launch("rest", "chain", ("ptr", "ptr", "i32"), [out, count, n], threads=32, pdl=True)
    torch.cuda.synchronize()
    begin, end, seen = out.cpu().numpy().T
    np.testing.assert_array_equal(seen, np.arange(launches))
    assert (begin[1:] < end[:-1]).sum() > launches // 2, "no launch began early"
