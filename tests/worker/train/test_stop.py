"""A run that is asked to end early ends well: with a model of what it has learned, at the point that was asked for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny
from tests.worker.train.conftest import Ran
from worker.folder import STOP


def job(folder: Path, base: Path) -> Path:
    """Four steps an epoch, three epochs, a recovery point after each third step."""
    rows = tiny.random_rows(16)
    return tiny.build_job(folder, base, rows, tiny.random_rows(3, seed=1), epochs=3, recovery_fraction=0.25)


@pytest.mark.parametrize(("at", "steps"), [("now", 1), ("checkpoint", 3), ("epoch", 4), ("limit", 1)])
def test_it_ends_where_it_was_asked_to(
    base: Path, tmp_path: Path, train: Callable[[Path], Ran], at: str, steps: int
) -> None:
    folder = job(tmp_path / "job", base)
    (folder / STOP).write_text(at)
    ran = train(folder)
    assert ran.status == 0
    assert [event["step"] for event in ran.events("step")] == list(range(1, steps + 1))
    (done,) = ran.events("done")
    assert (done["steps"], done["stop_reason"]) == (steps, "limit_reached" if at == "limit" else "stopped_by_user")
    assert (folder / "artifact" / "adapter_model.safetensors").exists()
    # The last numbers belong to the model that is kept, so the validation loss is of that step, too.
    assert ran.events("eval")[-1]["step"] == steps
    assert ran.events("checkpoint")[-1]["step"] == steps


def test_a_stopped_run_that_is_resumed_trains_no_further(
    base: Path, tmp_path: Path, train: Callable[[Path], Ran]
) -> None:
    first = job(tmp_path / "first", base)
    (first / STOP).write_text("epoch")
    train(first)
    again = job(tmp_path / "again", base)
    (again / "resume").mkdir()
    (first / "checkpoints" / "step-4").rename(again / "resume" / "step-4")
    spec = (again / "spec.json").read_text().replace('"resume": null', '"resume": "resume/step-4"')
    (again / "spec.json").write_text(spec)
    (again / STOP).write_text("now")
    ran = train(again)
    assert ran.status == 0, ran.events("error")
    assert ran.events("step") == []
    assert ran.adapter_sha256 == Ran(first, 0).adapter_sha256


def test_an_undisturbed_run_has_no_reason_to_have_stopped(
    base: Path, tmp_path: Path, train: Callable[[Path], Ran]
) -> None:
    ran = train(job(tmp_path / "job", base))
    assert ran.events("done")[0]["stop_reason"] is None


def test_the_jobs_own_template_goes_into_the_artifact(base: Path, tmp_path: Path, train: Callable[[Path], Ran]) -> None:
    folder = job(tmp_path / "job", base)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / STOP).write_text("now")
    train(folder)
    assert (folder / "artifact" / "chat_template.jinja").read_text() == "{{ messages }}"
