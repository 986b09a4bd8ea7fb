"""Hopper (sm_90a): limits, and one record per instruction that Ada's family does not have.

The records of warpgroup matrix products exist for every width, 8 to 256 columns in steps of 8; they are made when they are asked for. What
the generic and what the async proxy does is told apart in `ir.async_ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from ...ir.layout import LANES, wgmma_a, wgmma_c
from ...ir.target import Instr, Target
from . import ada
from .ptx import does, each, fn, group, numbered

#: element type -> (PTX name, bytes)
TYPES = {"f16": ("f16", 2), "bf16": ("bf16", 2), "f8e4m3": ("e4m3", 1), "f8e5m2": ("e5m2", 1), "i8": ("s8", 1), "u8": ("u8", 1)}
DTYPES = tuple(TYPES)
WIDTHS = range(8, 257, 8)
#: L2 policies of cp.async.bulk.tensor (createpolicy's encodings for the whole line)
HINTS = {"evict_first": "0x12F0000000000000ull", "evict_last": "0x14F0000000000000ull"}


def wgmma_name(cols: int, dtype: str, regs: bool) -> str:
    return f"wgmma_m64n{cols}k{32 // TYPES[dtype][1]}_{dtype}" + ("_rs" if regs else "")


def _wgmma_effect(cols: int, regs: bool, size: int = 2) -> Callable[..., np.ndarray]:
    """a: the operand [64, 16], or the registers [4, lanes, 8] that hold it; b: the operand [16, cols]; c: [4, lanes, cols / 2]; of elements
    of one byte the depth is 32. How the stored operands lie is the descriptors' matter. Summed in float64, rounded once; of integers
    exact."""
    a_map, c_map = wgmma_a(64, 32 // size, 1, size), wgmma_c(64, cols, 1)

    def effect(a: np.ndarray, b: np.ndarray, c: np.ndarray, add: bool = True) -> np.ndarray:
        left = ada.matrix(a_map, a) if regs else a.astype(np.float64)
        full = (left @ b.astype(np.float64) + (ada.matrix(c_map, c) if add else 0.0)).astype(c.dtype)
        at = c_map.coords(4)
        return full[at[..., 0], at[..., 1]]

    return effect


def wgmma(cols: int, dtype: str, regs: bool) -> Instr:
    """D[64, cols] = A[64, 16] B[16, cols] + D; of elements of one byte the depth is 32. The transposition bits are template arguments,
    which only 16-bit types have: 1 where the stored rows run along k."""
    (ptx, size), n = TYPES[dtype], cols // 2
    k, integer = 32 // size, dtype in ("i8", "u8")
    ctype, con, sums = ("int", "r", "s32") if integer else ("float", "f", "f32")
    if regs:
        a, b, first = group(numbered(4, n)), f"%{n + 4}", n + 5
        inputs = each("r", 4, "a[{i}]") + ', "l"(b)'
        tail, extra, signature = f"1, 1, %{first + 1}", ', "n"(TransB)', "<int TransB> float* d, const uint32_t* a, uint64_t b, int add"
    else:
        a, b, first = f"%{n}", f"%{n + 1}", n + 2
        inputs, tail = '"l"(a), "l"(b)', f"1, 1, %{first + 1}, %{first + 2}"
        extra, signature = ', "n"(TransA), "n"(TransB)', "<int TransA, int TransB> float* d, uint64_t a, uint64_t b, int add"
    if size == 1:
        tail, extra, signature = "" if integer else "1, 1", "", signature.split("> ")[1].replace("float", ctype)
    tail = f", {tail}" if tail else ""
    name = f"wgmma.mma_async.sync.aligned.m64n{cols}k{k}.{sums}.{ptx}.{ptx}"
    body = (f'asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{first}, 0;\\n"\n'
            f'             "{name} "\n'
            f'             "{group(numbered(n))}, {a}, {b}, p{tail};\\n}}"\n'
            f'             : {each(f"+{con}", n, "d[{i}]")}\n'
            f'             : {inputs}, "r"(add){extra} : "memory");')
    return Instr(wgmma_name(cols, dtype, regs), signature, body,
                 f"PTX ISA, wgmma.mma_async: d[64 x {cols}] (+)= a b, " + ("a in registers" if regs else "both in shared memory"),
                 (64, cols, k), dtype, a=wgmma_a(64, k, 1, size) if regs else None, c=wgmma_c(64, cols, 1),
                 effect=_wgmma_effect(cols, regs, size), ptx=name)


def _tma_effect(tensor: np.ndarray, box: tuple[int, ...], *at: int) -> np.ndarray:
    """The box, outermost axis first, that starts at the coordinates, innermost axis first. Outside of the tensor it is zero."""
    index = np.ix_(*(np.arange(n) + start for n, start in zip(box, reversed(at))))
    inside = np.broadcast_to(True, box)
    for i, n in zip(index, tensor.shape):
        inside = inside & (i >= 0) & (i < n)
    clipped = tuple(np.clip(i, 0, n - 1) for i, n in zip(index, tensor.shape))
    return np.where(inside, tensor[clipped], np.zeros((), tensor.dtype))


def _desc_effect(swizzle: int, lbo: int, sbo: int, addr: np.ndarray) -> np.ndarray:
    """The fields of PTX's table, one by one: address in bits 0-13, leading and stride byte offset in 16-29 and 32-45, swizzle in 62-63."""
    fields = ((np.asarray(addr) // 16 % 2**14, 0), (lbo // 16 % 2**14, 16), (sbo // 16 % 2**14, 32), (swizzle, 62))
    return sum((np.asarray(x).astype(np.uint64) << np.uint64(at) for x, at in fields), start=np.uint64(0))


def _coordinates(rank: int) -> str:
    return ", ".join(f"int c{i}" for i in range(rank))


def _tma(rank: int, hint: bool, multicast: bool) -> Instr:
    policy, arg, use = (".L2::cache_hint", ", uint64_t policy", ', "l"(policy)') if hint else ("", "", "")
    last = f", %{rank + 3}" if hint else ""
    to, doc = "", "PTX ISA, cp.async.bulk.tensor: one box, coordinates from the innermost axis"
    if multicast:
        to, last, doc = ".multicast::cluster", f", %{rank + 3}" + (f", %{rank + 4}" if hint else ""), f"{doc}, to every block of the mask"
        arg, use = f", uint16_t blocks{arg}", f', "h"(blocks){use}'
    return Instr(f"tma_load_{rank}d" + ("_multicast" if multicast else "") + ("_hint" if hint else ""),
                 f"uint32_t dst, const TensorMap& map, uint32_t bar, {_coordinates(rank)}{arg}",
                 f'asm volatile("cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes{to}{policy} "\n'
                 f'             "[%0], [%1, {group(numbered(rank, 3))}], [%2]{last};"\n'
                 f'             :: "r"(dst), "l"(&map), "r"(bar), {each("r", rank, "c{i}")}{use} : "memory");', doc, effect=_tma_effect)


def _tma_store(rank: int, add: bool) -> Instr:
    """The element type, and with it what adding means, is the tensor map's."""
    what, word, done = ("cp.reduce", ".add", "added") if add else ("cp", "", "written")
    return Instr(f"tma_{'add' if add else 'store'}_{rank}d", f"const TensorMap& map, {_coordinates(rank)}, uint32_t src",
                 f'asm volatile("{what}.async.bulk.tensor.{rank}d.global.shared::cta{word}.bulk_group "\n'
                 f'             "[%0, {group(numbered(rank, 2))}], [%1];"\n'
                 f'             :: "l"(&map), "r"(src), {each("r", rank, "c{i}")} : "memory");',
                 f"PTX ISA, {what}.async.bulk.tensor: one box is {done}, what lies outside the tensor left out")


def _stmatrix(count: int, trans: bool) -> Instr:
    how = ".trans" if trans else ""
    return Instr(f"stmatrix_x{count}{'_trans' if trans else ''}", "uint32_t row, const uint32_t* v",
                 f'asm volatile("stmatrix.sync.aligned.m8n8.x{count}{how}.shared.b16 [%0], {{{numbered(count, 1)}}};"\n'
                 f'             :: "r"(row), {each("r", count, "v[{i}]")} : "memory");',
                 f"PTX ISA, stmatrix: {count} blocks of 8 x 8; lane l gives the address of row l % 8 of block l / 8",
                 effect=_stmatrix_effect(count, trans))


def _stmatrix_effect(count: int, trans: bool):
    """registers [lanes, 2 * count] -> blocks [count, 8, 8]: lane l has row l / 4, columns 2 (l % 4) and the next; .trans writes the
    transposed block."""

    def effect(regs: np.ndarray) -> np.ndarray:
        lane, out = np.arange(LANES), np.zeros((count, 8, 8), regs.dtype)
        for i in range(count):
            for e in (0, 1):
                out[i, lane // 4, lane % 4 * 2 + e] = regs[:, 2 * i + e]
        return out.transpose(0, 2, 1) if trans else out

    return effect


def _stores() -> list[Instr]:
    out = [_tma_store(rank, add) for rank in range(2, 6) for add in (False, True)]
    out += [_stmatrix(n, t) for n in (4, 2, 1) for t in (False, True)]
    out += [
        does("bulk_commit", "", "cp.async.bulk.commit_group;", "PTX ISA, cp.async.bulk.commit_group"),
        does("bulk_wait", "<int N>", "cp.async.bulk.wait_group %0;",
             "PTX ISA, cp.async.bulk.wait_group: at most N of this thread's groups are not complete"),
        does("bulk_wait_read", "<int N>", "cp.async.bulk.wait_group.read %0;",
             "PTX ISA, cp.async.bulk.wait_group.read: at most N of this thread's groups still read shared memory"),
        fn("await_turn", "const int* at, int n",
           'int x;\n    do {\n        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(x) : "l"(at) : "memory");\n'
           '    } while (x != n);\n    asm volatile("fence.proxy.async;" ::: "memory");',
           "PTX ISA, ld.acquire: what was written before n was is seen, by bulk copies too", "void"),
        does("end_turn", "int* at, int n", "cp.async.bulk.wait_group 0;\\n\\tfence.proxy.async;\\n\\tst.release.gpu.global.s32 [%0], %1;",
             "PTX ISA, st.release: who sees n sees what this thread's bulk stores wrote"),
        does("red_add_bf16", "unsigned short* p, unsigned short v", "red.global.add.noftz.bf16 [%0], %1;", "PTX ISA, red"),
        does("red_add_bf16x2", "void* p, uint32_t v", "red.global.add.noftz.bf16x2 [%0], %1;", "PTX ISA, red"),
    ]
    return out


def _touch(name: str, ctype: str, constraint: str, doc: str = "as touch") -> Instr:
    each = f'#pragma unroll\n    for (int i = 0; i < N; ++i) asm volatile("" : "+{constraint}"(r[i]) :: "memory");'
    return fn(name, f"<int N> {ctype} (&r)[N]", each, doc, "void", np.copy)


def _mbar_wait(name: str, order: str, doc: str) -> Instr:
    return fn(name, "uint32_t bar, uint32_t parity",
              f'asm volatile("{{\\n.reg .pred p;\\nWAIT:\\nmbarrier.try_wait.parity{order}.shared::cta.b64 p, [%0], %1;\\n"\n'
              '             "@p bra DONE;\\nbra WAIT;\\nDONE:\\n}" :: "r"(bar), "r"(parity) : "memory");', doc, "void")


_THERE = "PTX ISA, mapa and mbarrier.arrive: on the barrier of the same place in a block of the cluster"


def _mbar_there(name: str, order: str, doc: str) -> Instr:
    return fn(name, "uint32_t bar, uint32_t block",
              'asm volatile("{\\n.reg .b32 there;\\nmapa.shared::cluster.u32 there, %0, %1;\\n"\n'
              f'             "mbarrier.arrive{order}.shared::cluster.b64 _, [there];\\n}}" :: "r"(bar), "r"(block) : "memory");',
              doc, "void")


def _records() -> dict[str, Instr]:
    out = [_tma(rank, hint, multicast) for rank in range(2, 6) for hint in (False, True) for multicast in (False, True)]
    out += [
        does("wgmma_fence", "", "wgmma.fence.sync.aligned;",
             "PTX ISA, wgmma.fence: register accesses before it come before the wgmmas after it"),
        does("wgmma_commit", "", "wgmma.commit_group.sync.aligned;", "PTX ISA, wgmma.commit_group"),
        does("wgmma_wait", "<int N>", "wgmma.wait_group.sync.aligned %0;",
             "PTX ISA, wgmma.wait_group: at most N of this warpgroup's groups stay in flight"),
        _touch("touch", "float", "f", "no instruction: the compiler may not move accesses of these registers over this point"),
        _touch("touch_b32", "uint32_t", "r"),
        _touch("touch_i32", "int", "r"),
        fn("pin_b32", "uint32_t& x", 'asm volatile("" : "+r"(x) :: "memory");', "as touch, of one register", "void", np.copy),
        fn("smem_desc", "<int Swizzle, int Lbo, int Sbo> uint32_t addr",
           "return uint64_t(Swizzle) << 62 | uint64_t(Sbo >> 4) << 32 | uint64_t(Lbo >> 4) << 16 | (addr & 0x3ffff) >> 4;",
           "PTX ISA, matrix descriptor: address, byte offsets of panels and of 8-row groups, swizzle code", "uint64_t", _desc_effect),
        does("proxy_fence", "", "fence.proxy.async.shared::cta;", "PTX ISA, fence.proxy.async"),
        does("mbar_init", "uint32_t bar, int count", "mbarrier.init.shared::cta.b64 [%0], %1;", "PTX ISA, mbarrier.init"),
        does("mbar_init_fence", "", "fence.mbarrier_init.release.cluster;", "PTX ISA, fence.mbarrier_init"),
        does("mbar_expect", "uint32_t bar, int bytes", "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;",
             "PTX ISA, mbarrier.arrive.expect_tx"),
        does("mbar_arrive", "uint32_t bar", "mbarrier.arrive.shared::cta.b64 _, [%0];", "PTX ISA, mbarrier.arrive"),
        _mbar_wait("mbar_wait", "", "PTX ISA, mbarrier.try_wait.parity, until the phase of that parity has ended"),
        _mbar_wait("mbar_wait_cluster", ".acquire.cluster",
                   "as mbar_wait, and what other blocks of the cluster stored before they arrived is seen"),
        # what it tells is that reads are over: it publishes no writes, for which .release.cluster would put MEMBAR.ALL.GPU in front
        _mbar_there("mbar_arrive_cluster", "", _THERE),
        _mbar_there("mbar_tell", ".release.cluster", _THERE + ", which sees what was stored"),
        fn("block_address", "uint32_t at, uint32_t block",
           'uint32_t there;\n    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(block));\n    return there;',
           "PTX ISA, mapa: the same place in shared memory of a block of the cluster"),
        *(replace(i, name=name.replace("shared", "cluster"), body=i.body.replace("st.shared", "st.shared::cluster"))
          for name, i in ada.INSTRS.items() if name.startswith("st_shared_")),
        fn("cluster_rank", "", 'int x;\n    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(x));\n    return x;',
           "PTX ISA, %cluster_ctarank: this block's number in its cluster", "int"),
        does("cluster_sync", "", "barrier.cluster.arrive.release;\\nbarrier.cluster.wait.acquire;",
             "PTX ISA, barrier.cluster: all threads of the cluster, but for those that have ended"),
        does("grid_wait", "", "griddepcontrol.wait;",
             "PTX ISA, griddepcontrol.wait: the grids that this one was launched to overlap have ended"),
        does("launch_dependents", "", "griddepcontrol.launch_dependents;", "PTX ISA, griddepcontrol"),
        does("tensormap_prefetch", "const TensorMap& map", "prefetch.tensormap [%0];", "PTX ISA, prefetch.tensormap"),
        *(fn(f"setmaxnreg_{way}", "<int Regs>", f'asm volatile("setmaxnreg.{way}.sync.aligned.u32 %0;" :: "n"(Regs));',
             "PTX ISA, setmaxnreg", "void") for way in ("inc", "dec")),
        does("bar_sync", "int id, int threads", "bar.sync %0, %1;", "PTX ISA, bar.sync: a named barrier of some of the block's threads"),
        does("bar_arrive", "int id, int threads", "bar.arrive %0, %1;", "PTX ISA, bar.arrive"),
        fn("opaque", "uint32_t x", 'asm volatile("mov.b32 %0, %0;" : "+r"(x));\n    return x;',
           "x, which the compiler then keeps in a register instead of computing it again", "uint32_t", np.copy),
        fn("vmax3", "int a, int b, int c", "return __vimax3_s32(a, b, c);",
           "the largest of three: one instruction, for two new numbers", "int", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    ]
    return {i.name: i for i in [*out, *_stores()]}


class _Instrs(Mapping[str, Instr]):
    """Ada's records, Hopper's, and the matrix products of every width on demand."""

    def __init__(self) -> None:
        self.fixed = {**ada.INSTRS, **_records()}
        self.made: dict[str, Instr] = {}

    def __getitem__(self, name: str) -> Instr:
        if name in self.fixed:
            return self.fixed[name]
        if name not in self.made:
            self.made[name] = wgmma(*_WGMMA[name])
        return self.made[name]

    def __contains__(self, name: object) -> bool:
        return name in self.fixed or name in _WGMMA

    def __iter__(self) -> Iterator[str]:
        yield from self.fixed
        yield from _WGMMA

    def __len__(self) -> int:
        return len(self.fixed) + len(_WGMMA)


_WGMMA = {wgmma_name(n, d, regs): (n, d, regs) for n in WIDTHS for d in DTYPES for regs in (False, True)
          if d not in ("i8", "u8") or n % 16 == 0 or n in (8, 24)}  # integers: fewer widths
INSTRS: Mapping[str, Instr] = _Instrs()
TARGETS: dict[str, Target] = {"sm_90a": Target("sm_90a", 90, 227 * 1024, 228 * 1024, max_blocks_per_sm=32, max_cluster=8, instrs=INSTRS)}
