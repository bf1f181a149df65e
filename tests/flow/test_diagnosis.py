"""What is said of a run through the API and at the terminal, while it trains and at its end; what a lost one leaves."""

import hashlib
from typing import Any

import httpx
import pytest
from safetensors.torch import load

from tests.cli.running import attune, environment
from tests.conftest import chat_rows
from tests.flow.conftest import Live

pytestmark = pytest.mark.flow

# Rows that the model has not seen, to judge it by.
HELD = chat_rows(24).replace(b"comes after", b"is next to")


def submit(live: Live, valid: bytes | None = None, **ext: Any) -> str:
    def upload(rows: bytes) -> str:
        return live.client.files.create(file=("rows.jsonl", rows), purpose="fine-tune").id

    job = live.client.fine_tuning.jobs.create(
        model="attune-tiny",
        training_file=upload(chat_rows(48)),
        validation_file=upload(valid or HELD),
        seed=11,
        method={"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 8}}},
        extra_body={"ext": ext},
    )
    return job.id


def told(live: Live, job_id: str) -> list[dict[str, Any]]:
    """Findings, in the order in which they were told as events."""
    events = list(live.client.fine_tuning.jobs.list_events(job_id, limit=100))[::-1]
    return [event.data["diagnosis"] for event in events if "diagnosis" in (event.data or {})]  # type: ignore[index]


def watched(live: Live, job_id: str) -> str:
    env = environment(OPENAI_BASE_URL=live.base_url, OPENAI_API_KEY=live.api_key)
    shown = attune("jobs", "watch", job_id, env=env)
    return " ".join((shown.stdout + shown.stderr).split())


@pytest.fixture(scope="module")
def diverged(live: Live) -> Any:
    """A rate that rises until it is far too high, with a list of one checkpoint besides the two to resume from."""
    optim = {"optimizer": "sgd", "learning_rate": 1.0, "schedule": "constant", "warmup_steps": 60, "max_grad_norm": 100}
    checkpoints = {"every": 2, "keep": {"last": 1}}
    job_id = submit(live, adapter="full", epochs=10, optim=optim, eval={"every": 2}, checkpoints=checkpoints)
    job = live.wait(job_id)
    assert job.status == "failed", (job.status, live.logs())
    return job


def test_a_run_that_diverges_ends_early_and_says_so(live: Live, diverged: Any) -> None:
    assert (diverged.error.code, diverged.error.param) == ("diverged", "learning_rate")
    assert diverged.ext["progress"]["step"] < diverged.ext["resolved"]["total_steps"]
    finding = diverged.ext["diagnosis"][0]
    assert finding["code"] == "diverged"
    evidence = finding["evidence"]
    assert evidence["last_loss"] > evidence["first_loss"]
    assert 1 < evidence["since_step"] < evidence["step"] == diverged.ext["progress"]["step"]
    assert finding["advice"].startswith("Lower the learning rate")
    shown = watched(live, diverged.id)
    assert f"Diagnosis: {finding['message'].split(':')[0]}" in shown
    assert "Lower the learning rate" in shown


def test_the_last_good_checkpoint_is_kept_for_the_user_whatever_was_to_be_kept(live: Live, diverged: Any) -> None:
    listed = {one.step_number: one for one in live.client.fine_tuning.jobs.checkpoints.list(diverged.id)}
    good = max(step for step in listed if step <= diverged.ext["diagnosis"][0]["evidence"]["since_step"])
    assert f"The checkpoint of step {good}, from before, is kept." in diverged.error.message
    # Many came after it: the policy alone would have let it go.
    assert len([step for step in listed if step > good]) == 2
    assert diverged.ext["progress"]["step"] - good > 3 * 2
    # Of the others none is a model worth having.
    best = diverged.ext["best_checkpoint"]
    assert best["step"] == good
    assert best["valid_loss"] < min(one.metrics.full_valid_loss or 0 for step, one in listed.items() if step > good)

    name = listed[good].fine_tuned_model_checkpoint
    headers = {"Authorization": f"Bearer {live.api_key}"}
    answer = httpx.get(f"{live.base_url}/models/{name}/artifacts", headers=headers, timeout=30).json()
    files = {file["path"]: file for file in answer["files"]}
    weights = httpx.get(files["model.safetensors"]["url"], timeout=30).content
    assert hashlib.sha256(weights).hexdigest() == files["model.safetensors"]["sha256"]
    assert all(bool(tensor.isfinite().all()) for tensor in load(weights).values())


def test_a_run_is_diagnosed_while_it_trains_and_at_its_end(live: Live) -> None:
    """A rate at which nothing is learned, and five validation rows."""
    seen: dict[int, list[str]] = {}
    job_id = submit(live, chat_rows(5), epochs=8, optim={"learning_rate": 1e-9}, lora={"rank": 4})

    def ended() -> bool:
        job = live.job(job_id)
        if job.status == "running" and job.ext["progress"]:
            seen[job.ext["progress"]["step"]] = [finding["code"] for finding in job.ext["diagnosis"]]
        return job.status not in ("validating_files", "queued", "running")

    live.until(ended, 120, "the job ends")
    job = live.job(job_id)
    assert job.status == "succeeded", (job.error, live.logs())
    assert any("validation_small" in codes for codes in seen.values())

    found = {finding["code"]: finding for finding in job.ext["diagnosis"]}
    assert next(iter(found)) == "adapter_still"
    assert {"no_end_of_turn", "validation_small", "validation_shared"} < set(found)
    assert found["adapter_still"]["evidence"]["step"] == 48
    assert found["adapter_still"]["evidence"]["moved"] < 1e-5
    assert found["validation_small"]["evidence"] == {"rows": 5, "wanted": 20}
    assert all(finding["advice"] for finding in found.values())

    # Each once, the first time that it was seen; those of the rows before the first step.
    codes = [finding["code"] for finding in told(live, job_id)]
    assert len(codes) == len(set(codes))
    assert set(codes) >= set(found)
    events = list(live.client.fine_tuning.jobs.list_events(job_id, limit=100))[::-1]
    messages = [event.message for event in events]
    first = next(n for n, message in enumerate(messages) if message.startswith("Step 1/"))
    assert any("5 validation rows are too few" in message for message in messages[:first])
    assert found["adapter_still"]["message"].split(":")[0] in watched(live, job_id)
