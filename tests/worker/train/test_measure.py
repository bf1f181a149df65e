"""The machine's rates are measured quickly, and the model's shape is what PEFT sees."""

import time
from pathlib import Path

import torch
from transformers import BambaConfig, BambaForCausalLM

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


def test_models_that_carry_a_state_from_token_to_token_are_told_from_those_that_attend(
    base: Path, tmp_path: Path
) -> None:
    attends = shape.of(base)
    assert attends is not None
    assert attends.packs
    config = BambaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1,
        mamba_d_state=8, mamba_expand=2,
    )  # fmt: skip
    BambaForCausalLM(config).save_pretrained(tmp_path / "hybrid")
    hybrid = shape.of(tmp_path / "hybrid")
    assert hybrid is not None
    assert not hybrid.packs


def test_the_shape_counts_what_an_adapter_really_has(base: Path, tmp_path: Path) -> None:
    found = shape.of(base)
    assert found is not None
    for rank in (4, 8):
        _, model, _ = open_job(tiny.build_job(tmp_path / f"job{rank}", base, tiny.random_rows(4), lora={"rank": rank}))
        assert found.adapted(rank, "all-linear").parameters == model.trainable_parameters
    linears = [m for m in model.network.modules() if isinstance(m, torch.nn.Linear)]
    assert found.layers == 2
    assert linears
