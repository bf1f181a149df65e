"""Pause, resume and stop, on a live job."""

import pytest

from tests.flow.conftest import Live
from tests.flow.longer import numbers, step_of, submit, weights

pytestmark = pytest.mark.flow


def test_a_paused_job_goes_on_at_the_same_step_with_the_same_bytes(live: Live, unkilled: tuple[str, bytes]) -> None:
    job_id = submit(live)
    live.until(lambda: step_of(live, job_id) > 30, 60, "it trains")
    assert live.client.fine_tuning.jobs.pause(job_id).ext["phase"] == "pausing"  # type: ignore[attr-defined]  # ours
    live.until(lambda: live.job(job_id).ext["phase"] == "paused", 20, "it is paused")
    assert not live.trainers()
    assert live.job(job_id).status == "queued"
    paused_at = step_of(live, job_id)
    live.client.fine_tuning.jobs.resume(job_id)
    job = live.wait(job_id)
    assert job.status == "succeeded", job.error
    assert job.ext["attempts"][0]["why"] == "paused"
    assert job.ext["attempts"][-1]["resumed_from_step"] >= paused_at > 30
    assert weights(live, job) == unkilled[0]
    assert numbers(live.client.files.content(job.result_files[0]).read()) == numbers(unkilled[1])


def test_a_job_that_comes_to_its_limit_ends_with_a_model_or_fails_as_asked(live: Live) -> None:
    saving = submit(live, limits={"max_seconds": 0.5})
    failing = submit(live, limits={"max_seconds": 0.5, "on_limit": "fail"})
    saved, failed = live.wait(saving), live.wait(failing)
    assert (saved.status, saved.ext["phase"], saved.ext["stop_reason"]) == (
        "succeeded",
        "limit_reached",
        "limit_reached",
    )
    assert 0 < len(numbers(live.client.files.content(saved.result_files[0]).read())) - 1 < 360
    assert (failed.status, failed.error.code, failed.error.param) == ("failed", "limit_reached", "ext.limits")
    assert "its limit is 0.5 s" in failed.error.message
    assert failed.ext["usage"]["accelerator_seconds"] < 20


def test_a_stopped_job_succeeds_with_a_model(live: Live) -> None:
    job_id = submit(live)
    live.until(lambda: step_of(live, job_id) > 10, 60, "it trains")
    live.client.post(f"/fine_tuning/jobs/{job_id}/stop", body={"at": "now"}, cast_to=object)
    job = live.wait(job_id)
    assert (job.status, job.ext["phase"], job.ext["stop_reason"]) == ("succeeded", "stopped_by_user", "stopped_by_user")
    steps = numbers(live.client.files.content(job.result_files[0]).read())
    assert 10 < len(steps) - 1 < 360
    assert live.client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
