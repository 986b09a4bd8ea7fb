"""Launches whose streams come and go, run beside each other, are recorded into graphs, or come from threads and forked processes."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading

import pytest

from fcgen import attention
from fcgen.kernels import hopper_schedules
from fcgen.runtime import driver

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
SHAPE = (1, 6, 1500, 64)  # several tiles for each block, some for few


def schedules():
    """Kernels whose blocks claim tiles, launched early and not; None is the library's choice."""
    import dataclasses

    if torch.cuda.get_device_capability() != (9, 0):
        return [None]
    claims = next(row.schedule for row in hopper_schedules.ROWS if row.masks == "causal" and row.head == 64)
    return [dataclasses.replace(claims, pdl=pdl) for pdl in (False, True)]


@functools.cache
def problems():
    """(q, k, v, their attention), three times"""
    made = []
    for n in range(3):
        torch.manual_seed(n)
        q, k, v = (torch.randn(SHAPE, device="cuda", dtype=torch.float16) for _ in range(3))
        want = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
        made.append((q, k, v, want))
    torch.cuda.synchronize()
    return made


def wrong(outs):
    torch.cuda.synchronize()
    return sum((o.float() - want).abs().max().item() > 0.01 or not o.isfinite().all().item() for o, (*_, want) in zip(outs, problems()))


class Streams:
    """Streams that are destroyed as soon as their work has been given to them: their handles come back."""

    def __init__(self, count):
        self.cu = driver.require()
        self.handles = [driver.check(self.cu.cuStreamCreate(1), "a stream") for _ in range(count)]

    def __enter__(self):
        return [torch.cuda.ExternalStream(int(h)) for h in self.handles]

    def destroy(self, n):
        driver.check(self.cu.cuStreamDestroy(self.handles[n]), "its end")

    def __exit__(self, *error):
        pass


@pytest.mark.parametrize("number", range(2))
def test_each_stream_is_destroyed_after_its_launch(number):
    schedule = schedules()[number % len(schedules())]
    outs = [torch.full(SHAPE, float("nan"), device="cuda", dtype=torch.float16) for _ in problems()]
    torch.cuda.synchronize()
    bad, handles = 0, set()
    for _ in range(40):
        for o in outs:
            o.fill_(float("nan"))
        torch.cuda.synchronize()
        for o, (q, k, v, _) in zip(outs, problems()):
            streams = Streams(1)
            handles |= set(map(int, streams.handles))
            with streams as (stream,), torch.cuda.stream(stream):
                torch.cuda._sleep(20000)  # they begin together
                attention(q, k, v, causal=True, schedule=schedule, out=o)
            streams.destroy(0)
        bad += wrong(outs)
    assert bad == 0 and len(handles) < 120, "handles came back"


@pytest.mark.parametrize("number", range(2))
def test_graphs_run_beside_each_other_and_beside_calls(number):
    schedule = schedules()[number % len(schedules())]
    outs = [torch.empty(SHAPE, device="cuda", dtype=torch.float16) for _ in problems()]
    side, graphs = [torch.cuda.Stream() for _ in problems()], []
    for o, (q, k, v, _) in zip(outs[:2], problems()):
        attention(q, k, v, causal=True, schedule=schedule, out=o)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side[0]):
            attention(q, k, v, causal=True, schedule=schedule, out=o)
            attention(q, k, v, causal=True, schedule=schedule, out=o)
        graphs.append(graph)
    bad = 0
    for _ in range(20):
        for o in outs:
            o.fill_(float("nan"))
        torch.cuda.synchronize()
        for graph, stream in zip(graphs, side):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(20000)
                graph.replay()
        with torch.cuda.stream(side[2]):
            torch.cuda._sleep(20000)
            q, k, v, _ = problems()[2]
            attention(q, k, v, causal=True, schedule=schedule, out=outs[2])
        bad += wrong(outs)
    assert bad == 0


@pytest.mark.parametrize("stream", ["per thread", "own"])
def test_threads_with_streams_of_their_own(stream):
    schedule = schedules()[-1]
    outs = [torch.full(SHAPE, float("nan"), device="cuda", dtype=torch.float16) for _ in problems()]
    torch.cuda.synchronize()
    failures = []

    def work(n):
        try:
            q, k, v, _ = problems()[n]
            mine = torch.cuda.ExternalStream(2) if stream == "per thread" else torch.cuda.Stream()
            for _ in range(30):
                with torch.cuda.stream(mine):
                    attention(q, k, v, causal=True, schedule=schedule, out=outs[n])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures and wrong(outs) == 0


FORK = """
import os, sys
import fcgen
assert fcgen.gpu_available()
if pid := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
import torch
x = torch.ones(1, 2, 64, 64, device="cuda", dtype=torch.float16)
os._exit(0 if (fcgen.attention(x, x, x) == 1).all().item() else 3)
"""


def test_a_process_that_asked_for_a_gpu_can_be_forked():
    assert torch.cuda.get_device_properties(0)  # a real one
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=120)


def test_a_compiled_function_around_attention_agrees_with_the_call():
    import fcgen

    @torch.compile(fullgraph=True)
    def block(q, k, v):
        return fcgen.attention(q * 2, k, v, causal=True) + 1

    for n in (128, 192, 200, 333):
        q, k, v = (torch.randn(1, 2, n, 64, device="cuda", dtype=torch.float16) for _ in range(3))
        assert torch.allclose(block(q, k, v), attention(q * 2, k, v, causal=True) + 1, atol=2e-3)


def test_every_length_of_a_decode_loop_is_right():
    cache = [torch.randn(1, 2, 400, 64, device="cuda", dtype=torch.float16) for _ in range(2)]
    q = torch.randn(1, 4, 1, 64, device="cuda", dtype=torch.float16)
    for n in (*range(1, 60), 399, 400, 64, 64, 64):
        k, v = (x[:, :, :n] for x in cache)
        o = attention(q, k, v, causal="bottom_right")
        want = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), enable_gqa=True)
        assert (o.float() - want).abs().max() < 4e-3, n
