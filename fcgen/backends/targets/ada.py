"""The Ampere/Ada family (sm_80, sm_86, sm_89; sm_90 runs the same code): limits, and one record per instruction.

`TARGETS[arch]` is what passes, printer and simulator receive. A record's `body` holds one inline-PTX instruction or one fixed
idiom (pack, unpack, clamp); it knows nothing of tiles, buffers or loops. A signature that starts with `<int N>` makes a template
of one compile-time integer. Records that touch shared memory are `volatile` with a memory clobber: the compiler must not move
them over a barrier. Arithmetic records are plain, so that equal calls are joined.
"""

from __future__ import annotations

import numpy as np

from ...ir.layout import LANES, Factor, RegLayout, mma_a, mma_b, mma_c
from ...ir.target import Instr, Target
from . import narrow
from .ptx import does, each, fn, group, numbered, pure, reads


def matrix(layout: RegLayout, regs: np.ndarray) -> np.ndarray:
    """The registers [lanes, regs] of a warp, or [warps, lanes, regs] of several, as the matrix they hold."""
    c = layout.coords(len(regs)) if regs.ndim == 3 else layout.coords(1)[0]
    out = np.zeros(layout.shape, np.float64)
    out[c[..., 0], c[..., 1]] = regs
    return out


def _mma_effect(a_map: RegLayout, b_map: RegLayout, c_map: RegLayout):
    """Meaning of one matrix instruction on physical registers: products in float32, summed in float64, rounded once."""

    def effect(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        full = (matrix(c_map, c) + matrix(a_map, a) @ matrix(b_map, b)).astype(c.dtype)
        at = c_map.coords(1)[0]
        return full[at[..., 0], at[..., 1]]

    return effect


# PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", read off the tables: lane = 4 * group + thread in group.
# A: a_i has row group (+8 for i in 2,3,6,7), column 2 * thread + i % 2 (+8 for i >= 4).
MMA_A = RegLayout(((Factor("r", 2, 2), Factor("l", 8, 4)), (Factor("r", 2, 4), Factor("l", 4, 1), Factor("r", 2, 1))))
# B: b_i has row 2 * thread + i % 2 (+8 for i >= 2), column group.
MMA_B = RegLayout(((Factor("r", 2, 2), Factor("l", 4, 1), Factor("r", 2, 1)), (Factor("l", 8, 4),)))
# C: c_i has row group (+8 for i >= 2), column 2 * thread + i % 2.
MMA_C = RegLayout(((Factor("r", 2, 2), Factor("l", 8, 4)), (Factor("l", 4, 1), Factor("r", 2, 1))))
assert (mma_a(16, 16, (1, 1)), mma_b(16, 8, (1, 1)), mma_c(16, 8, (1, 1))) == (MMA_A, MMA_B, MMA_C), "ir.layout is not as in PTX"


# "Matrix Fragments for mma.m16n8k32": four elements of one byte in the place of two. a_i: row group (+8 for i in 4-7, 12-15), column
# 4 * thread + i % 4 (+16 for i >= 8); b_i: row 4 * thread + i % 4 (+16 for i >= 4), column group.
BYTES_A = RegLayout(((Factor("r", 2, 4), Factor("l", 8, 4)), (Factor("r", 2, 8), Factor("l", 4, 1), Factor("r", 4, 1))))
BYTES_B = RegLayout(((Factor("r", 2, 4), Factor("l", 4, 1), Factor("r", 4, 1)), (Factor("l", 8, 4),)))
assert (mma_a(16, 32, (1, 1), 1), mma_b(32, 8, (1, 1), 1)) == (BYTES_A, BYTES_B), "ir.layout is not as in PTX"
#: element type -> (PTX name, the accumulator's C++ type, constraint and PTX name, lowest capability)
MATRIX = {"f16": ("f16", "float", "f", "f32", 80), "bf16": ("bf16", "float", "f", "f32", 80), "i8": ("s8", "int", "r", "s32", 80),
          "u8": ("u8", "int", "r", "s32", 80), "f8e4m3": ("e4m3", "float", "f", "f32", 89), "f8e5m2": ("e5m2", "float", "f", "f32", 89)}


def _mma(dtype: str) -> Instr:
    ptx, ctype, con, sums, needs = MATRIX[dtype]
    k, a, b = (16, MMA_A, MMA_B) if dtype.endswith("16") else (32, BYTES_A, BYTES_B)
    return Instr(
        f"mma_m16n8k{k}_{dtype}", f"{ctype}* c, const uint32_t* a, const uint32_t* b",
        f"""asm volatile("mma.sync.aligned.m16n8k{k}.row.col.{sums}.{ptx}.{ptx}.{sums} "
             "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
             : "+{con}"(c[0]), "+{con}"(c[1]), "+{con}"(c[2]), "+{con}"(c[3])
             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));""",
        f"PTX ISA, Matrix Fragments for mma.m16n8k{k}{' with floating point type' if k == 16 else ''}: c += a b", (16, 8, k), dtype, a, b,
        MMA_C, _mma_effect(a, b, MMA_C), needs=needs)


def _ldmatrix(count: int, trans: bool) -> Instr:
    return Instr(
        f"ldmatrix_x{count}{'_trans' if trans else ''}", "uint32_t* d, uint32_t row",
        f"""asm volatile("ldmatrix.sync.aligned.m8n8.x{count}{'.trans' if trans else ''}.shared.b16 {{{numbered(count)}}}, [%{count}];"
             : {each("=r", count, "d[{i}]")} : "r"(row) : "memory");""",
        f"PTX ISA, ldmatrix: {count} blocks of 8 x 8; lane l gives the address of row l % 8 of block l / 8",
        effect=_ldmatrix_effect(count, trans))


def _ldmatrix_effect(count: int, trans: bool):
    """blocks [count, 8, 8] -> registers [lanes, 2 * count]: lane l holds row l / 4, columns 2 (l % 4) and the next; .trans
    hands out the transposed block."""

    def effect(blocks: np.ndarray) -> np.ndarray:
        lane = np.arange(LANES)
        if trans:
            blocks = blocks.transpose(0, 2, 1)
        return np.stack([blocks[i, lane // 4, lane % 4 * 2 + e] for i in range(count) for e in (0, 1)], axis=1)

    return effect


def _cp_async(size: int) -> list[Instr]:
    kind = "cg" if size == 16 else "ca"  # .cg (L2 only) exists for 16 bytes alone
    doc = f"PTX ISA, cp.async: {size} bytes"
    return [does(f"cp_async_{size}", "uint32_t dst, const void* src", f"cp.async.{kind}.shared.global [%0], [%1], {size};", doc),
            fn(f"cp_async_{size}_fill", "uint32_t dst, const void* src, int bytes",
               f'asm volatile("cp.async.{kind}.shared.global [%0], [%1], {size}, %2;"\n'
               '             :: "r"(dst), "l"(src), "r"(bytes) : "memory");',
               doc + "; past the first `bytes` of the source, zeros", "void")]


#: name of a register type -> (C++ type, asm constraint, PTX type, vector type)
_REGS = {"f32": ("float", "f", "f32", "float"), "b32": ("uint32_t", "r", "b32", "uint"), "i32": ("int", "r", "b32", "int"),
         "f64": ("double", "d", "f64", "double"), "i64": ("long long", "l", "b64", "longlong")}


def _memory(tag: str, n: int) -> list[Instr]:
    """Loads and stores of n registers, through shared addresses (32-bit) and global pointers."""
    ctype, con, ptx, vec = _REGS[tag]
    v = f".v{n}" if n > 1 else ""
    one = n == 1
    cvec = ctype if one else f"{vec}{n}"
    read = (f"d[0] = *static_cast<const {ctype}*>(src);" if one else
            f"const {cvec} v = *static_cast<const {cvec}*>(src);\n    " + " ".join(f"d[{i}] = v.{f};" for i, f in enumerate("xyzw"[:n])))
    write = (f"*static_cast<{ctype}*>(dst) = v[0];" if one else
             f"*static_cast<{cvec}*>(dst) = make_{cvec}({', '.join(f'v[{i}]' for i in range(n))});")
    much = "a register" if one else f"{n} registers"
    return [
        Instr(f"ld_shared_{tag}x{n}", f"{ctype}* d, uint32_t src",
              f'asm volatile("ld.shared{v}.{ptx} {group(numbered(n))}, [%{n}];"'
              f' : {each(f"={con}", n, "d[{i}]")} : "r"(src) : "memory");', "PTX ISA, ld"),
        Instr(f"st_shared_{tag}x{n}", f"uint32_t dst, const {ctype}* v",
              f'asm volatile("st.shared{v}.{ptx} [%0], {group(numbered(n, 1))};"'
              f' :: "r"(dst), {each(con, n, "v[{i}]")} : "memory");', "PTX ISA, st"),
        Instr(f"ld_global_{tag}x{n}", f"{ctype}* d, const void* src", read, f"{much} in one global load"),
        Instr(f"st_global_{tag}x{n}", f"void* dst, const {ctype}* v", write, f"{much} in one global store")]


def _numeric() -> list[Instr]:
    return [
        pure("exp2_approx", "float x", "ex2.approx.ftz.f32 %0, %1;", "PTX ISA, ex2: 2^x, relative error below 2^-22.5"),
        pure("log2_approx", "float x", "lg2.approx.f32 %0, %1;", "PTX ISA, lg2: absolute error below 2^-22"),
        pure("rcp_approx", "float x", "rcp.approx.ftz.f32 %0, %1;", "PTX ISA, rcp: 1/x within 1 ulp"),
        pure("sqrt_approx", "float x", "sqrt.approx.f32 %0, %1;", "PTX ISA, sqrt: relative error below 2^-22.9"),
        pure("rsqrt_approx", "float x", "rsqrt.approx.f32 %0, %1;", "PTX ISA, rsqrt: relative error below 2^-22.9"),
        pure("tanh_approx", "float x", "tanh.approx.f32 %0, %1;", "PTX ISA, tanh: relative error below 2^-11"),
        pure("mul_wide_u32", "uint32_t a, uint32_t b", "mul.wide.u32 %0, %1, %2;", "PTX ISA, mul: all 64 bits of a product", "uint64_t"),
        pure("div_approx", "float a, float b", "div.approx.ftz.f32 %0, %1, %2;",
             "PTX ISA, div: a/b within 2 ulp for |b| from 2^-126 to 2^126"),
        fn("sigmoid_approx", "float x", "return rcp_approx(1.0f + exp2_approx(-1.4426950408889634f * x));",
            "1 / (1 + e^-x), relative error about 3e-7", "float"),
        fn("sin_approx", "float x", "const float n = rintf(x * 0.15915494309189535f);\n"
            "    return __sinf(fmaf(n, 1.7484556e-7f, fmaf(n, -6.2831854820251465f, x)));",
            "sine after reduction by 2 pi in two steps, absolute error about 5e-7 for |x| up to 1e4", "float"),
        fn("cos_approx", "float x", "const float n = rintf(x * 0.15915494309189535f);\n"
            "    return __cosf(fmaf(n, 1.7484556e-7f, fmaf(n, -6.2831854820251465f, x)));",
            "cosine, as sin_approx", "float"),
        fn("pack_f16", "float lo, float hi",
            'uint32_t d;\n    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));\n    return d;',
            "PTX ISA, cvt: two floats to packed halves, the first in the low half", "uint32_t"),
        fn("pack_bf16", "float lo, float hi",
            'uint32_t d;\n    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));\n    return d;',
            "PTX ISA, cvt: two floats to packed bfloat16, the first in the low half", "uint32_t"),
        pure("to_f32_f16", "unsigned short h", "cvt.f32.f16 %0, %1;", "PTX ISA, cvt: half to float, exact"),
        # without .rn: ptxas then makes one instruction of a product and what it is added to, as of floats
        *(pure(f"{name}_f16x2", "uint32_t a, uint32_t b", f"{name}.f16x2 %0, %1, %2;",
               f"PTX ISA, {name}: two halves at once, each rounded to nearest even", "uint32_t") for name in ("add", "sub", "mul")),
        pure("fma_f16x2", "uint32_t a, uint32_t b, uint32_t c", "fma.rn.f16x2 %0, %1, %2, %3;",
             "PTX ISA, fma: two halves at once, each rounded once", "uint32_t"),
        fn("to_f32_bf16", "unsigned short h", "return __uint_as_float(uint32_t(h) << 16);",
            "bfloat16 is the upper half of a float", "float"),
        fn("at_f16", "const uint32_t* p, int i",
            "return to_f32_f16(static_cast<unsigned short>(i % 2 ? p[i / 2] >> 16 : p[i / 2]));",
            "element i of packed halves", "float"),
        fn("at_bf16", "const uint32_t* p, int i", "return __uint_as_float(i % 2 ? p[i / 2] & 0xffff0000u : p[i / 2] << 16);",
            "element i of packed bfloat16", "float"),
        fn("round_f16", "float x", "return to_f32_f16(static_cast<unsigned short>(pack_f16(x, 0.0f)));", "x rounded to half", "float"),
        fn("round_bf16", "float x", "return to_f32_bf16(static_cast<unsigned short>(pack_bf16(x, 0.0f)));",
            "x rounded to bfloat16", "float"),
        fn("half_of", "const uint32_t* p, int i", "return static_cast<unsigned short>(i % 2 ? p[i / 2] >> 16 : p[i / 2]);",
            "bits of element i of a packed array", "unsigned short"),
        *(fn(f"{word}_{t}", f"{c} a, {c} n", f"return static_cast<{u}>(n) <= {top} ? {shifted} : {gone};",
              "all bits that are shifted further than there are bits are gone", c)
          for t, c, u, top in (("i32", "int", "unsigned", 31), ("u32", "uint32_t", "unsigned", 31),
                               ("i64", "long long", "unsigned long long", 63))
          for word, shifted, gone in (("shl", f"static_cast<{c}>(static_cast<{u}>(a) << n)", "0"),
                                      ("shr", "a >> n", "0" if t == "u32" else "a < 0 ? -1 : 0"))),
        *(f for t, c in (("", "int"), ("_i64", "long long")) for f in (
            fn(f"floor_div{t}", f"{c} a, {c} b", f"const {c} q = a / b;\n    return q - (q * b != a && (a < 0) != (b < 0));",
               "a / b rounded down", c),
            fn(f"floor_mod{t}", f"{c} a, {c} b", f"return a - floor_div{t}(a, b) * b;", "the rest of floor_div: has the sign of b", c))),
        fn("div_shift", "unsigned d", "return 32 - __clz(int(d) - 1);", "the power of two at or above d", "int"),
        fn("div_magic", "unsigned d", "return uint32_t((1ull << (31 + div_shift(d))) / d + 1);",
            "2**(31 + shift) / d, too large by at most 1: x times it is x / d and less than 1 / d more for x below 2**31", "uint32_t"),
        fn("div_by", "unsigned x, uint32_t magic, int shift", "return __umulhi(2 * x, magic) >> shift;",
            "x / d rounded down for x below 2**31", "unsigned"),
        fn("floor_div_by", "int x, uint32_t magic, int shift",
            "const int sign = x >> 31;\n    return int(div_by(unsigned(x ^ sign), magic, shift)) ^ sign;", "x / d rounded down", "int"),
    ]


def _exchange() -> list[Instr]:
    out = [fn(f"shfl_{way}_{t}", f"{c} x, int lanes", f"return __shfl_{way}_sync(0xffffffffu, x, lanes);", f"PTX ISA, shfl.sync.{doc}", c)
           for way, doc in (("xor", "bfly: x of the lane whose number differs in `lanes`"),
                            ("up", "up: x of the lane that is `lanes` below, its own in the first ones"))
           for t, c in (("f32", "float"), ("i32", "int"), ("u32", "uint32_t"), ("i64", "long long"), ("f64", "double"))]
    swap = ("uint32_t x = {sel} ? {a} : {b};\n    x = __shfl_xor_sync(0xffffffffu, x, {by});\n"
            "    {a} = {sel} ? x : {a};\n    {b} = {sel} ? {b} : x;\n")
    steps = [("odd", 0, 1, 1), ("odd", 2, 3, 1), ("high", 0, 2, 2), ("high", 1, 3, 2)]
    body = "const bool odd = lane & 1, high = lane & 2;\n    uint32_t x;\n" + "".join(
        "    " + swap.format(sel=sel, a=f"w[{a}]", b=f"w[{b}]", by=by).replace("uint32_t x =", "x =") for sel, a, b, by in steps)
    out.append(fn("quad_transpose", "uint32_t* w, int lane", body.rstrip(),
                   "word k of lane q goes to lane k, which keeps it as word q: four shuffles for four words", "void"))
    for t, c in (("f32", "float"), ("i32", "int"), ("u32", "uint32_t"), ("f64", "double")):
        out.append(does(f"red_add_{t}", f"{c}* p, {c} v", f"red.global.add.{'s32' if t == 'i32' else t} [%0], %1;",
                        "PTX ISA, red: atomic add without return"))
    out += [does("red_add_f16", "unsigned short* p, unsigned short v", "red.global.add.noftz.f16 [%0], %1;", "PTX ISA, red"),
            does("red_add_f16x2", "void* p, uint32_t v", "red.global.add.noftz.f16x2 [%0], %1;", "PTX ISA, red"),
            does("post_i32", "uint32_t dst, int x", "st.shared.b32 [%0], %1;", "PTX ISA, st")]
    out.append(fn("fetch_i32", "uint32_t src", 'int x;\n    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(src) : "memory");\n'
                   "    return __shfl_sync(0xffffffffu, x, 0);", "PTX ISA, ld; the shuffle tells the compiler that all lanes have the same",
                   "int"))
    return out


def _order() -> list[Instr]:
    return [
        Instr("barrier", "", "__syncthreads();", "PTX ISA, bar.sync 0: all warps of the block"),
        Instr("syncwarp", "", "__syncwarp();", "PTX ISA, bar.warp.sync: all lanes of the warp"),
        does("commit_group", "", "cp.async.commit_group;", "PTX ISA, cp.async.commit_group"),
        does("wait_group", "<int N>", "cp.async.wait_group %0;",
             "PTX ISA, cp.async.wait_group: at most N of this thread's groups stay in flight"),
        Instr("swizzle", "<int Mask> uint32_t offset", "return offset ^ ((offset >> 3) & Mask);",
              "XOR of the 16-byte chunk number with the row number (PTX ISA, Swizzling modes)", returns="uint32_t"),
        reads("ld_shared_b16", "uint32_t src", "ld.shared.b16 %0, [%1];", "PTX ISA, ld", "unsigned short"),
        does("st_shared_b16", "uint32_t dst, unsigned short v", "st.shared.b16 [%0], %1;", "PTX ISA, st"),
    ]


def _records(native: bool) -> dict[str, Instr]:
    """native: floats of 8 bits have instructions of their own."""
    out = [_mma(dtype) for dtype in MATRIX]
    out += [_ldmatrix(n, t) for n in (4, 2, 1) for t in (False, True)]
    out += [i for size in (16, 8, 4) for i in _cp_async(size)]
    out += [i for tag in ("f32", "b32", "i32") for n in (1, 2, 4) for i in _memory(tag, n)]
    out += [i for tag in ("f64", "i64") for n in (1, 2) for i in _memory(tag, n)]
    out += _numeric() + narrow.records(native) + _exchange() + _order()
    return {i.name: i for i in out}


INSTRS: dict[str, Instr] = _records(native=True)
BEFORE_89: dict[str, Instr] = _records(native=False)


def _target(capability: int, block_kib: int, sm_kib: int, blocks: int) -> Target:
    return Target(f"sm_{capability}", capability, block_kib * 1024, sm_kib * 1024, max_blocks_per_sm=blocks,
                  instrs=INSTRS if capability >= 89 else BEFORE_89)


#: Shared memory per block (opt-in) and per multiprocessor: CUDA C++ Programming Guide,
#: "Technical Specifications per Compute Capability".
TARGETS: dict[str, Target] = {
    "sm_80": _target(80, 163, 164, 32),
    "sm_86": _target(86, 99, 100, 16),
    "sm_89": _target(89, 99, 100, 24),
    "sm_90": _target(90, 227, 228, 32),
}
