"""Whatever is killed in the middle of a job, it ends well, with the same bytes, and never with two trainers at once."""

import os
import signal
from collections.abc import Callable

import pytest

from tests.flow.conftest import Live, Watch
from tests.flow.longer import numbers, step_of, submit, weights

pytestmark = pytest.mark.flow


def kill_trainer(live: Live) -> None:
    os.kill(next(iter(live.trainers())), signal.SIGKILL)


def kill_supervisor(live: Live) -> None:
    os.kill(live.pids()["train"], signal.SIGKILL)


def kill_both(live: Live) -> None:
    trainers = live.trainers()
    os.kill(live.pids()["train"], signal.SIGKILL)
    for pid in trainers:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def drain(live: Live) -> None:
    os.kill(live.pids()["train"], signal.SIGTERM)


@pytest.mark.parametrize(
    ("kill", "why"),
    [
        (kill_trainer, "killed by signal 9"),
        (kill_supervisor, "worker was lost"),
        (kill_both, "worker was lost"),
        (drain, "drained"),
    ],
)
def test_a_job_survives(live: Live, unkilled: tuple[str, bytes], kill: Callable[[Live], None], why: str) -> None:
    with Watch(live) as watch:
        job_id = submit(live)
        live.until(lambda: 100 < step_of(live, job_id) < 340, 60, "the job is in its middle")
        kill(live)
        job = live.wait(job_id)
    assert job.status == "succeeded", (job.error, live.logs())
    assert watch.most == 1
    first, *later = job.ext["attempts"]
    assert why in first["why"]
    assert later[-1]["why"] == "succeeded"
    assert later[-1]["resumed_from_step"] > 0
    sha256, metrics = unkilled
    assert weights(live, job) == sha256
    # Every step once, with the same loss, gradient norm and learning rate as in the run that was never killed.
    mine = live.client.files.content(job.result_files[0]).read()
    assert numbers(mine) == numbers(metrics)
    messages = [event.message for event in live.client.fine_tuning.jobs.list_events(job_id, limit=100)]
    assert sum("New fine-tuned model created" in message for message in messages) == 1


def test_a_trainer_ends_with_its_supervisor(live: Live) -> None:
    job_id = submit(live)
    live.until(lambda: live.trainers() and step_of(live, job_id) > 5, 60, "it trains")
    orphans = live.trainers()
    kill_supervisor(live)
    live.until(lambda: not orphans & live.trainers(), 5, "the trainer is gone")
    live.client.fine_tuning.jobs.cancel(job_id)
    assert live.wait(job_id).status == "cancelled"


def test_cancelling_a_running_job_frees_the_slot(live: Live) -> None:
    job_id = submit(live)
    live.until(lambda: step_of(live, job_id) > 5, 60, "it trains")
    live.client.fine_tuning.jobs.cancel(job_id)
    live.until(lambda: not live.trainers(), 15, "the trainer is gone")
    job = live.wait(job_id, 15)
    assert job.status == "cancelled"
    assert job.fine_tuned_model is None
