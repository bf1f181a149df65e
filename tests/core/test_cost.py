"""The estimator's arithmetic: what must grow with what, and what must not matter."""

from pathlib import Path
from typing import Any

import pytest
import torch

from core import cost
from core.cost import Linear, Machine, Plan, Sample, Shape
from tests import tiny
from worker.train.batches import Batches, Rows

SHAPE = Shape(
    parameters=268_098_176,
    layers=18,
    hidden_size=640,
    vocab_size=262_144,
    attention_width=1024,
    key_width=256,
    feed_forward=2048,
    heads=4,
    window=512,
    windowed=15,
    linears=[
        Linear(name="q_proj", count=18, inputs=640, outputs=1024),
        Linear(name="k_proj", count=18, inputs=640, outputs=256),
        Linear(name="v_proj", count=18, inputs=640, outputs=256),
        Linear(name="o_proj", count=18, inputs=1024, outputs=640),
        Linear(name="gate_proj", count=18, inputs=640, outputs=2048),
        Linear(name="up_proj", count=18, inputs=640, outputs=2048),
        Linear(name="down_proj", count=18, inputs=2048, outputs=640),
    ],
)
MACHINE = Machine(flops={"fp32": 1.85e11}, bytes_per_second=6e10, op_seconds=8e-6, resident_bytes=376_000_000)
SAMPLE = Sample(rows=64, sizes=[(100 + 2 * n, 60) for n in range(64)], longest=(226, 60))
PLAN = Plan(
    rank=16,
    prompt_loss_weight=0.0,
    total_steps=16,
    steps_per_epoch=8,
    batch_size=8,
    micro_batch_size=1,
    max_length=512,
)


def of(**changes: object) -> cost.Cost:
    return cost.of(SHAPE, PLAN.model_copy(update=changes), SAMPLE, MACHINE)


@pytest.mark.parametrize(
    ("values", "parameters"),
    [
        ({"adapter": "full"}, SHAPE.parameters),
        ({"adapter": "layers", "layers": 9}, SHAPE.body // 2),
        ({"adapter": "lora", "rank": 16, "layers": 9}, 3_796_992 // 2),
        ({"adapter": "ia3"}, 18 * (2 * 256 + 2048)),
        ({"adapter": "prompt", "virtual_tokens": 20}, 20 * 640),
        ({"adapter": "prefix", "virtual_tokens": 20}, 20 * 18 * 2 * 256),
    ],
)
def test_what_each_adapter_trains_is_counted(values: dict[str, Any], parameters: int) -> None:
    assert cost.trained(SHAPE, PLAN.model_copy(update=values)).parameters == parameters


def test_all_weights_take_more_time_and_memory_than_an_adapter_and_four_bits_less_memory() -> None:
    lora, full, qlora = (
        cost.of(SHAPE, PLAN.model_copy(update={"adapter": adapter}), SAMPLE, MACHINE)
        for adapter in ("lora", "full", "qlora")
    )
    assert full.seconds > 1.2 * lora.seconds
    # Gradients and two moments of every weight.
    assert full.memory.total - lora.memory.total > 11 * SHAPE.parameters
    assert lora.memory.total - qlora.memory.total > 3 * SHAPE.body


def test_an_adapters_parameters_are_what_peft_makes() -> None:
    """PEFT counts 3,796,992 at rank 16 on all linear layers of this model."""
    assert SHAPE.adapted(16, "all-linear").parameters == 3_796_992
    assert SHAPE.adapted(16, ["q_proj", "v_proj"]).parameters == 18 * 16 * (640 + 1024 + 640 + 256)


def test_twice_the_steps_take_twice_as_long() -> None:
    one, two = of(total_steps=100), of(total_steps=200)
    assert two.seconds / one.seconds == pytest.approx(2, rel=0.02)
    assert two.memory == one.memory


def test_the_last_step_of_an_epoch_has_the_rows_that_are_left() -> None:
    """24 rows in batches of 16 are steps of 16 and of 8, and no epoch has more rows than there are."""
    sample = Sample(rows=24, sizes=[(100, 60)] * 24, longest=(100, 60))
    plans = [PLAN.model_copy(update=one) for one in ({"batch_size": 16, "steps_per_epoch": 2}, {"steps_per_epoch": 3})]
    steps = [cost.step(SHAPE, plan, sample, MACHINE)._replace(optimizer=0) for plan in plans]
    assert 2 * steps[0].seconds == pytest.approx(3 * steps[1].seconds)


def test_learning_the_prompts_costs_the_head_for_each_of_their_tokens() -> None:
    assert of(prompt_loss_weight=0.1).seconds > 1.15 * of().seconds


@pytest.mark.parametrize(("change", "part"), [({"rank": 64}, "adapter"), ({"micro_batch_size": 4}, "activations")])
def test_memory_grows_with_rank_and_with_rows_side_by_side(change: dict[str, int], part: str) -> None:
    assert getattr(of(**change).memory, part) == pytest.approx(4 * getattr(of().memory, part))


def test_packed_rows_cost_what_they_have_and_no_more_memory_than_fits_together() -> None:
    short = Sample(rows=64, sizes=[(40, 20)] * 64, longest=(40, 20))
    one, twelve = (
        PLAN.model_copy(update={"batch_size": 16, "micro_batch_size": micro, "packed": micro > 1}) for micro in (1, 12)
    )
    assert cost.of(SHAPE, twelve, short, MACHINE).seconds < 0.8 * cost.of(SHAPE, one, short, MACHINE).seconds
    beside, packed = (of(micro_batch_size=8, packed=packed) for packed in (False, True))
    assert packed.memory.activations == pytest.approx(512 / (8 * 226) * beside.memory.activations)
    alone = of(micro_batch_size=8, packed=True, max_length=4096)
    assert alone.memory == packed.memory


def test_packed_rows_are_reckoned_as_the_trainer_cuts_them(tmp_path: Path) -> None:
    lengths = [200, 10, 700, 300, 40, 250, 20, 5, 90]
    tiny.write_rows(tmp_path / "f", [([5] * n, [0] + [1] * (n - 1)) for n in lengths])
    batches = Batches(Rows.read(tmp_path / "f"), 0.1, 3, torch.device("cpu"), packed=True)
    cut = [[lengths[row] for row in batch.rows] for batch in batches.cut(range(len(lengths)))]
    plan = PLAN.model_copy(
        update={"micro_batch_size": 3, "packed": True, "max_length": 1024, "prompt_loss_weight": 0.1}
    )
    sample = Sample(rows=len(lengths), sizes=[(n, n - 1) for n in lengths], longest=(700, 699))
    (said,) = cost.batches(plan, sample, len(lengths))
    assert said == [cost.Micro.packed(rows, sum(rows) - len(rows)) for rows in cut]


def test_each_size_of_micro_batch_costs_its_kernels_once() -> None:
    compiling = MACHINE.model_copy(update={"kernel_bytes": 1_000_000})
    alike = Sample(rows=64, sizes=[(100, 60)] * 64, longest=(100, 60))
    for sample, sizes in ((alike, 1), (SAMPLE, len({cost.rounded(100 + 2 * n) for n in range(64)}))):
        said = [cost.of(SHAPE, PLAN, sample, machine).memory.program for machine in (MACHINE, compiling)]
        assert said[1] - said[0] == sizes * 1_000_000


def test_rows_beyond_a_sliding_window_keep_every_pair_of_tokens() -> None:
    def activations(length: int) -> float:
        return cost.memory(SHAPE, PLAN.model_copy(update={"max_length": 4096}), length, MACHINE).activations

    assert activations(512) == pytest.approx(2 * activations(256))
    assert activations(1024) > 2.2 * activations(512)


def test_checkpointing_trades_time_for_memory() -> None:
    plain, saving = of(micro_batch_size=8), of(micro_batch_size=8, gradient_checkpointing=True)
    assert saving.memory.activations < 0.2 * plain.memory.activations
    assert 1.1 < saving.step_seconds / plain.step_seconds < 1.5


def test_rows_that_are_cut_cost_what_is_left_of_them() -> None:
    cut = SAMPLE.cut(64)
    plan = PLAN.model_copy(update={"max_length": 64})
    assert cost.of(SHAPE, plan, cut, MACHINE).seconds < 0.7 * of().seconds


def test_a_batch_larger_than_the_file_is_the_file() -> None:
    few = Sample(rows=3, sizes=[(50, 20)] * 3, longest=(50, 20))
    plan = PLAN.model_copy(update={"batch_size": 64, "steps_per_epoch": 1})
    whole = PLAN.model_copy(update={"batch_size": 3, "steps_per_epoch": 1})
    assert cost.step(SHAPE, plan, few, MACHINE) == cost.step(SHAPE, whole, few, MACHINE)


def test_checkpoints_are_counted_as_the_trainer_writes_them() -> None:
    """Each epoch's end, and in between a tenth of the run or five minutes apart."""
    assert cost._saves(PLAN.model_copy(update={"total_steps": 100, "steps_per_epoch": 50}), 1.0) == 10
    assert cost._saves(PLAN.model_copy(update={"total_steps": 100, "steps_per_epoch": 5}), 1.0) == 20
    assert cost._saves(PLAN.model_copy(update={"total_steps": 4, "steps_per_epoch": 2}), 1.0) == 4
    assert cost._saves(PLAN.model_copy(update={"total_steps": 100, "steps_per_epoch": 100}), 150.0) == 50


def test_of_two_measurements_the_best_counts() -> None:
    disturbed = MACHINE.model_copy(update={"flops": {"fp32": 9e10}, "op_seconds": 7e-6})
    assert MACHINE.better(disturbed).flops == MACHINE.flops
    assert MACHINE.better(disturbed).op_seconds == 7e-6
    assert MACHINE.better(None) == MACHINE


def test_looking_for_a_learning_rate_costs_its_steps_whatever_the_length_of_the_run() -> None:
    more = of(finding=True).seconds - of().seconds
    assert more == pytest.approx(of(finding=True, total_steps=64).seconds - of(total_steps=64).seconds, rel=0.01)
    # 25 steps of four rows and as many looks at eight others: between 10 and 40 of this run's steps of eight.
    assert 10 * of().step_seconds < more < 40 * of().step_seconds
