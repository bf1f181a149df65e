"""A run that goes astray is given up early, and says which of its checkpoints is still good."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.worker.train.conftest import Ran, again
from worker.folder import EXIT_USER_ERROR
from worker.train import loop
from worker.train.course import Course
from worker.train.faults import Diverged

Train = Callable[[Path], Ran]


def look(course: Course, losses: list[float], *, batch_size: int = 8, blows_up: bool = True) -> int | None:
    """The step at which it is given up."""
    for step, loss in enumerate(losses, 1):
        try:
            course.look(step, loss, 1.0, 0, batch_size, blows_up=blows_up)
        except Diverged:
            return step
    return None


@pytest.mark.parametrize(
    ("losses", "until"),
    [
        ([2.0] * 100, None),
        ([2.0, *[5.0] * 16], 17),
        # It jumps, and comes back.
        ([2.0, *[5.0] * 15, 2.5, *[5.0] * 15], None),
        # Above where it began, yet not by what only nonsense has.
        ([2.0, *[3.0] * 100], None),
        ([2.0, 1.5, float("nan")], 3),
        ([2.0, float("inf")], 2),
    ],
)
def test_a_loss_that_is_no_number_or_far_above_its_beginning_to_stay_ends_the_run(
    losses: list[float], until: int | None
) -> None:
    assert look(Course(), losses) == until


def test_a_loss_that_may_be_any_number_is_only_held_to_be_one() -> None:
    assert look(Course(), [0.7, *[9.0] * 100], blows_up=False) is None
    assert look(Course(), [0.7, float("nan")], blows_up=False) == 2


def test_a_checkpoint_is_good_once_the_loss_after_it_was() -> None:
    course = Course()
    course.look(1, 2.0, 1.0, 0, 8, blows_up=True)
    course.look(2, 1.9, 1.0, 1, 8, blows_up=True)
    assert course.good_step == 1
    # The checkpoint of step 2 is of a model that is lost already: the next loss tells.
    course.look(3, 9.0, 1.0, 2, 8, blows_up=True)
    assert Course.model_validate_json(course.model_dump_json()).good_step == 1
    # Nor does it become one when the loss comes back later.
    course.look(4, 1.9, 1.0, 2, 8, blows_up=True)
    assert course.good_step == 1
    course.look(5, 1.9, 1.0, 4, 8, blows_up=True)
    assert course.good_step == 4


def test_an_easy_first_example_makes_no_run_astray() -> None:
    losses = [0.01, 1.2, 2.0, 0.9, 1.4, 1.6, 0.8, 1.9, *[1.5] * 40]
    assert look(Course(), losses, batch_size=1) is None
    # Of a whole batch the first loss says what the others may be.
    assert look(Course(), losses, batch_size=8) == 17
    assert look(Course(), [*losses[:8], *[9.0] * 40], batch_size=1) == 24
    # It blows up at once: what its second example loses then is not how it began.
    assert look(Course(), [1.0, *[12.0] * 40], batch_size=1) == 17


def blown_up(folder: Path, base: Path) -> Path:
    """A rate that rises with every step: after a few of them it is far too high."""
    optim = {"learning_rate": 3.0, "schedule": "constant", "warmup_steps": 2000}
    return tiny.build_job(
        folder, base, tiny.random_rows(16), epochs=20, recovery_fraction=1 / 80, optim=optim, adapter="full"
    )


def test_a_run_that_blows_up_ends_early_and_names_its_last_good_checkpoint(
    base: Path, train: Train, tmp_path: Path
) -> None:
    ran = train(blown_up(tmp_path / "job", base))
    assert ran.status == EXIT_USER_ERROR
    (error,) = ran.events("error")
    losses = [event["train_loss"] for event in ran.events("step")]
    good = error["good_step"]
    assert (error["code"], error["param"]) == ("diverged", "learning_rate")
    assert len(losses) < 80
    assert 1 <= good < len(losses)
    assert (ran.folder / "checkpoints" / f"step-{good}" / "manifest.json").exists()
    # The model of that step was good, and none after it.
    limit = 1.3 * losses[0] + 0.5
    assert losses[good] <= limit < min(losses[good + 1 :])
    assert not (ran.folder / "artifact").exists()


def test_a_resumed_run_is_given_up_at_the_same_step(base: Path, train: Train, tmp_path: Path) -> None:
    whole = train(blown_up(tmp_path / "job", base))
    assert [line["good_step"] for line in whole.events("checkpoint")][-1] == whole.events("error")[0]["good_step"]
    last = whole.events("checkpoint")[-1]["step"]
    for step in (2, last):
        resumed = train(again(whole.folder, tmp_path / f"from-{step}", whole.folder / "checkpoints" / f"step-{step}"))
        theirs, ours = whole.events("error")[0], resumed.events("error")[0]
        assert [ours[key] for key in ("message", "good_step")] == [theirs[key] for key in ("message", "good_step")]


def test_a_gradient_that_is_no_number_ends_the_run_before_it_is_learned(
    base: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, count = loop.Supervised.backward, 0

    def backward(*args: object) -> torch.Tensor:
        nonlocal count
        count += 1
        told = whole(*args)  # type: ignore[arg-type]
        if count == 20:
            model = args[1]
            next(iter(model.trainable.values())).grad[:] = float("nan")  # type: ignore[attr-defined]
        return told

    monkeypatch.setattr(loop.Supervised, "backward", backward)
    ran = train(tiny.build_job(tmp_path / "job", base, tiny.random_rows(16), epochs=3, recovery_fraction=1 / 12))
    (error,) = ran.events("error")
    assert (error["code"], error["good_step"]) == ("diverged", 4)
    assert "gradient is no longer a finite number at step 5" in error["message"]


@pytest.mark.parametrize(("validated", "what"), [(True, "The validation loss is"), (False, "The weights are")])
def test_a_last_step_that_blows_up_is_no_success(
    validated: bool, what: str, base: Path, train: Train, tmp_path: Path
) -> None:
    held = tiny.random_rows(4, seed=1) if validated else None
    optim = {"learning_rate": 1e39, "warmup_steps": 0}
    ran = train(tiny.build_job(tmp_path / "job", base, tiny.random_rows(4), held, adapter="full", optim=optim))
    (error,) = ran.events("error")
    assert (ran.status, error["code"], error["good_step"]) == (EXIT_USER_ERROR, "diverged", 0)
    assert error["message"].startswith(f"{what} no longer finite after step 1")
    assert not (ran.folder / "artifact").exists()
