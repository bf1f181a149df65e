"""A run that begins from an earlier one's weights goes on where it ended, with its optimizer if that is wanted."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.worker.train.conftest import Ran
from worker.folder import EXIT_USER_ERROR

Train = Callable[[Path], Ran]
CONSTANT = {"schedule": "constant", "warmup_steps": 0, "learning_rate": 1e-2}
ROWS = tiny.random_rows(8)


def job(folder: Path, base: Path, begin: Path | None = None, *, optimizer: bool = False, **values: Any) -> Path:
    init = None
    if begin is not None:
        folder.mkdir()
        shutil.copytree(begin, folder / "init")
        init = {"name": "ft:tiny", "path": "init", "sha256": "0" * 64, "optimizer": optimizer}
    return tiny.build_job(folder, base, ROWS, ROWS, batch_size=8, optim=CONSTANT, init=init, **values)


@pytest.mark.parametrize("adapter", ["lora", "full", "prompt"])
@pytest.mark.parametrize("optimizer", [True, False])
def test_it_goes_on_where_the_other_ended(
    adapter: str, optimizer: bool, base: Path, train: Train, tmp_path: Path
) -> None:
    """Every step sees all rows here, so two runs of three steps make one of six, if the optimizer goes on too."""
    whole = train(job(tmp_path / "whole", base, epochs=6, adapter=adapter))
    first = train(job(tmp_path / "first", base, epochs=3, adapter=adapter))
    begin = first.folder / "checkpoints" / "step-3"
    second = train(job(tmp_path / "second", base, begin, optimizer=optimizer, epochs=3, adapter=adapter))
    assert second.status == 0
    found = [event["train_loss"] for event in second.events("step")]
    expected = [event["train_loss"] for event in whole.events("step")][3:]
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert (found == pytest.approx(expected, rel=1e-5)) == optimizer


def test_weights_of_another_shape_are_refused(base: Path, train: Train, tmp_path: Path) -> None:
    first = train(job(tmp_path / "first", base, epochs=1, lora={"rank": 4}))
    second = train(job(tmp_path / "second", base, first.folder / "artifact", epochs=1, lora={"rank": 8}))
    assert second.status == EXIT_USER_ERROR
    assert second.events("error")[0]["code"] == "init_mismatch"
    third = train(job(tmp_path / "third", base, first.folder / "artifact", epochs=1, adapter="full"))
    assert third.events("error")[0]["code"] == "init_mismatch"


def test_the_reference_is_the_policy_as_it_begins(base: Path, train: Train, tmp_path: Path) -> None:
    """Tuned weights are part of it: the first step's margin is nothing, as with a fresh adapter."""
    first = train(job(tmp_path / "first", base, epochs=3))
    folder = tmp_path / "second"
    folder.mkdir()
    shutil.copytree(first.folder / "artifact", folder / "init")
    tiny.build_job(
        folder, base, tiny.random_pairs(4), label=[1, 0] * 4, method="dpo", preference={}, total_steps=1,
        init={"name": "ft:tiny", "path": "init", "sha256": "0" * 64},
    )  # fmt: skip
    (step,) = train(folder).events("step")
    assert step["reward_margin"] == pytest.approx(0, abs=1e-4)
