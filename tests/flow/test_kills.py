"""Whatever is killed in the middle of a job, it ends well, with the same bytes, and never with two trainers at once."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import chat_rows
from tests.flow.conftest import Live, Watch

pytestmark = pytest.mark.flow

_METHOD: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 2}}}
_EXT = {"lora": {"rank": 4, "dropout": 0.1}}


def submit(live: Live) -> str:
    client = live.client
    file = client.files.create(file=("train.jsonl", chat_rows(240)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="attune-tiny", training_file=file.id, seed=11, method=_METHOD, extra_body={"ext": _EXT}
    )
    return job.id


def step_of(live: Live, job_id: str) -> int:
    progress = live.job(job_id).ext["progress"]
    return progress["step"] if progress else 0


def weights(live: Live, job: Any) -> str:
    files = [live.client.files.retrieve(id) for id in job.result_files]
    return next(file.ext["sha256"] for file in files if file.filename == "adapter_model.safetensors")  # type: ignore[attr-defined]  # ours


@pytest.fixture(scope="module")
def unkilled(live: Live) -> tuple[str, bytes]:
    """The adapter's hash and the metrics of a run that nobody disturbed."""
    job = live.wait(submit(live))
    assert job.status == "succeeded", job.error
    return weights(live, job), live.client.files.content(job.result_files[0]).read()


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


def numbers(table: bytes) -> list[list[str]]:
    """The columns that must be equal: all but the seconds."""
    return [line.split(",")[:-1] for line in table.decode().splitlines()]


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
