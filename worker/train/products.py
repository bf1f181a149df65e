"""Which library multiplies float32 matrices on a processor. It changes the last digit of a number, never its precision.

torch asks MKL, which keeps its AVX-512 kernels to Intel's own processors: on AMD's, oneDNN is more than twice as fast.
torch asks oneDNN only where a product may be computed in less than float32 ("medium" precision), which oneDNN does on
processors with AMX; on the others it has no such kernel and float32 stays float32. That is looked at, not believed.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from core.cost import rounded

KERNEL_BYTES = 20_000_000
"""What the kernels for one size of micro-batches take: some thirty products of a layer and its adapters."""
_ODD = 48, 333, 77
"""Rows, depth and columns of the product that is looked at: no whole number of tiles."""


@contextmanager
def quick() -> Iterator[None]:
    """Products inside go to the quicker library, where there is one."""
    before = torch.get_float32_matmul_precision()
    if onednn():
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def onednn() -> bool:
    """Whether :func:`quick` makes a difference on this machine."""
    info = Path("/proc/cpuinfo")
    known = set(info.read_text().split()) if info.exists() else set()
    wanted = {"AuthenticAMD", "avx512f"} <= known and not any(flag.startswith("amx") for flag in known)
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return wanted and bool(built) and not torch.cuda.is_available() and _exact()


def _exact() -> bool:
    """Whether oneDNN's products are float32's: in bfloat16 they would be off by thousands of times as much."""
    rows, depth, columns = _ODD
    # Not torch's own generator, whose numbers belong to a job's seed.
    dice = torch.Generator().manual_seed(0)
    a, b = torch.randn(rows, depth, generator=dice), torch.randn(depth, columns, generator=dice)
    right, before = a.double() @ b.double(), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        off = ((a @ b).double() - right).norm() / right.norm()
    finally:
        torch.set_float32_matmul_precision(before)
    return bool(off < 1e-6)


def padded(tokens: int) -> int:
    """How many rows a matrix should have rather. oneDNN compiles a kernel for each size that it meets, which costs a
    millisecond and most of a megabyte, so there are few."""
    return tokens if torch.get_float32_matmul_precision() == "highest" else rounded(tokens)
