"""The machine IR of asynchronous engines: types and ops read back as they were printed, and misuse is named."""

import pytest

from fcgen.errors import FcError
from fcgen.ir.parse import parse_kernel
from fcgen.ir.text import print_kernel

KERNEL = """\
machine kernel product
param %A: tensor f16[M, 64]
param %B: tensor f16[N, 64]
param %C: tensor f32[M, N] out
grid %i: M / 64, %j: N / 64
meta smem_bytes = 16448
meta smem_offsets = (0, 8192, 16384, 16392)
meta stage = synced
meta target = sm_90a
layout $0 = {w4@1 r2@2 l8@4 | r8@4 l4@1 r2@1}
smem %a: f16[64,64]{panel 64 swizzle 128}  // @0
smem %b: f16[64,64]{panel 64 swizzle 128}  // @8192
smem %full: mbarrier count 1  // @16384
smem %empty: mbarrier count 4  // @16392
role load warps 4 regs 56 {
  %c = cursor {slots = 1} : cursor x1
  %0 = const {value = 64, dtype = i32} : i32
  %1 = mul %i, %0 : i32
  %2 = mul %j, %0 : i32
  mbar_wait %empty, %c {lag = 1}
  mbar_expect %full, %c {bytes = 16384}
  tma_load %A, %1, %a, %full, %c {index = (tile, all), guard = (true, false)}
  tma_load %B, %2, %b, %full, %c {index = (tile, all), guard = (true, false)}
  %c.1 = advance %c : cursor x1
}
role main warps 4 regs 240 {
  %c = cursor {slots = 1} : cursor x1
  %0 = const {value = 64, dtype = i32} : i32
  %1 = mul %i, %0 : i32
  %2 = mul %j, %0 : i32
  mbar_wait %full, %c {lag = 0}
  wgmma_fence
  %acc = wgmma %a, %b {instr = wgmma_m64n64k16_f16, ta = false, tb = true} : pending frag f32[64,64]$0
  wgmma_commit
  %acc.1 = settle %acc {groups = 0} : frag f32[64,64]$0
  mbar_arrive %empty, %c
  st_global %C, %acc.1, %1, %2 {index = (tile, tile), guard = (true, true), vec = 4}
}
"""


def test_channels_and_pending_accumulators_print_as_they_were_read():
    kernel = parse_kernel(KERNEL)
    assert print_kernel(kernel) == KERNEL
    assert [str(b.type) for b in kernel.buffers[2:]] == ["mbarrier count 1", "mbarrier count 4"]


@pytest.mark.parametrize("old, new, rule", [
    ("st_global %C, %acc.1,", "st_global %C, %acc,", "st_global touches an accumulator in flight"),
    ("%acc.1 = settle %acc {groups = 0} : frag f32[64,64]$0", "%acc.1 = add %acc, %acc : pending frag f32[64,64]$0",
     "add touches an accumulator in flight"),
    ("%2 = mul %j, %0 : i32\n  mbar_wait %full", "%2 = mul %c, %0 : i32\n  mbar_wait %full", "mul takes a ring's position"),
    ("ta = false, tb = true} : pending frag f32[64,64]$0", "ta = false, tb = true} : frag f32[64,64]$0",
     "wgmma makes a pending accumulator"),
    ("cursor {slots = 1} : cursor x1\n  %0 = const {value = 64, dtype = i32} : i32\n  %1 = mul %i, %0 : i32\n  %2 = mul %j, %0 : i32\n  mbar_wait %full",
     "cursor {slots = 2} : cursor x2\n  %0 = const {value = 64, dtype = i32} : i32\n  %1 = mul %i, %0 : i32\n  %2 = mul %j, %0 : i32\n  mbar_wait %full",
     "the cursor counts as many slots as there are barriers"),
    ("smem %a: f16[64,64]{panel 64 swizzle 128}", "smem %a: f16[64,64]{panel 32 swizzle 128}", "rows of its boxes are as long as the swizzle"),
    ("  mbar_wait %full", "  %own = row_part {parts = 3} : i32\n  mbar_wait %full", "equal parts of the role's warps"),
])
def test_misuse_is_refused_with_the_rule(old, new, rule):
    assert old in KERNEL
    with pytest.raises(FcError) as e:
        parse_kernel(KERNEL.replace(old, new))
    assert rule in str(e.value)


CARRIED = """\
  %d = cursor {slots = 1} : cursor x1
  %one = const {value = 1, dtype = i32} : i32
  %yes = const {value = true, dtype = i1} : i1
"""
FOR = """\
  %e, %f = for %0, %one, %c, %d (%n: i32, %c.3: cursor x1, %d.3: cursor x1) {
    %c.4 = advance %c.3 : cursor x1
    yield %c.4, %d.3
  } : cursor x1, cursor x1
"""
WHILE = """\
  %e, %f = while %yes, %c, %d (%c.3: cursor x1, %d.3: cursor x1) {
    %no = const {value = false, dtype = i1} : i1
    %c.4 = advance %c.3 : cursor x1
    yield %no, %c.4, %d.3
  } : cursor x1, cursor x1
"""
IF = """\
  %e, %f = if %yes {
    %c.4 = advance %c : cursor x1
    yield %c.4, %d
  } else {
    yield %c, %d
  } : cursor x1, cursor x1
"""


@pytest.mark.parametrize(("text", "right", "wrong"), [
    (FOR, "yield %c.4, %d.3", "yield %c.4, %c.3"), (FOR, "yield %c.4, %d.3", "yield %d.3, %c.4"),
    (WHILE, "yield %no, %c.4, %d.3", "yield %no, %d.3, %d.3"), (IF, "yield %c, %d", "yield %c, %c"), (IF, "yield %c, %d", "yield %d, %c"),
])
def test_a_carried_position_stays_that_of_its_ring(text: str, right: str, wrong: str) -> None:
    head, tail = KERNEL.split("role main", 1)
    kernel = head + "role main" + tail.replace("  mbar_wait %full", CARRIED + text + "  mbar_wait %full").replace("%full, %c ", "%full, %e ")
    assert right in kernel
    parse_kernel(kernel.replace("mbar_arrive %empty, %c", "mbar_arrive %empty, %e"))
    with pytest.raises(FcError, match="a position that is carried stays that of its own ring") as e:
        parse_kernel(kernel.replace(right, wrong))
    assert e.value.code == "ir/verify"
