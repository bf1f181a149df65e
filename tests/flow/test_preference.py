"""Jobs of the method dpo through the official SDK: pairs in OpenAI's form, and judged answers for KTO."""

import csv
import io
import json
from typing import Any

import openai
import pytest

from tests.conftest import preference_rows
from tests.flow.conftest import Live

pytestmark = pytest.mark.flow


def judged(count: int) -> bytes:
    rows = [{"prompt": f"{n} plus 1 is", "completion": f" {n + 1 + n % 2}", "label": n % 2 == 0} for n in range(count)]
    return "\n".join(map(json.dumps, rows)).encode()


def send(live: Live, name: str, rows: bytes) -> str:
    return live.client.files.create(file=(name, rows), purpose="fine-tune").id


@pytest.fixture(scope="module")
def done(live: Live) -> Any:
    job = live.client.fine_tuning.jobs.create(
        model="attune-tiny",
        training_file=send(live, "pairs.jsonl", preference_rows(24)),
        validation_file=send(live, "more.jsonl", preference_rows(6)),
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 2, "batch_size": 8}}},
        extra_body={"ext": {"optim": {"learning_rate": 1e-3}}},
    )
    job = live.wait(job.id)
    assert job.status == "succeeded", (job.error, live.logs())
    return job


def test_the_job_says_its_method_and_every_value(done: Any) -> None:
    assert done.method.type == "dpo"
    used = done.method.dpo.hyperparameters
    assert (used.beta, used.n_epochs, used.batch_size) == (0.2, 2, 8)
    assert done.ext["resolved"]["preference"] == {
        **{"loss": "sigmoid", "beta": 0.2},
        **{"label_smoothing": 0.0, "gamma": 0.0, "sft_weight": 0.0},
    }
    assert done.ext["data"]["train"]["examples"] == 24
    assert done.ext["progress"]["total_steps"] == 6


def test_rewards_are_measured_and_part_the_answers(live: Live, done: Any) -> None:
    text = live.client.files.content(done.result_files[0]).read().decode()
    steps = list(csv.DictReader(io.StringIO(text)))
    assert float(steps[0]["reward_margin"]) == pytest.approx(0, abs=1e-3)
    assert float(steps[-1]["reward_margin"]) > 0
    assert float(steps[-1]["reward_chosen"]) > float(steps[-1]["reward_rejected"])
    assert float(steps[-1]["valid_reward_margin"]) > 0
    assert float(steps[-1]["train_accuracy"]) == 1


@pytest.mark.parametrize(("loss", "kind"), [("kto", "judged"), ("kto", "pairs"), ("orpo", "pairs"), ("simpo", "pairs")])
def test_other_losses_are_trained(loss: str, kind: str, live: Live) -> None:
    rows = judged(24) if kind == "judged" else preference_rows(12)
    job = live.client.fine_tuning.jobs.create(
        model="attune-tiny",
        training_file=send(live, f"{kind}.jsonl", rows),
        method={"type": "dpo"},
        extra_body={"ext": {"preference": {"loss": loss}, "adapter": "full" if loss == "kto" else "lora"}},
    )
    job = live.wait(job.id)
    assert job.status == "succeeded", (job.error, live.logs())
    assert job.ext["data"]["train"]["examples"] == (24 if loss == "kto" else 12)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "rows", "said"),
    [
        ({"type": "dpo"}, judged(12), "preference rows"),
        ({"type": "supervised"}, preference_rows(12), "chat, completion, text rows"),
    ],
)
def test_rows_that_do_not_fit_the_method_are_refused(method: Any, rows: bytes, said: str, live: Live) -> None:
    file_id = send(live, "rows.jsonl", rows)
    with pytest.raises(openai.BadRequestError, match=said) as error:
        live.client.fine_tuning.jobs.create(model="attune-tiny", training_file=file_id, method=method)
    assert error.value.param == "training_file"
