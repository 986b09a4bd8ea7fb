"""Kernels of asynchronous engines, written as IR text: rings of mbarriers, products in flight, tokens, tiles handed out at run time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fcgen.ir.core import Kernel
from fcgen.ir.parse import parse_kernel

ACC = "{w8@1 r2@2 l8@4 | r8@4 l4@1 r2@1}"  # 128 x 64 over two warpgroups, also the left operand's
SW = "{panel 64 swizzle 128}"
Draw = Callable[[int, int], tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Case:
    """draw(seed, steps) -> (arguments, expected)."""

    name: str
    text: str
    draw: Draw
    stages: int

    @cached_property
    def kernel(self) -> Kernel:
        return parse_kernel(self.text, f"{self.name}.fcir", locate=True)

    def counts(self) -> range:
        return range(1, 2 * self.stages + 2)


def halves(rng: Any, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / 4).astype(np.float16)


def lines(x: np.ndarray) -> np.ndarray:
    """The same numbers in rows that start on multiples of 16 bytes, as bulk copies need them."""
    whole = np.zeros((x.shape[0], -(-x.shape[1] // 8) * 8), x.dtype)
    whole[:, :x.shape[1]] = x
    return whole[:, :x.shape[1]]


CONSTANTS = """\
  %0 = const {value = 0, dtype = i32} : i32
  %1 = const {value = 1, dtype = i32} : i32
  %64 = const {value = 64, dtype = i32} : i32
  %63 = const {value = 63, dtype = i32} : i32
"""


def gemm(stages: int, ta: bool = False, tb: bool = True, span: int = 128) -> str:
    """C = A B with B stored [N, K]: a producer and two consumer warpgroups over one ring. ta, tb: how A and B are stored."""
    lay = f"{{panel {span // 2} swizzle {span}}}"
    a, b = ("64,128" if ta else "128,64"), ("64,64")
    at, bt = ("K, M" if ta else "M, K"), ("N, K" if tb else "K, N")
    apos, bpos = ("%d, %row" if ta else "%row, %d"), ("%col, %d" if tb else "%d, %col")
    ring = f"x{stages}"
    whole = "{index = (tile, tile), guard = (true, true)}"
    heading = f"""\
machine kernel gemm
param %A: tensor f16[{at}]
param %B: tensor f16[{bt}]
param %C: tensor f32[M, N] out
grid %i: M / 128, %j: N / 64
smem %a: f16[{a}]{lay} {ring}
smem %b: f16[{b}]{lay} {ring}
smem %full: mbarrier count 1 {ring}
smem %empty: mbarrier count 8 {ring}
"""
    places = CONSTANTS + """\
  %128 = const {value = 128, dtype = i32} : i32
  %k = size {dim = K} : i32
  %k1 = add %k, %63 : i32
  %steps = floordiv %k1, %64 : i32
  %row = mul %i, %128 : i32
  %col = mul %j, %64 : i32
"""
    return heading.replace(" x1\n", "\n") + f"""\
role load warps 4 regs 24 {{
{places}\
  %c = cursor {{slots = {stages}}} : cursor {ring}
  %end = for %0, %steps, %c (%step: i32, %n: cursor {ring}) {{
    %d = mul %step, %64 : i32
    %sa = slot %a, %n {{ahead = 0}} : smem f16[{a}]{lay}
    %sb = slot %b, %n {{ahead = 0}} : smem f16[{b}]{lay}
    mbar_wait %empty, %n {{lag = 1}}
    mbar_expect %full, %n {{bytes = {(128 + 64) * 64 * 2}}}
    tma_load %A, {apos}, %sa, %full, %n {whole}
    tma_load %B, {bpos}, %sb, %full, %n {whole}
    %m = advance %n : cursor {ring}
    yield %m
  }} : cursor {ring}
}}
role main warps 8 regs 240 {{
{places}\
  %z = const {{value = 0.0, dtype = f32}} : f32
  %none = full %z : frag f32[128,64]{ACC}
  %c = cursor {{slots = {stages}}} : cursor {ring}
  %end, %total = for %0, %steps, %c, %none (%step: i32, %n: cursor {ring}, %acc: frag f32[128,64]{ACC}) {{
    %sa = slot %a, %n {{ahead = 0}} : smem f16[{a}]{lay}
    %sb = slot %b, %n {{ahead = 0}} : smem f16[{b}]{lay}
    mbar_wait %full, %n {{lag = 0}}
    wgmma_fence
    %p = wgmma %sa, %sb, %acc {{instr = wgmma_m64n64k16_f16, ta = {str(ta).lower()}, tb = {str(tb).lower()}}} : pending frag f32[128,64]{ACC}
    wgmma_commit
    %s = settle %p {{groups = 0}} : frag f32[128,64]{ACC}
    mbar_arrive %empty, %n
    %m = advance %n : cursor {ring}
    yield %m, %s
  }} : cursor {ring}, frag f32[128,64]{ACC}
  st_global %C, %total, %row, %col {{index = (tile, tile), guard = (true, true), vec = 2}}
}}
"""


def gemm_draw(ta: bool = False, tb: bool = True, m: int = 128, n: int = 64, short: int = 7) -> Draw:
    def draw(seed: int, steps: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        rng, k = np.random.default_rng(seed), 64 * steps - (short if steps > 1 else 0)
        a, b = halves(rng, m, k), halves(rng, k, n)
        arguments = {"A": lines(a.T if ta else a), "B": lines(b.T if tb else b)}
        return arguments, {"C": a.astype(np.float64) @ b.astype(np.float64)}

    return draw


def chain(stages: int) -> str:
    """O = (Q K^T) V, tile by tile, P in registers: the product with the next K is in flight beside the one with this V."""
    ring = f"x{stages}"
    q, kv, frag = f"smem f16[128,64]{SW}", f"smem f16[64,64]{SW}", f"frag f32[128,64]{ACC}"
    half = f"frag f16[128,64]{ACC}"
    loads = lambda x: f"""\
    %s{x} = slot %{x}, %n {{ahead = 0}} : {kv}
    mbar_wait %{x}_empty, %n {{lag = 1}}
    mbar_expect %{x}_full, %n {{bytes = 8192}}
    tma_load %{x.upper()}, %d, %s{x}, %{x}_full, %n {{index = (tile, all), guard = (true, false)}}
"""
    qk = f"{{instr = wgmma_m64n64k16_f16, ta = false, tb = true}} : pending {frag}"
    pv = f"{{instr = wgmma_m64n64k16_f16, ta = false, tb = false}} : pending {frag}"
    return f"""\
machine kernel chain
param %Q: tensor f16[M, 64]
param %K: tensor f16[N, 64]
param %V: tensor f16[N, 64]
param %O: tensor f32[M, 64] out
grid %i: M / 128
smem %q: f16[128,64]{SW}
smem %k: f16[64,64]{SW} {ring}
smem %v: f16[64,64]{SW} {ring}
smem %q_full: mbarrier count 1
smem %k_full: mbarrier count 1 {ring}
smem %k_empty: mbarrier count 8 {ring}
smem %v_full: mbarrier count 1 {ring}
smem %v_empty: mbarrier count 8 {ring}
role load warps 4 regs 24 {{
{CONSTANTS}\
  %128 = const {{value = 128, dtype = i32}} : i32
  %size = size {{dim = N}} : i32
  %size1 = add %size, %63 : i32
  %steps = floordiv %size1, %64 : i32
  %row = mul %i, %128 : i32
  %cq = cursor {{slots = 1}} : cursor x1
  mbar_expect %q_full, %cq {{bytes = 16384}}
  tma_load %Q, %row, %q, %q_full, %cq {{index = (tile, all), guard = (true, false)}}
  %c = cursor {{slots = {stages}}} : cursor {ring}
  %end = for %0, %steps, %c (%step: i32, %n: cursor {ring}) {{
    %d = mul %step, %64 : i32
{loads("k")}{loads("v")}\
    %m = advance %n : cursor {ring}
    yield %m
  }} : cursor {ring}
}}
role main warps 8 regs 240 {{
{CONSTANTS}\
  %128 = const {{value = 128, dtype = i32}} : i32
  %size = size {{dim = N}} : i32
  %size1 = add %size, %63 : i32
  %steps = floordiv %size1, %64 : i32
  %row = mul %i, %128 : i32
  %z = const {{value = 0.0, dtype = f32}} : f32
  %none = full %z : {frag}
  %cq = cursor {{slots = 1}} : cursor x1
  %ck = cursor {{slots = {stages}}} : cursor {ring}
  %cv = cursor {{slots = {stages}}} : cursor {ring}
  mbar_wait %q_full, %cq {{lag = 0}}
  mbar_wait %k_full, %ck {{lag = 0}}
  %k0 = slot %k, %ck {{ahead = 0}} : {kv}
  wgmma_fence
  %first = wgmma %q, %k0 {qk}
  wgmma_commit
  %s0 = settle %first {{groups = 0}} : {frag}
  mbar_arrive %k_empty, %ck
  %ck1 = advance %ck : cursor {ring}
  %p0 = cast %s0 {{to = f16}} : {half}
  %ek, %ev, %p9, %o9 = for %1, %steps, %ck1, %cv, %p0, %none (%step: i32, %nk: cursor {ring}, %nv: cursor {ring}, %p: {half}, %o: {frag}) {{
    %sk = slot %k, %nk {{ahead = 0}} : {kv}
    %sv = slot %v, %nv {{ahead = 0}} : {kv}
    mbar_wait %k_full, %nk {{lag = 0}}
    wgmma_fence
    %t = wgmma %q, %sk {qk}
    wgmma_commit
    mbar_wait %v_full, %nv {{lag = 0}}
    %u = wgmma %p, %sv, %o {pv}
    wgmma_commit
    %t1 = settle %t {{groups = 1}} : {frag}
    mbar_arrive %k_empty, %nk
    %next = cast %t1 {{to = f16}} : {half}
    %o1 = settle %u, %p {{groups = 0}} : {frag}
    mbar_arrive %v_empty, %nv
    %mk = advance %nk : cursor {ring}
    %mv = advance %nv : cursor {ring}
    yield %mk, %mv, %next, %o1
  }} : cursor {ring}, cursor {ring}, {half}, {frag}
  %lv = slot %v, %ev {{ahead = 0}} : {kv}
  mbar_wait %v_full, %ev {{lag = 0}}
  wgmma_fence
  %last = wgmma %p9, %lv, %o9 {pv}
  wgmma_commit
  %out = settle %last, %p9 {{groups = 0}} : {frag}
  mbar_arrive %v_empty, %ev
  st_global %O, %out, %row {{index = (tile, all), guard = (true, false), vec = 2}}
}}
"""


def chain_draw(seed: int, steps: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    n = 64 * steps - (9 if steps > 1 else 0)
    q, k, v = halves(rng, 128, 64), halves(rng, n, 64), halves(rng, n, 64)
    p = (q.astype(np.float64) @ k.astype(np.float64).T).astype(np.float32).astype(np.float16)
    return {"Q": q, "K": k, "V": v}, {"O": p.astype(np.float64) @ v.astype(np.float64)}


def turns(stages: int) -> str:
    """C = A B with A put into shared memory by ordinary stores, and the warpgroups taking turns at the tensor core."""
    ring = f"x{stages}"
    rows = "{w8@1 r2@16 l8@4 | l4@1 r16@1}"
    return f"""\
machine kernel turns
param %A: tensor f16[128, K]
param %B: tensor f16[64, K]
param %C: tensor f32[128, 64] out
smem %a: f16[128,64]{SW}
smem %b: f16[64,64]{SW} {ring}
smem %full: mbarrier count 1 {ring}
smem %empty: mbarrier count 8 {ring}
role load warps 4 regs 24 {{
{CONSTANTS}\
  %k = size {{dim = K}} : i32
  %steps = floordiv %k, %64 : i32
  %c = cursor {{slots = {stages}}} : cursor {ring}
  %end = for %0, %steps, %c (%step: i32, %n: cursor {ring}) {{
    %d = mul %step, %64 : i32
    %sb = slot %b, %n {{ahead = 0}} : smem f16[64,64]{SW}
    mbar_wait %empty, %n {{lag = 1}}
    mbar_expect %full, %n {{bytes = 8192}}
    tma_load %B, %d, %sb, %full, %n {{index = (all, tile), guard = (false, true)}}
    %m = advance %n : cursor {ring}
    yield %m
  }} : cursor {ring}
}}
role main warps 8 regs 240 {{
{CONSTANTS}\
  %k = size {{dim = K}} : i32
  %steps = floordiv %k, %64 : i32
  %z = const {{value = 0.0, dtype = f32}} : f32
  %none = full %z : frag f32[128,64]{ACC}
  %c = cursor {{slots = {stages}}} : cursor {ring}
  token_start {{id = 2}}
  %end, %total = for %0, %steps, %c, %none (%step: i32, %n: cursor {ring}, %acc: frag f32[128,64]{ACC}) {{
    %d = mul %step, %64 : i32
    %sb = slot %b, %n {{ahead = 0}} : smem f16[64,64]{SW}
    %x = ld_global %A, %d {{index = (all, tile), guard = (false, true), vec = 8}} : frag f16[128,64]{rows}
    barrier
    st_shared %x, %a, %0, %0
    proxy_fence
    barrier
    mbar_wait %full, %n {{lag = 0}}
    token_take {{id = 2}}
    wgmma_fence
    %p = wgmma %a, %sb, %acc {{instr = wgmma_m64n64k16_f16, ta = false, tb = true}} : pending frag f32[128,64]{ACC}
    wgmma_commit
    token_give {{id = 2}}
    %s = settle %p {{groups = 0}} : frag f32[128,64]{ACC}
    mbar_arrive %empty, %n
    %m = advance %n : cursor {ring}
    yield %m, %s
  }} : cursor {ring}, frag f32[128,64]{ACC}
  st_global %C, %total {{index = (all, all), guard = (false, false), vec = 2}}
}}
"""


def tiles(stages: int) -> str:
    """Y = X B: a persistent kernel. The producer claims tiles and posts their numbers; the consumer stops at -1."""
    ring = f"x{stages}"
    acc = "{w4@1 r2@2 l8@4 | r8@4 l4@1 r2@1}"
    number = "i32[1]{panel 1}"
    return f"""\
machine kernel tiles
param %X: tensor f16[M, 64]
param %B: tensor f16[64, 64]
param %Y: tensor f32[M, 64] out
grid %i: M / 64
meta persistent = dynamic
smem %x: f16[64,64]{SW} {ring}
smem %b: f16[64,64]{SW}
smem %t: {number} {ring}
smem %b_full: mbarrier count 1
smem %full: mbarrier count 1 {ring}
smem %empty: mbarrier count 4 {ring}
role load warps 4 regs 24 {{
{CONSTANTS}\
  %stop = const {{value = -1, dtype = i32}} : i32
  %size = size {{dim = M}} : i32
  %size1 = add %size, %63 : i32
  %count = floordiv %size1, %64 : i32
  %cb = cursor {{slots = 1}} : cursor x1
  mbar_expect %b_full, %cb {{bytes = 8192}}
  tma_load %B, %b, %b_full, %cb {{index = (all, all), guard = (false, false)}}
  %c = cursor {{slots = {stages}}} : cursor {ring}
  %mine = block_index : i32
  %go = lt %mine, %count : i1
  %e, %last = while %go, %c, %mine (%n: cursor {ring}, %tile: i32) {{
    %row = mul %tile, %64 : i32
    %sx = slot %x, %n {{ahead = 0}} : smem f16[64,64]{SW}
    %st = slot %t, %n {{ahead = 0}} : smem {number}
    mbar_wait %empty, %n {{lag = 1}}
    post %tile, %st
    mbar_expect %full, %n {{bytes = 8192}}
    tma_load %X, %row, %sx, %full, %n {{index = (tile, all), guard = (true, false)}}
    %m = advance %n : cursor {ring}
    %next = claim : i32
    %more = lt %next, %count : i1
    yield %more, %m, %next
  }} : cursor {ring}, i32
  claim_done
  %lt = slot %t, %e {{ahead = 0}} : smem {number}
  mbar_wait %empty, %e {{lag = 1}}
  post %stop, %lt
  mbar_arrive %full, %e
}}
role main warps 4 regs 240 {{
{CONSTANTS}\
  %cb = cursor {{slots = 1}} : cursor x1
  %c = cursor {{slots = {stages}}} : cursor {ring}
  mbar_wait %b_full, %cb {{lag = 0}}
  mbar_wait %full, %c {{lag = 0}}
  %t0 = slot %t, %c {{ahead = 0}} : smem {number}
  %first = fetch %t0 : i32
  %go = ge %first, %0 : i1
  %e, %last = while %go, %c, %first (%n: cursor {ring}, %tile: i32) {{
    %row = mul %tile, %64 : i32
    %sx = slot %x, %n {{ahead = 0}} : smem f16[64,64]{SW}
    wgmma_fence
    %p = wgmma %sx, %b {{instr = wgmma_m64n64k16_f16, ta = false, tb = false}} : pending frag f32[64,64]{acc}
    wgmma_commit
    %y = settle %p {{groups = 0}} : frag f32[64,64]{acc}
    mbar_arrive %empty, %n
    st_global %Y, %y, %row {{index = (tile, all), guard = (true, false), vec = 2}}
    %m = advance %n : cursor {ring}
    mbar_wait %full, %m {{lag = 0}}
    %st = slot %t, %m {{ahead = 0}} : smem {number}
    %next = fetch %st : i32
    %more = ge %next, %0 : i1
    yield %more, %m, %next
  }} : cursor {ring}, i32
  mbar_arrive %empty, %e
}}
"""


def tiles_draw(seed: int, steps: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    x, b = halves(rng, 64 * steps - (3 if steps > 1 else 0), 64), halves(rng, 64, 64)
    return {"X": x, "B": b}, {"Y": x.astype(np.float64) @ b.astype(np.float64)}


def pair(stages: int) -> str:
    """`gemm` by clusters of two blocks along the rows: B's tiles are copied by both, half by each, and freed by the readers of both."""
    text = gemm(stages)
    for old, new in [("grid %i: M / 128,", "grid %i: M / 128 cluster 2,"), ("%empty: mbarrier count 8", "%empty: mbarrier count 16"),
                     ("tma_load %B, %col, %d, %sb, %full, %n {", "tma_load %B, %col, %d, %sb, %full, %n {multicast = 2, "),
                     ("mbar_arrive %empty, %n", "mbar_arrive %empty, %n {cluster = 2}"),
                     ("guard = (true, true), vec = 2}\n", "guard = (true, true), vec = 2}\n  cluster_sync\n")]:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def stores(stages: int) -> str:
    """`turns` without turns: nothing but the barrier orders what one warp stores before what another warp's wgmma reads."""
    return "".join(line + "\n" for line in turns(stages).splitlines() if "token_" not in line)


def bulk(stages: int) -> str:
    """Y = X, tile by tile through one staging buffer: each warpgroup stages its rows and one of its threads starts their copy."""
    half = f"frag f16[128,64]{ACC}"
    return f"""\
machine kernel bulk
param %X: tensor f16[M, 64]
param %Y: tensor f16[M, 64] out
grid %i: 1
smem %y: f16[128,64]{SW}
role main warps 8 {{
{CONSTANTS}\
  %128 = const {{value = 128, dtype = i32}} : i32
  %127 = const {{value = 127, dtype = i32}} : i32
  %size = size {{dim = M}} : i32
  %size1 = add %size, %127 : i32
  %steps = floordiv %size1, %128 : i32
  for %0, %steps (%step: i32) {{
    %row = mul %step, %128 : i32
    %x = ld_global %X, %row {{index = (tile, all), guard = (true, false), vec = 2}} : {half}
    bulk_wait {{n = 0, read = true}}
    barrier {{parts = 2}}
    stmatrix %x, %y, %0, %0 {{trans = false}}
    proxy_fence
    barrier {{parts = 2}}
    tma_store %Y, %row, %y {{index = (tile, all), guard = (true, false), parts = 2}}
    bulk_commit
    yield
  }}
  bulk_wait {{n = 0, read = false}}
}}
"""


def bulk_draw(seed: int, steps: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    x = halves(np.random.default_rng(seed), 128 * steps - (9 if steps > 1 else 0), 64)
    return {"X": x}, {"Y": x}


def turns_draw(seed: int, steps: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return gemm_draw(short=0)(seed, steps)


CASES = {c.name: c for c in (
    Case("gemm-2", gemm(2), gemm_draw(), 2),
    Case("gemm-3", gemm(3), gemm_draw(), 3),
    Case("chain-2", chain(2), chain_draw, 2),
    Case("chain-3", chain(3), chain_draw, 3),
    Case("turns-2", turns(2), turns_draw, 2),
    Case("stores-2", stores(2), turns_draw, 2),
    Case("tiles-2", tiles(2), tiles_draw, 2),
    Case("bulk-1", bulk(1), bulk_draw, 1),
    Case("pair-2", pair(2), gemm_draw(m=200), 2),
    Case("pair-3", pair(3), gemm_draw(m=300, n=40), 3),
)}
