"""A process that has imported and collected one project's tests once, and forks the processes that run them.

A process that has touched CUDA cannot be forked. So what the tests' modules ask of the GPU while they are imported is answered from facts
that `nvidia-smi` gave, on the CPU's memory; each forked process then has a GPU of its own choice. Orders come as lines on stdin; its end
ends all.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TICK = 0.1


@contextlib.contextmanager
def collecting(facts: dict[str, Any]) -> Iterator[None]:
    """torch has a GPU with these facts (name, capability, memory, cudnn), and tensors that are made on it lie in the CPU's memory."""
    import torch
    import torch._dynamo.device_interface  # keeps what torch.cuda holds when it is imported
    from torch.overrides import TorchFunctionMode

    major, minor = facts["capability"]
    properties = SimpleNamespace(name=facts["name"], major=major, minor=minor, total_memory=facts["memory"], multi_processor_count=132,
                                 gcnArchName="", warp_size=32, max_threads_per_multi_processor=2048,
                                 shared_memory_per_block_optin=227 << 10)
    fake: list[tuple[Any, str, Any]] = [
        *((torch.cuda, name, lambda *_, _x=x, **__: _x) for name, x in (
            ("is_available", True), ("device_count", 1), ("current_device", 0), ("get_device_capability", (major, minor)),
            ("get_device_name", facts["name"]), ("get_device_properties", properties), ("synchronize", None), ("is_bf16_supported", True))),
        (torch.backends.cudnn, "is_acceptable", lambda *_: True), (torch.backends.cudnn, "version", lambda: facts.get("cudnn") or 90000)]
    on_gpu = lambda x: (isinstance(x, str) and x.split(":")[0] == "cuda") or (isinstance(x, torch.device) and x.type == "cuda")

    class ToCpu(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.cuda:
                return args[0]
            return func(*("cpu" if on_gpu(a) else a for a in args), **{k: "cpu" if on_gpu(x) else x for k, x in (kwargs or {}).items()})

    real = [(owner, name, getattr(owner, name)) for owner, name, _ in fake]
    for owner, name, x in fake:
        setattr(owner, name, x)
    try:
        with ToCpu():
            yield
    finally:
        for owner, name, x in real:
            setattr(owner, name, x)


def touched() -> bool:
    """Has this process begun to use CUDA's driver?"""
    if "libcuda.so" not in Path("/proc/self/maps").read_text("utf-8"):
        return False
    count = ctypes.c_int()
    return bool(ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count)) == 0)


def serve(say: Callable[..., None], folder: Path, run: Callable[[dict[str, Any]], None]) -> None:
    """Forks a process for every line of stdin, whose order `run` then carries out. say: told which have ended, and how."""
    children: dict[int, int] = {}
    waiting = b""
    while True:
        if select.select([0], [], [], TICK)[0]:
            more = os.read(0, 1 << 16)
            if not more:
                break
            *lines, waiting = (waiting + more).split(b"\n")
            for line in lines:
                order = json.loads(line)
                if (pid := os.fork()) == 0:
                    _child(folder, order, run)
                children[pid] = order["number"]
        for pid, number in list(children.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del children[pid]
                say(ended=number, code=os.waitstatus_to_exitcode(status))
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _child(folder: Path, order: dict[str, Any], run: Callable[[dict[str, Any]], None]) -> None:
    """Never returns."""
    code = 1
    try:
        out = os.open(folder / f"{order['number']}.out", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ["CUDA_VISIBLE_DEVICES"] = str(order["gpu"])
        run(order)
        code = 0
    except BaseException:  # whatever it was, this process ends here, and its parent's work is not its own
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
