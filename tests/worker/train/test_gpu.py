"""On a CUDA device: half precisions are near float32, packed rows keep apart, runs end the same. Not run in CI."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.worker.train.conftest import Ran, again
from tests.worker.train.test_fp16 import NEAR, gradients, model_of
from tests.worker.train.test_loss import WEIGHTED, relative
from worker.train import measure, optimizers

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

Train = Callable[[Path], Ran]
# bfloat16 has 8 bits where float16 has 11.
BOUNDS = {"bf16": 8 * NEAR, "fp16": NEAR}


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("adapter", ["lora", "full", "qlora"])
def test_half_precision_is_near_float32(precision: str, adapter: str, base: Path, tmp_path: Path) -> None:
    half, exact = (
        gradients(tiny.build_job(tmp_path / name, base, WEIGHTED, adapter=adapter, precision=name))
        for name in (precision, "fp32")
    )
    assert 0 < relative(half, exact) < BOUNDS[precision]


@pytest.mark.parametrize("precision", ["fp32", *BOUNDS])
def test_packed_rows_keep_apart_in_the_attention_of_the_device(precision: str, base: Path, tmp_path: Path) -> None:
    """Flash or memory-saving attention, whatever torch's SDPA takes for these rows."""
    alone, packed = (
        gradients(tiny.build_job(tmp_path / str(packing), base, WEIGHTED, precision=precision, packing=packing))
        for packing in (False, True)
    )
    assert relative(packed, alone) < BOUNDS.get(precision, 1e-5)


@pytest.mark.parametrize("precision", ["fp32", *BOUNDS])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "adafactor", "sgd"])
def test_a_run_learns_and_a_resumed_one_goes_on(
    precision: str, optimizer: str, base: Path, train: Train, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"precision": precision, "optim": {"optimizer": optimizer}, "epochs": 2}
    whole = train(tiny.build_job(tmp_path / "job", base, tiny.random_rows(8), lora={"dropout": 0.1}, **values))
    assert whole.status == 0, whole.events("error")
    half = train(again(whole.folder, tmp_path / "half", whole.folder / "checkpoints" / "step-2"))
    for step, numbers in half.numbers.items():
        # Sums in an order that the device chooses anew.
        assert numbers == pytest.approx(whole.numbers[step], rel=1e-2), step


def test_the_optimizer_is_one_kernel_on_the_device(base: Path, tmp_path: Path) -> None:
    spec, model = model_of(tiny.build_job(tmp_path / "job", base, WEIGHTED))
    optimizer = optimizers.build(spec.optim, model)
    assert all(p.is_cuda for p in model.trainable.values())
    assert all(group["fused"] for group in optimizer.param_groups)


def test_the_device_tells_what_it_computes_in() -> None:
    assert measure.machine().flops.keys() == {"fp32", "bf16", "fp16"}
