"""Records for elements of 8 bits, four of which share a register: packing, unpacking and rounding; masks of such and of halves.

Floats of 8 bits are converted by `cvt` from sm_89 on; before that by arithmetic on the bits of a float, with the same results: a
float rounds to nearest even, one that is too large to the largest finite number, NaN stays NaN.
"""

from __future__ import annotations

from ...ir.target import Instr
from .ptx import does, fn, pure, reads

#: name -> (PTX name, bits of the mantissa, exponent bias, bits of the largest finite number)
FLOATS = {"f8e4m3": ("e4m3", 3, 7, 0x7E), "f8e5m2": ("e5m2", 2, 15, 0x7B)}


def _integers() -> list[Instr]:
    out = [
        fn("byte_of", "const uint32_t* p, int i", "return static_cast<unsigned char>(p[i / 4] >> 8 * (i % 4));",
            "bits of element i of a packed array of bytes", "unsigned char"),
        fn("spread_bytes", "uint32_t w, int second", "return __byte_perm(w, 0x64, second ? 0x4342 : 0x4140);",
            "the first or the second two bytes of a word, each as the low bits of a half of 1024 and more"),
        fn("mask_x2", "bool a, bool b", "return (a ? 0xffffu : 0u) | (b ? 0xffff0000u : 0u);",
            "the bits of the halves of a word that are chosen"),
        fn("mask_x4", "bool a, bool b, bool c, bool d",
            "return (a ? 0xffu : 0u) | (b ? 0xff00u : 0u) | (c ? 0xff0000u : 0u) | (d ? 0xff000000u : 0u);",
            "the bits of the bytes of a word that are chosen"),
        reads("ld_shared_b8", "uint32_t src", "ld.shared.u8 %0, [%1];", "PTX ISA, ld", "unsigned short"),
        does("st_shared_b8", "uint32_t dst, unsigned short v", "st.shared.u8 [%0], %1;", "PTX ISA, st"),
    ]
    for d, ctype, doc in (("i8", "signed char", "with its sign"), ("u8", "unsigned char", "with zeros")):
        out += [
            fn(f"to_i32_{d}", "unsigned char b", f"return static_cast<{ctype}>(b);", f"the lowest byte, extended {doc}", "int"),
            fn(f"at_{d}", "const uint32_t* p, int i", f"return to_i32_{d}(byte_of(p, i));", f"element i of packed {d}", "int"),
            fn(f"round_{d}", "int x", f"return static_cast<{ctype}>(x);", "x modulo 2 ** 8", "int"),
            fn(f"pack_{d}", "int a, int b, int c, int d",
                "return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);", "the lowest bytes, in order"),
        ]
    return out


def _floats(d: str, native: bool) -> list[Instr]:
    ptx, mantissa, bias, most = FLOATS[d]
    if native:
        two = fn(f"two_{d}", "float lo, float hi",
                  f'unsigned short y;\n    asm("cvt.rn.satfinite.{ptx}x2.f32 %0, %1, %2;" : "=h"(y) : "f"(hi), "f"(lo));\n    return y;',
                  "PTX ISA, cvt: two floats to packed ones of 8 bits, the first in the low byte")
        back = pure(f"to_f16x2_{d}", "unsigned short b", f"cvt.rn.f16x2.{ptx}x2 %0, %1;",
                    "PTX ISA, cvt: two packed floats of 8 bits to packed halves, exact", "uint32_t")
        return [two, back,
                fn(f"to_f32_{d}", "unsigned char b", f"return to_f32_f16(static_cast<unsigned short>(to_f16x2_{d}(b)));",
                    "the float of these bits", "float"),
                fn(f"at_{d}", "const uint32_t* p, int i",
                    f"const uint32_t h = to_f16x2_{d}(static_cast<unsigned short>(p[i / 4] >> 16 * (i % 4 / 2)));\n"
                    "    return to_f32_f16(static_cast<unsigned short>(i % 2 ? h >> 16 : h));", f"element i of packed {d}", "float"),
                *_both(d)]
    shift = 23 - mantissa
    byte = ("const uint32_t u = __float_as_uint(x) & 0x7fffffffu, sign = __float_as_uint(x) >> 24 & 0x80u;\n"
            "    if (u > 0x7f800000u) return 0x7fu;\n"
            f"    const uint32_t y = u < {127 - bias + 1 << 23:#x}u\n"
            f"        ? __float2int_rn(__uint_as_float(u) * {2.0 ** (bias - 1 + mantissa)}f)\n"
            f"        : (u - {127 - bias << 23:#x}u + {(1 << shift - 1) - 1:#x}u + (u >> {shift} & 1u)) >> {shift};\n"
            f"    return sign | min(y, {most:#x}u);")
    if d == "f8e4m3":
        back_text = ("const uint32_t m = b & 0x7fu;\n    const float y = m == 0x7fu ? __int_as_float(0x7fffffff) :\n"
                     "        m < 8u ? m * 0.001953125f : __uint_as_float((m << 20) + 0x3c000000u);\n    return b & 0x80u ? -y : y;")
    else:
        back_text = "return to_f32_f16(static_cast<unsigned short>(b << 8));  // the upper byte of a half"
    return [fn(f"byte_{d}", "float x", byte, "the bits of the nearest float of 8 bits"),
            fn(f"two_{d}", "float lo, float hi", f"return byte_{d}(lo) | byte_{d}(hi) << 8;", "two of them"),
            fn(f"to_f32_{d}", "unsigned char b", back_text, "the float of these bits", "float"),
            fn(f"at_{d}", "const uint32_t* p, int i", f"return to_f32_{d}(byte_of(p, i));", f"element i of packed {d}", "float"),
            *_both(d)]


def _both(d: str) -> list[Instr]:
    return [fn(f"pack_{d}", "float a, float b, float c, float d", f"return two_{d}(a, b) | two_{d}(c, d) << 16;",
                "four floats, the first one lowest"),
            fn(f"round_{d}", "float x", f"return to_f32_{d}(static_cast<unsigned char>(two_{d}(x, 0.0f)));", f"x rounded to {d}", "float")]


def records(native: bool) -> list[Instr]:
    """native: the target has `cvt` of floats of 8 bits."""
    return [*_integers(), *(i for d in FLOATS for i in _floats(d, native))]
