"""What this machine can do, measured in less than a second: the rates ``core.cost`` reckons with."""

import importlib.util
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from core.cost import Machine
from core.options import Precision
from worker.train import products
from worker.train.load import DTYPES, device

_TOKENS, _INPUTS, _OUTPUTS = 256, 640, 2048
"""Of a matrix product as layers have them: rows of a few hundred tokens, a width of some hundred channels."""
_STREAMED = 128 * 1024 * 1024
_SECONDS = 0.1
_HALF = {"avx512_fp16", "amx_fp16", "asimdhp"}
"""A processor's flags that tell of float16: x86's and ARM's."""


def machine() -> Machine:
    where = device()
    resident = _resident(where)
    flops: dict[Precision, float] = {"fp32": _flops(where, "fp32")}
    if where.type == "cuda":
        flops["bf16"] = _flops(where, "bf16")
    if _half(where):
        flops["fp16"] = _flops(where, "fp16")
    return Machine(
        flops=flops,
        bytes_per_second=_bandwidth(where),
        op_seconds=_operation(where),
        resident_bytes=resident,
        kernel_bytes=products.KERNEL_BYTES if products.onednn() else 0,
        four_bits=_four_bits(where),
    )


def _four_bits(where: torch.device) -> bool:
    """Whether bitsandbytes is there and has kernels for the device; to load it would cost memory that is measured."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return False
    return where.type == "cpu" or (where.type == "cuda" and torch.cuda.get_device_capability(where) >= (6, 0))


def _half(where: torch.device) -> bool:
    """Whether the device has instructions for float16; a processor without them takes many times as long in it."""
    if where.type == "cuda":
        return True
    info = Path("/proc/cpuinfo")
    return info.exists() and not _HALF.isdisjoint(info.read_text().split())


def _flops(where: torch.device, precision: Precision) -> float:
    left = torch.randn(_TOKENS, _INPUTS, device=where).to(DTYPES[precision])
    right = torch.randn(_OUTPUTS, _INPUTS, device=where).to(DTYPES[precision])
    out = torch.empty(_TOKENS, _OUTPUTS, device=where, dtype=DTYPES[precision])
    with products.quick():
        seconds = _best(where, lambda: torch.mm(left, right.t(), out=out))
    return 2 * _TOKENS * _INPUTS * _OUTPUTS / seconds


def _bandwidth(where: torch.device) -> float:
    """Over more than a cache holds, in memory that is given back: the allocator of a trainer would keep it."""
    if where.type == "cuda":
        return _pass(where, torch.ones(_STREAMED // 4, device=where))
    with mmap.mmap(-1, _STREAMED) as room:
        numbers = torch.frombuffer(room, dtype=torch.float32)
        rate = _pass(where, numbers)
        del numbers
    return rate


def _pass(where: torch.device, numbers: Tensor) -> float:
    seconds = _best(where, lambda: numbers.mul_(1.0))
    return 2 * _STREAMED / seconds


def _operation(where: torch.device) -> float:
    some = torch.ones(4, 64, device=where, requires_grad=True)

    def chain() -> None:
        value: Tensor = some
        for _ in range(50):
            value = value * 1.0
        value.sum().backward()  # type: ignore[no-untyped-call]

    return _best(where, chain) / 50


def _best(where: torch.device, work: Callable[[], object]) -> float:
    """Seconds of the quickest run: whatever disturbs makes a run longer, nothing makes it shorter."""
    work()
    best, deadline = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < deadline:
        _settle(where)
        began = time.perf_counter()
        work()
        _settle(where)
        best = min(best, time.perf_counter() - began)
    return best


def _settle(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def _resident(where: torch.device) -> int:
    if where.type == "cuda":
        free, total = torch.cuda.mem_get_info(where)
        return total - free
    # Not getrusage's ru_maxrss: that begins at what the parent had when it forked.
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
