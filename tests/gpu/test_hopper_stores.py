"""Bulk stores against the hardware: matrix stores are what their records say, copies of every rank write what they should and nothing else."""

import functools
from dataclasses import replace

import numpy as np
import pytest

import fcgen as fc
from benchmarks.schedule_pairs import row_softmax
from fcgen.backends.cuda.printer import _function
from fcgen.backends.targets.hopper import INSTRS
from fcgen.runtime import module
from tests.kernels.test_stores import ATTENTION, PERSISTENT, compiled, flipped, inputs, repeated, split_product

from . import raw
from .micro import HEAD, SMEM
from .micro import compiled as compiled_once

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU")]

MATRIX = [f"stmatrix_x{n}{t}" for n in (1, 2, 4) for t in ("", "_trans")]
TORCH = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def matrix_store(name):
    count = int(name.split("_")[1][1:])
    return f"""KERNEL t_{name}(unsigned short* y, const uint32_t* v) {{
    __shared__ __align__(16) unsigned short smem[{count} * 64];
    const int l = threadIdx.x;
    uint32_t regs[{count}];
    for (int n = 0; n < {count}; ++n) regs[n] = v[l * {count} + n];
    {name}(shared(smem + (l / 8 % {count}) * 64 + l % 8 * 8), regs);
    __syncthreads();
    for (int n = l; n < {count} * 64; n += 32) y[n] = smem[n];
}}"""


def adder(name, ctype):
    return f"KERNEL t_{name}({ctype}* y, const {ctype}* x) {{ {name}(y, x[threadIdx.x]); }}"


@functools.cache
def cubin():
    adds = {"red_add_bf16": "unsigned short", "red_add_bf16x2": "uint32_t"}
    functions = "\n".join("\n".join(_function(INSTRS[n])) for n in (*MATRIX, *adds))
    kernels = [matrix_store(n) for n in MATRIX] + [adder(n, c) for n, c in adds.items()]
    return compiled_once(HEAD + functions + "\n" + SMEM + "\n".join(kernels) + "\n", "sm_90a", "stores").cubin


def launch(name, out, given):
    kernel = module.load(cubin(), f"t_{name}", 0, 0)
    raw.launch(kernel, ("ptr", "ptr"), [out, given], threads=32)  # the parameters are its own
    return out


@pytest.mark.parametrize("name", MATRIX)
def test_matrix_stores(name):
    count = int(name.split("_")[1][1:])
    regs = np.random.default_rng(0).permutation(count * 64).astype(np.int16).reshape(32, 2 * count)
    got = launch(name, torch.empty((count, 8, 8), dtype=torch.int16, device="cuda"), torch.from_numpy(regs).cuda())
    np.testing.assert_array_equal(got.cpu().numpy(), INSTRS[name].effect(regs))


@pytest.mark.parametrize("name", ["red_add_bf16", "red_add_bf16x2"])
def test_bfloat16_is_added_atomically(name):
    n = 2 if name.endswith("x2") else 1
    got = launch(name, torch.zeros(n, dtype=torch.bfloat16, device="cuda"), torch.ones((32, n), dtype=torch.bfloat16, device="cuda"))
    assert got.tolist() == [32.0] * n


# ---- copies of every rank ------------------------------------------------------------------------------------------------


@fc.kernel
def copy2(X: "T[M, N]", Y: "out T[M, N]"):
    rows, cols = fc.grid(fc.tile(X.M, "BLOCK_M"), fc.tile(X.N, "BLOCK_N"))
    fc.store(Y[rows, cols], fc.load(X[rows, cols]))


@fc.kernel
def copy3(X: "T[A, M, N]", Y: "out T[A, M, N]"):
    a, rows, cols = fc.grid(X.A, fc.tile(X.M, "BLOCK_M"), fc.tile(X.N, "BLOCK_N"))
    fc.store(Y[a, rows, cols], fc.load(X[a, rows, cols]))


@fc.kernel
def copy4(X: "T[A, M, B, N]", Y: "out T[A, M, B, N]"):
    a, b, rows, cols = fc.grid(X.A, X.B, fc.tile(X.M, "BLOCK_M"), fc.tile(X.N, "BLOCK_N"))
    fc.store(Y[a, rows, b, cols], fc.load(X[a, rows, b, cols]))


@fc.kernel
def copy5(X: "T[A, B, C, M, N]", Y: "out T[A, B, C, M, N]"):
    a, b, c, rows, cols = fc.grid(X.A, X.B, X.C, fc.tile(X.M, "BLOCK_M"), fc.tile(X.N, "BLOCK_N"))
    fc.store(Y[a, b, c, rows, cols], fc.load(X[a, b, c, rows, cols]))


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("spec, shape", [(copy2, (100, 72)), (copy3, (3, 100, 72)), (copy4, (2, 100, 3, 72)), (copy5, (2, 1, 3, 100, 72))],
                         ids=lambda x: getattr(x, "__name__", None))
def test_copies_stop_at_the_end_of_every_axis(spec, shape, dtype):
    """The output lies in a larger tensor: nothing around it is touched."""
    schedule = fc.Schedule(tiles={"BLOCK_M": 64, "BLOCK_N": 32}, warps=4, epilogue="tma")
    program = spec.compile(target="sm_90a", schedule=schedule, T=getattr(fc, dtype))
    assert "tma_store" in str(program.machine)
    x = torch.randn(shape, device="cuda").to(TORCH[dtype])
    around = torch.full((*shape[:-2], shape[-2] + 8, shape[-1] + 8), 7.0, device="cuda").to(TORCH[dtype])
    y = around[..., :shape[-2], :shape[-1]]
    program(X=x, Y=y)
    torch.cuda.synchronize()
    assert torch.equal(y, x)
    assert bool((around[..., shape[-2]:, :] == 7).all()) and bool((around[..., shape[-1]:] == 7).all())


# ---- whole kernels -------------------------------------------------------------------------------------------------------


def on_gpu(program, arguments, output, dtype):
    given = {k: torch.from_numpy(v).cuda().to(TORCH[dtype]) for k, v in arguments.items()}
    program(**given, C=output)
    torch.cuda.synchronize()
    return given


@pytest.mark.parametrize("persistent", PERSISTENT)
@pytest.mark.parametrize("dtype, out", [("f16", "f16"), ("bf16", "bf16"), ("f16", "f32")])
def test_products(persistent, dtype, out):
    program = compiled(dtype=getattr(fc, dtype), out=getattr(fc, out), persistent=persistent, n=128)
    for m, n, k in [(3000, 1000, 520), (1, 8, 64), (130, 264, 2000)]:
        c = torch.full((m, n), float("nan"), device="cuda").to(TORCH[out])
        g = on_gpu(program, inputs(m, n, k), c, dtype)
        want = g["A"].double() @ g["B"].double().T
        assert (c.double() - want).abs().max().item() <= (1e-5 if out == "f32" else 1e-2) * max(1.0, want.abs().max().item())


@pytest.mark.parametrize("spec", [flipped, repeated], ids=lambda s: s.__name__)
def test_other_ways_to_store(spec):
    m, n = 520, 328
    c = torch.full((n, m) if spec is flipped else (m, n), float("nan"), device="cuda", dtype=torch.float16)
    g = on_gpu(compiled(spec, persistent="static"), inputs(m, n, 328), c, "f16")
    want = g["A"].double() @ g["B"].double().T
    assert ((c.T if spec is flipped else c).double() - want).abs().max().item() <= 1e-2 * want.abs().max().item()


@pytest.mark.parametrize("epilogue", ["tma", "direct"])
@pytest.mark.parametrize("out, limit", [("f32", 1e-5), ("f16", 2e-2), ("bf16", 5e-2)])
def test_programs_add_to_one_tensor(epilogue, out, limit):
    c = torch.ones((520, 328), device="cuda").to(TORCH[out])
    g = on_gpu(compiled(split_product, out=getattr(fc, out), epilogue=epilogue), inputs(520, 328, 136, p=5), c, "f16")
    want = 1 + torch.einsum("pmk,pnk->mn", g["A"].double(), g["B"].double())
    assert (c.double() - want).abs().max().item() <= limit * want.abs().max().item()


@pytest.mark.parametrize("persistent", PERSISTENT)
def test_attention_with_many_tiles_per_block(persistent):
    s = replace(ATTENTION, tiles={"BLOCK_M": 128, "BLOCK_N": 64}, persistent=persistent)
    q, k, v = (torch.randn((4, 8, 1000, 64), device="cuda", dtype=torch.float16) for _ in range(3))
    got = [fc.attention(q, k, v, causal=True, schedule=s) for _ in range(3)]
    want = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)
    assert all(torch.equal(got[0], x) for x in got[1:]) and (got[0].double() - want).abs().max().item() < 5e-3


@pytest.mark.parametrize("bm, d", [(4, 64), (2, 256), (8, 64)])
def test_few_rows_are_stored_in_bulk(bm, d):
    """Rows that are no whole periods of a swizzle are staged without one, in boxes on 128 bytes."""
    program = row_softmax.compile(target="sm_90a", schedule=fc.Schedule(tiles={"BM": bm}, epilogue="tma"), T=fc.f16, D=d)
    x = torch.randn(4 * bm + 1, d, device="cuda", dtype=torch.float16)
    y = torch.full_like(x, float("nan"))
    program(x, y)
    assert (y.double() - torch.softmax(x.double(), -1)).abs().max().item() < 1e-3
