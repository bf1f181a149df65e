"""A step's gradient is one number whatever the split: micro-batches, packing, one process or two, every loss.

Held twice. In float64, where rounding is far away, a sum that was divided wrongly has nowhere to hide; in float32, the
precision of the jobs, what is left is the rounding of matrix products of other shapes.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.live import free_port
from tests.worker.train.conftest import open_job
from tests.worker.train.test_loss import WEIGHTED, relative
from tests.worker.train.test_preference import LOSSES, job, move
from worker.train import preference
from worker.train.batches import Rows
from worker.train.loop import objective
from worker.train.preference import Preference
from worker.train.ranks import Ranks

Gradients = dict[str, torch.Tensor]
Whole = Callable[[str, torch.dtype], Gradients]
SUPERVISED: dict[str, dict[str, Any]] = {"supervised": {}, "supervised, packed": {"packing": True}}
CASES = [*SUPERVISED, *LOSSES]
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-6}
EXAMPLES = 8
SHARED = 3
"""Examples at once in each of two processes"""


def step(folder: Path, micro: int, dtype: torch.dtype, ranks: Ranks) -> Gradients:
    """The gradient of one step over ``EXAMPLES`` examples, as the loop adds it up, with its loss and its drift."""
    spec, model, _ = open_job(folder, dtype=dtype)
    spec = spec.model_copy(update={"micro_batch_size": micro})
    method = objective(spec, Rows.read(folder / "train.safetensors"), model)
    if spec.preference is not None and spec.preference.loss in preference.WITH_REFERENCE:
        assert isinstance(method, Preference)
        with torch.no_grad():
            method.reference = method.score(model, ranks)
    move(model)
    chosen = list(range(EXAMPLES))
    whole = method.begin(model, chosen, ranks)
    told = torch.zeros(method.told, dtype=torch.float64)
    for batch in method.cut(ranks.share(chosen)):
        told += method.backward(model, batch, whole)
    gradients = ranks.gradients(model.trainable.values())
    ranks.sum_([told, *gradients])
    named = {name: p.grad for name, p in model.trainable.items() if p.grad is not None}
    # Were KTO's reference point 0, nothing here would have looked at it.
    assert (whole.drift > 0.01) == ("kto" in folder.name)
    numbers = {"loss": method.metrics(told, whole)["loss"], "drift": whole.drift}
    return named | {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Ragged rows, fractional weights"""
    folder = tmp_path_factory.mktemp("split")
    made = {name: job(folder / name, base, name) for name in LOSSES}
    for name, values in SUPERVISED.items():
        made[name] = tiny.build_job(folder / name, base, WEIGHTED, **values)
    return made


@pytest.fixture(scope="module")
def whole(folders: dict[str, Path]) -> Whole:
    """One process, one example at a time; each asked for once."""

    @functools.cache
    def ask(name: str, dtype: torch.dtype) -> Gradients:
        return step(folders[name], 1, dtype, Ranks())

    return ask


@pytest.fixture(scope="module")
def shared(folders: dict[str, Path]) -> dict[tuple[str, torch.dtype], Gradients]:
    """The same steps by two processes that talk over gloo: one pair of them goes through all cases."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    out = next(iter(folders.values())).parent
    children = [_part(folders, out, common | {"RANK": str(rank)}) for rank in (0, 1)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    return {(name, dtype): load_file(out / _file(name, dtype)) for name in CASES for dtype in CLOSE}


def _part(folders: dict[str, Path], out: Path, environment: dict[str, str]) -> int:
    """One of the two processes, a copy of this one; returns its id."""
    if child := os.fork():
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        os.environ.update(environment)
        ranks = Ranks.join()
        for name in CASES:
            for dtype in CLOSE:
                found = step(folders[name], SHARED, dtype, ranks)
                if ranks.first:
                    save_file(found, out / _file(name, dtype))
        status = 0
    finally:
        os._exit(status)


def _file(name: str, dtype: torch.dtype) -> str:
    return f"{name}-{dtype}.safetensors"


def hold(found: Gradients, one: Gradients, bound: float) -> None:
    assert float(found["loss"]) == pytest.approx(float(one["loss"]), rel=bound)
    assert float(found["drift"]) == pytest.approx(float(one["drift"]), rel=10 * bound)
    assert relative(of_parameters(found), of_parameters(one)) < bound


def of_parameters(found: Gradients) -> Gradients:
    return {name: gradient for name, gradient in found.items() if name not in ("loss", "drift")}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_the_split_into_micro_batches_changes_nothing(
    name: str, dtype: torch.dtype, whole: Whole, folders: dict[str, Path]
) -> None:
    for micro in (2, 4, 8):
        hold(step(folders[name], micro, dtype, Ranks()), whole(name, dtype), CLOSE[dtype])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_two_processes_give_what_one_gives(
    name: str, dtype: torch.dtype, whole: Whole, shared: dict[tuple[str, torch.dtype], Gradients]
) -> None:
    hold(shared[name, dtype], whole(name, dtype), CLOSE[dtype])


def test_packed_rows_give_what_rows_alone_give(whole: Whole) -> None:
    for dtype, bound in CLOSE.items():
        hold(whole("supervised, packed", dtype), whole("supervised", dtype), bound)
