"""torch.compile around `fcgen.attention`: one graph for all lengths, whatever was called or compiled before."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pretend import number
from test_refused_tensors import fake, tensor  # noqa: F401

import fcgen
from fcgen.errors import FcError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graphs():
    """(backend that keeps graphs, the graphs)"""
    made = []

    def backend(graph, inputs):
        made.append(graph)
        return graph

    return backend, made


@pytest.mark.parametrize(("warm", "options"), [(0, {}), (20, {"causal": True}), (1, {"causal": "bottom_right", "return_lse": True, "scale": 2})])
def test_one_graph_for_all_lengths(fake, warm, options):  # noqa: F811
    for _ in range(warm):
        fcgen.attention(tensor(), tensor(), tensor())
    backend, made = graphs()

    @torch.compile(backend=backend, fullgraph=True)
    def block(q, k, v):
        x = fcgen.attention(q * 2, k, v, **options)
        return x[0] + 1 if options.get("return_lse") else x + 1

    launched = len(fake.launches)
    for n in (64, 65, 300):
        assert block(*(tensor(2, 4, n, 64) for _ in range(3))).shape == (2, 4, n, 64)
    assert len(fake.launches) == launched + 3 and len(made) == 2, "one for the first length, one for all others"
    assert "fcgen.attention" in str(made[0].code)


@pytest.mark.parametrize("return_lse", [False, True])
def test_out_is_written_in_a_graph(fake, return_lse):  # noqa: F811
    def block(q, k, v, out):
        fcgen.attention(q, k, v, out=out, return_lse=return_lse)
        return out + 1

    torch.compile(block, backend="aot_eager", fullgraph=True)(*(tensor() for _ in range(4)))
    fake.launches.clear()
    out = tensor()
    torch.compile(block, backend="eager", fullgraph=True)(tensor(), tensor(), tensor(), out)
    assert number(fake.launches[0][-1][12], "Q") == out.data_ptr() and len(fake.launches) == 1


COLD = """
from fcgen import attention
import torch
graphs = []
block = torch.compile(lambda q: attention(q, q, q) + 1, fullgraph=True, backend=lambda graph, inputs: graphs.append(str(graph.code)) or graph)
try:
    block(torch.zeros(1, 2, 64, 64, dtype=torch.float16))
except Exception as error:
    assert "`q` is on the CPU" in str(error), error
assert len(graphs) == 1 and "fcgen.attention" in graphs[0], graphs
"""


def test_torch_may_be_imported_last():
    subprocess.run([sys.executable, "-W", "ignore", "-c", COLD], check=True)


def test_aot_and_inductors_rules_of_the_operators_hold(fake):  # noqa: F811
    from fcgen.attend import torch_op

    for (_, given), op in torch_op._OPS.items():
        args = (*(tensor() for _ in range(3)), *([tensor()] if given else []), "none", None)
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))


def test_what_an_operator_cannot_say_breaks_the_graph_and_works(fake):  # noqa: F811
    schedule = fcgen.Schedule(warps=8)
    block = torch.compile(lambda q, k, v: fcgen.attention(q + 1, k, v, schedule=schedule) + 1, backend="eager")
    block(tensor(), tensor(), tensor())
    assert len(fake.launches) == 1


def test_gradients_flow_beside_a_graph(fake):  # noqa: F811
    block = torch.compile(lambda q, k, v: fcgen.attention(q, k, v) + 1, backend="aot_eager")
    assert block(tensor(requires_grad=True), tensor(), tensor()).requires_grad
    with torch.no_grad():
        block(tensor(requires_grad=True), tensor(), tensor())
    assert len(fake.launches) == 2


def test_bad_arguments_are_refused_as_outside(fake):  # noqa: F811
    block = torch.compile(lambda q, k, v: fcgen.attention(q, k, v, causal=1), backend="eager")
    with pytest.raises(FcError, match="no such mask"):
        block(tensor(), tensor(), tensor())
    assert not fake.launches
