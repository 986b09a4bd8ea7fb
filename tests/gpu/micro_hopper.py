"""Tiny kernels around Hopper's instruction wrappers, as the printer writes them: three modules, each compiled once.

A kernel that waits has one warp more than it needs: `watch` ends it with a trap where the others do not come to their end.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fcgen.backends.cuda.printer import _function
from fcgen.backends.targets import ada
from fcgen.backends.targets.hopper import HINTS, INSTRS, WIDTHS, wgmma_name
from fcgen.ir.layout import SmemLayout, native_smem
from fcgen.runtime import module, nvrtc

from . import raw
from .micro import compiled

ARCH = "sm_90a"
HEAD = """using uint32_t = unsigned int;
using uint64_t = unsigned long long;
struct __align__(64) TensorMap { unsigned char bytes[128]; };
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
__device__ __forceinline__ uint32_t shared(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
__device__ __forceinline__ void delay(long long cycles) { for (const long long t = clock64(); clock64() - t < cycles;); }
__device__ __forceinline__ bool ended(uint32_t bar, uint32_t parity) {
    uint32_t yes;
    asm volatile("{\\n.reg .pred p;\\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\\nselp.u32 %0, 1, 0, p;\\n}"
                 : "=r"(yes) : "r"(bar), "r"(parity) : "memory");
    return yes;
}
__device__ __forceinline__ void watch(volatile int* done, int threads) {
    for (const long long t = clock64(); *done < threads;) {
        __nanosleep(1000);
        if (clock64() - t > 4000000000ll) __trap();
    }
}
"""

#: test of test_hopper_instructions -> the records whose meaning it would find wrong
COVERS = {
    "test_matrix_products": {*(wgmma_name(n, d, regs) for n in WIDTHS for d in ("f16", "bf16") for regs in (False, True)), "wgmma_fence",
                             "wgmma_commit", "wgmma_wait", "touch", "touch_b32", "proxy_fence", "smem_desc"},
    "test_groups_end_in_order": {"wgmma_commit", "wgmma_wait"},
    "test_descriptors": {"smem_desc"},
    "test_bulk_copies": {*(f"tma_load_{n}d{h}" for n in range(2, 6) for h in ("", "_hint")), "tensormap_prefetch", "mbar_expect"},
    "test_barrier_states": {"mbar_init", "mbar_init_fence", "mbar_arrive", "mbar_expect"},
    "test_waits": {"mbar_wait", "mbar_arrive"},
    "test_a_ring": {"mbar_wait", "mbar_arrive", "mbar_expect", "tma_load_2d"},
    "test_named_barriers": {"bar_sync", "bar_arrive"},
    "test_registers_move_between_warpgroups": {"setmaxnreg_inc", "setmaxnreg_dec"},
    "test_what_is_kept": {"opaque", "touch", "touch_b32", "pin_b32"},
    "test_largest_of_three": {"vmax3"},
    "test_a_grid_begins_early_and_waits": {"grid_wait", "launch_dependents"},
}

# ---- matrix products ------------------------------------------------------------------------------------------------------

#: Widths whose products are tried in every transposition; the others in one for each kind of left operand.
FULL = (8, 64, 80, 96, 256)
DEPTH = 16
CODES = {128: 1, 64: 2, 32: 3, 0: 0}


def turns(cols: int, regs: bool) -> list[tuple[int, int]]:
    """(transposition of a, of b) for which there is a kernel."""
    if cols in FULL:
        return [(ta, tb) for ta in ((0,) if regs else (0, 1)) for tb in (0, 1)]
    return [(0, cols // 8 % 2)] if regs else [(cols // 16 % 2, 1 - cols // 8 % 2)]


def product(cols: int, dtype: str, regs: bool, ta: int, tb: int) -> str:
    name, n = wgmma_name(cols, dtype, regs), cols // 2
    call = f"{name}<{tb}>(d, a, b" if regs else f"{name}<{ta}, {tb}>(d, a, b"
    left = ("    uint32_t a[4];\n    for (int n = 0; n < 4; ++n) a[n] = left[threadIdx.x * 4 + n];\n" if regs else
            "    const uint64_t a = a_desc + base;\n")
    return f"""KERNEL(128) t_{name}_{ta}{tb}(float* c, const uint32_t* image, const uint32_t* left, uint64_t a_desc, uint64_t b_desc,
                                     int words, int add) {{
    extern __shared__ __align__(1024) uint32_t smem[];
    for (int n = threadIdx.x; n < words; n += 128) smem[n] = image[n];
    proxy_fence();
    __syncthreads();
    const uint32_t base = (shared(smem) & 0x3ffff) >> 4;
    float d[{n}];
    for (int n = 0; n < {n}; ++n) d[n] = c[threadIdx.x * {n} + n];
{left}\
    const uint64_t b = b_desc + base;
    touch(d);
{"    touch_b32(a);" if regs else ""}
    wgmma_fence();
    {call}, add);
    wgmma_commit();
    wgmma_wait<0>();
    touch(d);
{"    touch_b32(a);" if regs else ""}
    for (int n = 0; n < {n}; ++n) c[threadIdx.x * {n} + n] = d[n];
}}"""


#: Two groups over four steps of depth each: the first one's result is stored while the second may be in flight.
GROUPS = """KERNEL(128) t_groups(float* c, const uint32_t* image, const uint32_t* left, uint64_t a_desc, uint64_t b_desc, int words) {
    extern __shared__ __align__(1024) uint32_t smem[];
    for (int n = threadIdx.x; n < words; n += 128) smem[n] = image[n];
    proxy_fence();
    __syncthreads();
    const uint32_t base = (shared(smem) & 0x3ffff) >> 4;
    uint32_t a[16];
    float d0[32], d1[32];
    for (int n = 0; n < 16; ++n) a[n] = left[threadIdx.x * 16 + n];
    touch_b32(a);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma_m64n64k16_f16<0, 0>(d0, a_desc + base + 2 * k, b_desc + base + 2 * k, k != 0);
    wgmma_commit();
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma_m64n64k16_f16_rs<0>(d1, &a[4 * k], b_desc + base + 2 * k, k != 0);
    wgmma_commit();
    wgmma_wait<1>();
    touch(d0);
#pragma unroll
    for (int n = 0; n < 32; ++n) c[threadIdx.x * 32 + n] = d0[n];
    wgmma_wait<0>();
    touch(d1);
    touch_b32(a);
#pragma unroll
    for (int n = 0; n < 32; ++n) c[(128 + threadIdx.x) * 32 + n] = d1[n];
}"""


class Operand:
    """A stored operand [rows, 16] of a product, as one tile in an image of shared memory: all bytes that are not its own are NaN.

    span: of the swizzle, 0 for none. down: the tile is stored [depth, rows]. The tile has room for 64, or 32, of depth; the operand is
    its `part`-th run of 16."""

    def __init__(self, rows: int, span: int, down: bool, part: int, start: int):
        self.layout: SmemLayout = native_smem(span // 2 if span else 8, 2)
        assert self.layout.swizzle == span and rows % (self.layout.panel if down else 8) == 0
        self.shape = (32, rows) if down else (rows, 64)
        self.depth = self.shape[0] if down else self.shape[1]
        self.down, self.start, self.first = down, start, part * DEPTH % self.depth
        panel, row = self.layout.panel_bytes(self.shape, 2), self.layout.row_bytes(2)
        if span:  # as backends.cuda.wgmma: a panel's bytes where the panels stand side by side across the rows
            self.lbo, self.sbo = (panel if down and rows > self.layout.panel else 16), 8 * row
        else:  # 8 x 8 blocks of 128 bytes; LBO along the depth, SBO along the rows (CUTLASS, "LayoutType::INTERLEAVE")
            self.lbo, self.sbo = (8 * row, panel) if down else (panel, 8 * row)
        at = self.first * row if down else self.first // self.layout.panel * panel + self.first % self.layout.panel * 2
        self.descriptor = int(INSTRS["smem_desc"].effect(CODES[span], self.lbo, self.sbo, start + at))

    @property
    def end(self) -> int:
        return self.start + -(-self.layout.slot_bytes(self.shape, 2) // 1024) * 1024

    def put(self, image: np.ndarray, halves: np.ndarray) -> None:
        """halves: the bits of the operand, [rows, 16]; of the whole depth where it has that."""
        r, k = np.meshgrid(np.arange(halves.shape[0]), np.arange(halves.shape[1]), indexing="ij")
        k = k + (self.first if halves.shape[1] == DEPTH else 0)
        at = self.layout.address(self.shape, 2, *((k, r) if self.down else (r, k)))
        image[(self.start + np.asarray(at)) // 2] = halves


# ---- copies ---------------------------------------------------------------------------------------------------------------

COPY_BYTES = 40 * 1024


def copy(rank: int, hint: str) -> str:
    """`boxes` boxes that lie `step` elements apart along the innermost axis, one under the other in shared memory, which was all ones."""
    at = ", ".join(f"int c{i}" for i in range(rank))
    rest = "".join(f", c{i}" for i in range(1, rank))
    policy = f", {HINTS[hint]}" if hint else ""
    return f"""KERNEL(160) t_copy_{rank}d{"_" + hint if hint else ""}(const __grid_constant__ TensorMap map, uint32_t* out, int bytes, int boxes, int step,
                                     {at}) {{
    extern __shared__ __align__(1024) uint32_t smem[];
    volatile int* done = reinterpret_cast<volatile int*>(smem + {COPY_BYTES // 4 + 4});
    const uint32_t bar = shared(smem + {COPY_BYTES // 4});
    for (int n = threadIdx.x; n < {COPY_BYTES // 4}; n += 160) smem[n] = 0xffffffff;
    if (threadIdx.x == 0) {{
        *done = 0;
        mbar_init(bar, 1);
        mbar_init_fence();
    }}
    proxy_fence();
    __syncthreads();
    if (threadIdx.x >= 128) return watch(done, 128);
    if (threadIdx.x == 0) {{
        tensormap_prefetch(map);
        mbar_expect(bar, bytes * boxes);
        for (int b = 0; b < boxes; ++b) tma_load_{rank}d{"_hint" if hint else ""}(shared(smem) + b * bytes, map, bar, c0 + b * step{rest}{policy});
    }}
    mbar_wait(bar, 0);
    for (int n = threadIdx.x; n < {COPY_BYTES // 4}; n += 128) out[n] = smem[n];
    atomicAdd(const_cast<int*>(done), 1);
}}"""


# ---- barriers -------------------------------------------------------------------------------------------------------------

#: Events on one barrier by one thread, and after each whether the phase of parity 0, and of parity 1, has ended.
STATES = """KERNEL(32) t_states(int* out, const int* events, int count) {
    __shared__ uint64_t object;
    const uint32_t bar = shared(&object);
    if (threadIdx.x != 0) return;
    for (int n = 0; n < count; ++n) {
        const int what = events[2 * n], x = events[2 * n + 1];
        if (what == 0) { mbar_init(bar, x); mbar_init_fence(); }
        if (what == 1) mbar_arrive(bar);
        if (what == 2) mbar_expect(bar, x);
        if (what == 3) asm volatile("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%0], %1;" :: "r"(bar), "r"(x) : "memory");
        out[2 * n] = ended(bar, 0);
        out[2 * n + 1] = ended(bar, 1);
    }
}"""

#: What one thread wrote late, and announced by an arrival, is what the others read, phase after phase.
WAITS = """KERNEL(160) t_waits(int* out, int rounds) {
    __shared__ uint64_t objects[2];
    __shared__ int value, done_;
    volatile int* done = &done_;
    const uint32_t full = shared(&objects[0]), empty = shared(&objects[1]);
    if (threadIdx.x == 0) {
        done_ = 0;
        value = -1;
        mbar_init(full, 1);
        mbar_init(empty, 127);
        mbar_init_fence();
    }
    __syncthreads();
    if (threadIdx.x >= 128) return watch(done, 128);
    for (int n = 0; n < rounds; ++n) {
        if (threadIdx.x == 0) {
            mbar_wait(empty, (n + 1) & 1);
            delay(20000);
            value = n;
            mbar_arrive(full);
        } else {
            mbar_wait(full, n & 1);
            if (threadIdx.x % 32 == n % 32) delay(5000);
            out[n * 128 + threadIdx.x] = *const_cast<volatile int*>(&value);
            mbar_arrive(empty);
        }
    }
    atomicAdd(&done_, 1);
}"""

RING, TILE = 3, 32 * 32
#: A producer and two consumer warpgroups over a ring: every tile of the tensor, in order, through shared memory.
RINGS = f"""KERNEL(416) t_ring(const __grid_constant__ TensorMap map, int* out, int steps, int slow_load, int slow_read) {{
    __shared__ __align__(1024) int tiles[{RING} * {TILE}];
    __shared__ uint64_t objects[{2 * RING}];
    __shared__ int done_;
    volatile int* done = &done_;
    const uint32_t full = shared(objects), empty = shared(objects + {RING});
    const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0), lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {{
        done_ = 0;
        for (int i = 0; i < {RING}; ++i) {{
            mbar_init(full + 8 * i, 1);
            mbar_init(empty + 8 * i, 8);
        }}
        mbar_init_fence();
        proxy_fence();
    }}
    __syncthreads();
    if (group == 3) return watch(done, 257);
    int slot = 0;
    uint32_t parity = 0;
    if (group == 0) {{
        if (threadIdx.x != 0) return;
        for (int n = 0; n < steps; ++n) {{
            mbar_wait(empty + 8 * slot, parity ^ 1);
            delay(n % 4 == 1 ? slow_load : 0);
            mbar_expect(full + 8 * slot, {4 * TILE});
            tma_load_2d(shared(tiles) + slot * {4 * TILE}, map, full + 8 * slot, 0, 32 * n);
            if (++slot == {RING}) {{ slot = 0; parity ^= 1; }}
        }}
    }} else {{
        for (int n = 0; n < steps; ++n) {{
            mbar_wait(full + 8 * slot, parity);
            delay((n + group) % 5 == 2 ? slow_read : 0);
            for (int i = threadIdx.x - 128; i < {TILE}; i += 256) out[n * {TILE} + i] = *const_cast<volatile int*>(tiles + slot * {TILE} + i);
            __syncwarp();
            if (lane == 0) mbar_arrive(empty + 8 * slot);
            if (++slot == {RING}) {{ slot = 0; parity ^= 1; }}
        }}
    }}
    atomicAdd(&done_, 1);
}}"""

#: Two warpgroups: one writes and arrives, the other waits and reads; the way back is a barrier of its own.
TURNS = """KERNEL(288) t_turns(int* out, int rounds, int slow_write, int slow_read) {
    __shared__ int values[128], done_;
    const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0), i = threadIdx.x % 128;
    if (threadIdx.x == 0) done_ = 0;
    __syncthreads();
    if (group == 2) return watch(&done_, 256);
    for (int n = 0; n < rounds; ++n) {
        if (group == 0) {
            if (n) bar_sync(2, 256);
            if (i / 32 == n % 4) delay(slow_write);
            *const_cast<volatile int*>(values + i) = n * 1000 + i;
            bar_arrive(1, 256);
        } else {
            bar_sync(1, 256);
            if (i / 32 == n % 3) delay(slow_read);
            out[n * 128 + i] = *const_cast<volatile int*>(values + 127 - i);
            if (n + 1 < rounds) bar_arrive(2, 256);
        }
    }
    atomicAdd(&done_, 1);
}"""

# ---- registers and numbers ------------------------------------------------------------------------------------------------

#: The first warpgroup gives registers away, the others take them and need them; what was in registers before stays.
REGISTERS = """KERNEL(384) t_registers(float* y, const float* x, int rounds) {
    const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    float keep[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) keep[i] = x[i * 384 + threadIdx.x];
    touch(keep);
    if (group == 0) {
        setmaxnreg_dec<40>();
        touch(keep);
#pragma unroll
        for (int i = 0; i < 16; ++i) y[i * 384 + threadIdx.x] = keep[i];
    } else {
        setmaxnreg_inc<232>();
        touch(keep);
        float v[160];
#pragma unroll
        for (int i = 0; i < 160; ++i) v[i] = x[i * 384 + threadIdx.x];
        for (int n = 0; n < rounds; ++n) {
            const float first = v[0];
#pragma unroll
            for (int i = 0; i < 159; ++i) v[i] = v[i + 1] + 1.0f;
            v[159] = first + 1.0f;
        }
#pragma unroll
        for (int i = 0; i < 16; ++i) y[i * 384 + threadIdx.x] = keep[i];
#pragma unroll
        for (int i = 0; i < 160; ++i) y[(16 + i) * 384 + threadIdx.x] = v[i];
    }
}"""

KEPT = """KERNEL(128) t_kept(uint32_t* y, const uint32_t* x, float* g, const float* f) {
    float r[3];
    uint32_t w[3];
#pragma unroll
    for (int i = 0; i < 3; ++i) { r[i] = f[i * 128 + threadIdx.x]; w[i] = opaque(x[i * 128 + threadIdx.x]); }
    touch(r);
    touch_b32(w);
    pin_b32(w[0]);
#pragma unroll
    for (int i = 0; i < 3; ++i) { g[i * 128 + threadIdx.x] = r[i]; y[i * 128 + threadIdx.x] = w[i]; }
}"""

LARGEST = """KERNEL(128) t_vmax3(int* y, const int* a, const int* b, const int* c) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    y[i] = vmax3(a[i], b[i], c[i]);
}"""

#: One grid of a chain: when it began and ended, and what it read of what the one in front counts, at its end.
CHAIN = """KERNEL(32) t_chain(long long* out, volatile int* count, int n) {
    if (threadIdx.x != 0) return;
    long long begin, end;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
    grid_wait();
    launch_dependents();
    const int seen = *count;
    delay(400000);
    *count = n + 1;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(end));
    out[3 * n] = begin;
    out[3 * n + 1] = end;
    out[3 * n + 2] = seen;
}"""

#: (swizzle code, LBO, SBO) of the descriptors that are made with compile-time fields
FIELDS = [(1, 16, 1024), (1, 16384, 1024), (2, 16, 512), (2, 4096, 512), (3, 16, 256), (3, 512, 256), (0, 128, 512), (1, 65536, 262128)]


def descriptors() -> str:
    makes = "\n".join(f"    y[{n} * 128 + i] = smem_desc<{s}, {lbo}, {sbo}>(at[i]);" for n, (s, lbo, sbo) in enumerate(FIELDS))
    return f"KERNEL(128) t_descriptors(uint64_t* y, const uint32_t* at) {{\n    const int i = threadIdx.x;\n{makes}\n}}"


# ---- modules --------------------------------------------------------------------------------------------------------------


def wgmma_kernels(dtype: str) -> list[str]:
    out = [product(n, dtype, regs, ta, tb) for n in WIDTHS for regs in (False, True) for ta, tb in turns(n, regs)]
    return out + ([GROUPS] if dtype == "f16" else [])


def kernels(part: str) -> list[str]:
    if part != "rest":
        return wgmma_kernels(part)
    out = [copy(rank, hint) for rank in range(2, 6) for hint in ("", *HINTS)]
    return [*out, STATES, WAITS, RINGS, TURNS, REGISTERS, KEPT, LARGEST, CHAIN, descriptors()]


PARTS = ("f16", "bf16", "rest")


def own() -> list[str]:
    """The records that Ada's family does not have."""
    return [n for n in INSTRS if n not in ada.INSTRS]


def source(part: str) -> str:
    text = "\n".join(kernels(part))
    used = [INSTRS[n] for n in own() if f"{n}(" in text or f"{n}<" in text]
    return HEAD + "\n".join("\n".join(_function(i)) for i in used) + "\n" + text + "\n"


@functools.cache
def binary(part: str) -> nvrtc.Binary:
    return compiled(source(part), ARCH, f"micro_{part}")


@functools.cache
def loaded(part: str, name: str, smem: int) -> module.LoadedKernel:
    return module.load(binary(part).cubin, f"t_{name}", smem, 0)


def launch(part: str, name: str, kinds: tuple[str, ...], values: list[Any], *, threads: int, blocks: int = 1, smem: int = 0,
           pdl: bool = False) -> None:
    """Run t_<name>; tensors among the values are passed as their pointers. A 64-bit number is passed as "ptr": it has no sign. pdl: it may
    begin before the launch in front has ended, and is not waited for."""
    raw.launch(loaded(part, name, smem), kinds, values, blocks=blocks, threads=threads, smem=smem, pdl=pdl)
