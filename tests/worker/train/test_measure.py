"""The machine's rates are measured quickly, and the model's shape is what PEFT sees."""

import time
from pathlib import Path

import torch

from tests import tiny
from tests.worker.train.conftest import open_job
from worker.prepare import shape
from worker.train import measure


def test_a_machine_is_measured_in_less_than_a_second() -> None:
    began = time.perf_counter()
    machine = measure.machine()
    assert time.perf_counter() - began < 5
    assert machine.flops["fp32"] > 1e8
    assert machine.bytes_per_second > 1e8
    assert 0 < machine.op_seconds < 1e-2
    assert machine.resident_bytes > 5e7
    assert machine.four_bits


def test_the_shape_counts_what_an_adapter_really_has(base: Path, tmp_path: Path) -> None:
    found = shape.of(base)
    assert found is not None
    for rank in (4, 8):
        _, model, _ = open_job(tiny.build_job(tmp_path / f"job{rank}", base, tiny.random_rows(4), lora={"rank": rank}))
        assert found.adapted(rank, "all-linear").parameters == model.trainable_parameters
    linears = [m for m in model.network.modules() if isinstance(m, torch.nn.Linear)]
    assert found.layers == 2
    assert linears
