"""Tiny kernels around the instruction wrappers, as the printer writes them: all in one module, compiled once."""

from __future__ import annotations

import functools
from typing import Any

import fcgen as fc
from fcgen.backends.cuda.printer import _function
from fcgen.backends.targets.ada import INSTRS
from fcgen.build.compiler import NVRTC_OPTIONS, nvrtc_fingerprint
from fcgen.ir.target import Instr
from fcgen.runtime import cache, module, nvrtc

from . import raw

HEAD = 'using uint32_t = unsigned int;\nusing uint64_t = unsigned long long;\n#define KERNEL extern "C" __global__ void\n'
SMEM = "__device__ __forceinline__ uint32_t shared(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }\n"


def mma(i: Instr) -> str:
    return f"""KERNEL t_{i.name}({i.signature.split('*')[0]}* c, const uint32_t* a, const uint32_t* b) {{
    const int l = threadIdx.x;
    {i.name}(c + 4 * l, a + 4 * l, b + 2 * l);
}}"""


def ldmatrix(i: Instr, count: int) -> str:
    return f"""KERNEL t_{i.name}(uint32_t* d, const unsigned short* blocks) {{
    __shared__ __align__(16) unsigned short smem[{count} * 64];
    for (int n = threadIdx.x; n < {count} * 64; n += 32) smem[n] = blocks[n];
    __syncthreads();
    const int l = threadIdx.x;
    uint32_t regs[{count}];
    {i.name}(regs, shared(smem + (l / 8 % {count}) * 64 + l % 8 * 8));
    for (int n = 0; n < {count}; ++n) d[l * {count} + n] = regs[n];
}}"""


#: Lane 5 of each warp posts; then each warp fetches what the next one posted.
POSTS = """KERNEL t_posts(int* y, const int* x) {
    __shared__ __align__(16) int numbers[4];
    const int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 5) post_i32(shared(numbers + warp), x[warp]);
    __syncthreads();
    y[threadIdx.x] = fetch_i32(shared(numbers + (warp + 1) % 4));
}"""


def elementwise(name: str, out: str, *args: str) -> str:
    """One result per thread from one element of each argument."""
    params = "".join(f", const {c}* {n}" for n, c in zip("abc", args))
    at = ", ".join(f"{n}[i]" for n in "abc"[:len(args)])
    return f"KERNEL t_{name}({out}* y{params}) {{\n    const int i = blockIdx.x * 128 + threadIdx.x;\n    y[i] = {name}({at});\n}}"


def packed(name: str, out: str) -> str:
    return f"""KERNEL t_{name}({out}* y, const uint32_t* p) {{
    const int i = blockIdx.x * 128 + threadIdx.x;
    y[i] = {name}(p, i);
}}"""


def move(tag: str, ctype: str, n: int) -> str:
    """Global -> registers -> shared -> registers -> global, `n` at a time."""
    w = f"{tag}x{n}"
    return f"""KERNEL t_move_{w}({ctype}* y, const {ctype}* x) {{
    __shared__ __align__(16) {ctype} smem[128 * {n}];
    const int i = blockIdx.x * 128 + threadIdx.x;
    {ctype} v[{n}], d[{n}];
    ld_global_{w}(v, x + i * {n});
    st_shared_{w}(shared(smem + threadIdx.x * {n}), v);
    __syncthreads();
    ld_shared_{w}(d, shared(smem + threadIdx.x * {n}));
    st_global_{w}(y + i * {n}, d);
}}"""


def copy(size: int) -> str:
    """cp.async of `size` bytes per thread, then one that takes only threadIdx.x % (size + 1) of them and fills with zeros."""
    return f"""KERNEL t_cp_async_{size}(unsigned char* y, const unsigned char* x) {{
    __shared__ __align__(16) unsigned char smem[2 * 128 * {size}];
    const int i = threadIdx.x;
    for (int n = i; n < 2 * 128 * {size}; n += 128) smem[n] = 0xff;
    __syncthreads();
    cp_async_{size}(shared(smem + i * {size}), x + i * {size});
    commit_group();
    cp_async_{size}_fill(shared(smem + (128 + i) * {size}), x + i * {size}, i % {size + 1});
    commit_group();
    wait_group<0>();
    __syncthreads();
    for (int n = i; n < 2 * 128 * {size}; n += 128) y[n] = smem[n];
}}"""


FLOAT = ("exp2_approx", "log2_approx", "rcp_approx", "sqrt_approx", "rsqrt_approx", "sigmoid_approx", "sin_approx", "cos_approx", "tanh_approx",
         "round_f16", "round_bf16")
MOVES = [(tag, c, n) for tag, c in (("f32", "float"), ("b32", "uint32_t"), ("i32", "int")) for n in (1, 2, 4)]
MOVES += [(tag, c, n) for tag, c in (("f64", "double"), ("i64", "long long")) for n in (1, 2)]
SHUFFLES = {"f32": "float", "i32": "int", "i64": "long long", "f64": "double"}


def known(arch: str) -> list[Instr]:
    """The instructions that a target has."""
    return [i for i in INSTRS.values() if i.needs <= int(arch[3:].rstrip("a"))]


def kernels(arch: str) -> list[str]:
    out = [mma(i) for i in known(arch) if i.shape]
    out += [ldmatrix(i, int(i.name.split("_")[1][1:])) for i in known(arch) if i.name.startswith("ldmatrix")]
    out += [elementwise(n, "float", "float") for n in FLOAT] + [elementwise("div_approx", "float", "float", "float")]
    out += [elementwise(f"pack_{t}", "uint32_t", "float", "float") for t in ("f16", "bf16")]
    out += [elementwise(f"to_f32_{t}", "float", "unsigned short") for t in ("f16", "bf16")]
    out += [elementwise(n + t, c, c, c) for n in ("floor_div", "floor_mod") for t, c in (("", "int"), ("_i64", "long long"))]
    out += [elementwise(f"{n}_f16x2", "uint32_t", "uint32_t", "uint32_t") for n in ("add", "sub", "mul")]
    out += [elementwise("fma_f16x2", "uint32_t", "uint32_t", "uint32_t", "uint32_t"), elementwise("spread_bytes", "uint32_t", "uint32_t", "int")]
    out += [elementwise(f"shfl_xor_{t}", c, c, "int") for t, c in SHUFFLES.items()]
    out += [packed("at_f16", "float"), packed("at_bf16", "float"), packed("half_of", "unsigned short")]
    out += [move(*m) for m in MOVES] + [copy(s) for s in (16, 8, 4)] + [POSTS]
    return out


def source(arch: str) -> str:
    functions = "\n".join("\n".join(_function(i)) for i in known(arch))
    return HEAD + functions + "\n" + SMEM + "\n".join(kernels(arch)) + "\n"


def compiled(source: str, arch: str, name: str, options: tuple[str, ...] = NVRTC_OPTIONS, line_map: Any = None) -> nvrtc.Binary:
    """Compiled once for all processes that share the disk's cache."""
    def build() -> tuple[dict[str, bytes], dict[str, Any]]:
        made = nvrtc.compile_cuda(source, arch, name=name, options=options, line_map=line_map)
        return {"cubin": made.cubin, "log": made.log.encode()}, {}

    entry = cache.open_cache().get_or_build(cache.key_of("micro", source, arch, name, options, nvrtc_fingerprint()), build)
    return nvrtc.Binary(entry.files["cubin"], entry.files["log"].decode(), arch, name)


@functools.cache
def cubin(arch: str) -> bytes:
    return compiled(source(arch), arch, "micro").cubin


def launch(name: str, out: Any, *inputs: Any, threads: int = 128, blocks: int = 1) -> Any:
    """Run t_<name> on torch tensors; returns `out` as a NumPy array."""
    kernel = module.load(cubin(fc.gpu_target()), f"t_{name}", 0, 0)
    raw.launch(kernel, ("ptr",) * (1 + len(inputs)), [out, *inputs], blocks=blocks, threads=threads)
    return out.cpu().numpy()
