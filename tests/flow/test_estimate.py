"""An estimate, the job it was of, and a second job on the same data: through HTTP and the command line."""

import time
from typing import Any

import httpx
import pytest

from tests.cli.running import attune
from tests.conftest import chat_rows
from tests.flow.conftest import Live

pytestmark = pytest.mark.flow


def queued(live: Live, file_id: str, **ext: object) -> str:
    """A new job that waits for a train worker, or is with one."""
    job = live.client.fine_tuning.jobs.create(
        model="attune-tiny", training_file=file_id, seed=1, extra_body={"ext": {"max_steps": 3, **ext}}
    )
    while live.job(job.id).status == "validating_files":
        time.sleep(0.02)
    id: str = job.id
    return id


def test_what_is_estimated_is_what_happens_and_rows_are_prepared_once(live: Live) -> None:
    file = live.client.files.create(file=("rows.jsonl", chat_rows(40)), purpose="fine-tune")
    body = {"model": "attune-tiny", "training_file": file.id, "seed": 1, "ext": {"max_steps": 3}}
    live.until(lambda: any(w.get("seconds") for w in _estimate(live, body)["workers"]), 180, "a worker has measured")
    said = _estimate(live, body)
    assert (said["feasible"], said["steps"]) == (True, 3)

    first = queued(live, file.id)
    second = queued(live, file.id, lora={"rank": 2})
    for id in (first, second):
        job = live.wait(id)
        assert job.status == "succeeded", job.error
        events = [event.message for event in live.client.fine_tuning.jobs.list_events(id, limit=100)]
        assert any("tokenised before" in message for message in events)
    job = live.job(first)
    assert job.ext["resolved"] == said["resolved"]
    assert job.ext["data"]["train"]["tokens"] == said["tokens"]["per_epoch"]

    done = attune(
        "jobs", "estimate", "--model", "attune-tiny", "--training-file", file.id, "--home", live.home, "--epochs", "2"
    )
    assert done.returncode == 0, done.stderr
    for word in ("feasible     yes", "examples     40", "WORKER", "Advice", "LoRA suits 40 examples"):
        assert word in done.stdout


def _estimate(live: Live, body: dict[str, object]) -> Any:  # JSON
    answer = live.client.post("/fine_tuning/jobs/estimate", body=body, cast_to=httpx.Response)
    while answer.status_code == 202:
        time.sleep(1)
        answer = live.client.post("/fine_tuning/jobs/estimate", body=body, cast_to=httpx.Response)
    return answer.json()
