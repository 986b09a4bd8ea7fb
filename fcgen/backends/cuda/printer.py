"""Machine IR -> CUDA C++: `print_cuda(kernel, target)`.

In: a machine-level kernel with one role, its buffers placed (`meta["smem_offsets"]`), its instructions chosen. Out: a
`CudaSource` whose text reads top to bottom (header, the device functions that are used, the kernel with one comment per spec
line), a map from its lines to the spec's, and the flat parameter list in order. The same kernel always gives the same text.
The printer decides no schedule: loops, buffers, slots and barriers are the kernel's ops, printed where they stand.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import Loc
from ...ir.core import Kernel, walk_kernel
from ...ir.kernel_rules import require
from ...ir.target import Instr, Target
from ...ir.types import Mbarrier, Scalar, Tensor
from . import channels, frag, memory, mma, roles, scan, smem, stores, wgmma, wmma  # noqa: F401  (they register how ops print)
from .emit import Emitter, memtype
from .names import STAND_IN, code_of, comment, identifier
from .roles import used_lines, words_of
from .text import CTYPES


@dataclass(frozen=True)
class ParamSpec:
    """One flat kernel parameter. kind: "ptr" (tensor `name`), "stride" (elements along `axis` of tensor `name`, 64 bits), "size"
    (dimension `name`, 32 bits), "scalar" (`name`), "map" (a tensor map of tensor `name`: `detail` is its box, outermost axis first, its
    swizzle, and the axis that has a limit, if one has) or "counter" (two zeroed numbers that belong to the launch). ctype: its C++ type."""

    kind: str
    name: str
    axis: int = -1
    ctype: str = ""
    detail: tuple[int, ...] = ()


@dataclass(frozen=True)
class CudaSource:
    """Generated text and what a launch needs to know about it."""

    text: str
    line_map: dict[int, Loc]
    params: tuple[ParamSpec, ...]
    smem_bytes: int
    threads: int
    name: str


def print_cuda(kernel: Kernel, target: Target) -> CudaSource:
    """The kernel as CUDA C++."""
    require(kernel, "synced", "the CUDA printer")
    written = {op.operands[0] for op in walk_kernel(kernel) if op.kind == "st_global"}
    written |= {p for p in kernel.params if "out" in kernel.flags.get(p.name, ())}
    if len(kernel.roles) > 1 or any(isinstance(b.type, Mbarrier) for b in kernel.buffers):
        em = roles.print_roles(kernel, target, written)
    else:
        em = Emitter(kernel, target)
        em.written |= written
        roles.print_body(em, kernel.body)
    return _assemble(em, _params(em))


def _params(em: Emitter) -> tuple[ParamSpec, ...]:
    out: list[ParamSpec] = []
    for p in em.kernel.params:
        if isinstance(p.type, Tensor):
            out.append(ParamSpec("ptr", p.name, -1, f"{'' if p in em.written else 'const '}{memtype(p)}*"))
            out += [ParamSpec("stride", p.name, a, "long long") for a in range(len(p.type.dims)) if (p, a) in em.strides]
    maps = [ParamSpec("map", tensor.name, -1, "TensorMap", detail) for tensor, detail in em.maps]
    if maps or em.counter:
        words = words_of(list(em.w.root.flat()))
        out = [p for p in out if p.kind != "ptr" or em.pname[em.kernel.param(p.name)] in words]
    out = [*maps, *out, *([ParamSpec("counter", "counter", -1, "int*")] if em.counter else [])]
    out += [ParamSpec("scalar", p.name, -1, CTYPES[p.type.dtype.name]) for p in em.kernel.params if isinstance(p.type, Scalar)]
    dims = em.kernel.dims
    out += [ParamSpec("size", d, -1, "int") for d in [*dims, *(s for s in em.sizes if s not in dims)] if d in em.sizes]
    return tuple(out)


def _c_param(em: Emitter, p: ParamSpec) -> str:
    if p.kind == "size":
        return f"int {em.size_names[p.name]}"
    if p.kind == "counter":
        return "int* counter"
    if p.kind == "map":
        return f"const __grid_constant__ TensorMap {em.maps[em.kernel.param(p.name), p.detail]}"
    value = em.kernel.param(p.name)
    if p.kind == "ptr":
        return f"{p.ctype} __restrict__ {em.pname[value]}"
    return f"{p.ctype} {em.strides[value, p.axis] if p.kind == 'stride' else em.pname[value]}"


def _header(em: Emitter) -> list[str]:
    k, meta = em.kernel, em.kernel.meta
    out = [f"{k.name}: generated for {em.target.arch}"]
    if meta.get("schedule"):
        out.append(f"schedule: {meta['schedule']}")
    roles = ", ".join(f"{r.name} {r.warps} warps of {r.regs} registers" for r in k.roles) if len(k.roles) > 1 else ""
    out.append(f"block:    {k.warps} warps, {k.warps * 32} threads{': ' if roles else ''}{roles}")
    for a in k.grid:
        tile = f" in tiles of {a.tile}" if a.tile != 1 else ""
        cluster = f", {a.cluster} to a cluster" if a.cluster != 1 else ""
        out.append(f"grid:     {a.name} over {a.dim}{tile}{cluster}{', last first' if a.reverse else ''}")
    if k.buffers:
        out.append(f"shared:   {meta.get('smem_bytes', 0)} bytes")
    return [comment(t) for t in out]


def _offsets(em: Emitter, words: set[str]) -> list[str]:
    """Where buffers and barriers lie, from the first byte on."""
    out = []
    for b, at in sorted(zip(em.kernel.buffers, em.kernel.meta.get("smem_offsets", ())), key=lambda x: x[1]):
        if em.offset(b) in words:
            out.append(f"constexpr uint32_t {em.offset(b)} = {at};  {comment(str(b.type).removeprefix('smem '))}")
    return ["// Bytes from the start of shared memory.", *out, ""] if out else []


def _function(rec: Instr) -> list[str]:
    signature, template = rec.signature, []
    if signature.startswith("<"):
        inner, _, signature = signature[1:].partition(">")
        template = [f"template <{inner}>"]
    first, *more = rec.body.split("\n")
    return [f"// {rec.doc}", *template, f"__device__ __forceinline__ {rec.returns} {rec.name}({signature.strip()}) {{", f"    {first}",
            *(t if t.startswith("    ") else f"    {t}" for t in more), "}", ""]


def _assemble(em: Emitter, params: tuple[ParamSpec, ...]) -> CudaSource:
    k, meta = em.kernel, em.kernel.meta
    threads = k.warps * 32
    symbol = f"{identifier(k.name, 'kernel').rstrip('_')}_{em.target.arch}"  # no function of CUDA's headers is called so
    body = used_lines(em)
    words = words_of(body)
    types = "".join(r.signature + r.returns for r in em.used.values())
    before = [f"#include <{h}>" for h in em.headers] + (["using namespace nvcuda;", ""] if em.headers else [])
    before += [f"#define {w} __int_as_float({bits})" for w, bits in (("INF", "0x7f800000"), ("NAN", "0x7fffffff")) if w in words]
    for name, is_used in (("uint16_t = unsigned short", "uint16_t" in types), ("uint32_t = unsigned int", True),
                          ("uint64_t = unsigned long long", "uint64_t" in words or "uint64_t" in types)):
        before += [f"using {name};"] if is_used else []
    if em.maps:
        before.append("struct __align__(64) TensorMap { unsigned char bytes[128]; };  // made by cuTensorMapEncodeTiled")
    for name, bits in sorted({(p.type.dtype.name, p.type.dtype.bits) for p in k.params if p.type.dtype.per_register > 1}):
        before.append(f"using {name} = unsigned {'short' if bits == 16 else 'char'};  // its bits")
    before += [wgmma.BESIDE] if "BESIDE" in words else []
    helpers = [t for h in em.helpers.values() for t in h.split("\n")]
    if helpers:
        helpers = ["// Register i of a tile -> the register, or the offset, that goes with it.", *helpers, ""]
    helpers = [*_offsets(em, words), *helpers]
    cluster = f"__cluster_dims__({k.cluster}, 1, 1) " if k.cluster > 1 else ""
    bounds = f'extern "C" __global__ void {cluster}__launch_bounds__({threads}, {meta.get("min_blocks", 1) or 1})'
    args = [_c_param(em, p) for p in params]
    shared = ["    extern __shared__ __align__(1024) unsigned char smem[];"] if words & {"smem", "smem_base"} else []
    code = "\n".join(code_of(t) for t in [*before, *helpers, bounds, *args, *shared, *(t for _, t, _ in body)])
    names = em.names.settle(code, [symbol, *em.used])

    def named(text: str) -> str:
        return STAND_IN.sub(lambda m: names[m[0]], text)

    lines: list[tuple[str, Loc | None]] = [(t, None) for t in [*_header(em), "", *before, ""]]
    lines += [(t, None) for rec in em.used.values() for t in _function(rec)]
    lines += [(named(t), None) for t in [*helpers, bounds, *_wrapped(f"{symbol}(", list(map(named, args))), *shared]]
    lines += [(f"{'    ' * indent}{named(t)}" if t else "", loc) for indent, t, loc in body]
    lines.append(("}", None))
    line_map = {n: loc for n, (_, loc) in enumerate(lines, 1) if loc is not None}
    return CudaSource("\n".join(t for t, _ in lines) + "\n", line_map, params, meta.get("smem_bytes", 0), threads, symbol)


def _wrapped(head: str, args: list[str], width: int = 120) -> list[str]:
    """A function's head on lines of that width."""
    out = [head]
    for piece in [*(f"{a}, " for a in args[:-1]), f"{args[-1] if args else ''}) {{"]:
        if len(out[-1]) + len(piece) > width:
            out.append(" " * 8)
        out[-1] += piece
    return [line.rstrip() for line in out]
