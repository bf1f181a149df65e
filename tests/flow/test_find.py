"""``learning_rate: "find"`` through the API: the rate, its reason and its curve are the job's."""

import pytest

from tests.cli.running import attune, environment
from tests.conftest import chat_rows
from tests.flow.conftest import Live

pytestmark = pytest.mark.flow


def test_a_found_rate_is_the_jobs_with_its_curve(live: Live) -> None:
    file_id = live.client.files.create(file=("train.jsonl", chat_rows(16)), purpose="fine-tune").id
    ext = {"epochs": 1, "lora": {"rank": 4}, "optim": {"learning_rate": "find", "schedule": "constant"}}
    job = live.client.fine_tuning.jobs.create(model="attune-tiny", training_file=file_id, extra_body={"ext": ext})
    job = live.wait(job.id)
    assert job.status == "succeeded", (job.error, live.logs())
    optim = job.ext["resolved"]["optim"]  # type: ignore[attr-defined]
    assert optim["find"] is True
    events = live.client.fine_tuning.jobs.list_events(job.id, limit=100).data
    (event,) = [one for one in events if "curve" in (one.data or {})]
    assert event.message.startswith(f"learning_rate {optim['learning_rate']:.2g}: found among ")
    assert event.data["curve"] == optim["curve"]  # type: ignore[index]
    steps = [one.data["learning_rate"] for one in events if one.type == "metrics"]  # type: ignore[index]
    assert max(steps) == optim["learning_rate"]
    # OpenAI's field says the same as a multiple of the automatic rate.
    assert job.hyperparameters.learning_rate_multiplier == pytest.approx(
        job.ext["resolved"]["hyperparameters"]["learning_rate_multiplier"]  # type: ignore[attr-defined]
    )

    shown = attune("jobs", "watch", job.id, env=environment(OPENAI_BASE_URL=live.base_url, OPENAI_API_KEY=live.api_key))
    assert shown.returncode == 0, shown.stderr
    assert "└──" in shown.stderr + shown.stdout
    assert f"^ {optim['learning_rate']:.2g}" in shown.stderr + shown.stdout
