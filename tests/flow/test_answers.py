"""``eval.generate`` through the API: answers in the events and as a file."""

import json
from typing import Any

import openai
import pytest

from tests.conftest import chat_rows
from tests.flow.conftest import Live

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def file_id(live: Live) -> str:
    return live.client.files.create(file=("train.jsonl", chat_rows(16)), purpose="fine-tune").id


def create(live: Live, file_id: str, generate: Any, **ext: Any) -> Any:
    return live.client.fine_tuning.jobs.create(
        model="attune-tiny",
        training_file=file_id,
        extra_body={"ext": {"epochs": 1, "lora": {"rank": 4}, "eval": {"generate": generate}, **ext}},
    )


def test_prompts_are_answered_by_the_base_and_by_the_model(live: Live, file_id: str) -> None:
    prompts = [
        "What is two plus three?",
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}],
    ]
    job = live.wait(create(live, file_id, prompts).id)
    assert job.status == "succeeded", (job.error, live.logs())
    assert job.ext["resolved"]["eval"]["generate"] == 2
    events = live.client.fine_tuning.jobs.list_events(job.id, limit=100).data
    told = [event.data for event in reversed(events) if "answers" in (event.data or {})]
    assert [one["by"] for one in told if one] == ["base", *["model"] * (len(told) - 1)]
    assert len(told) > 1
    first = told[0]["answers"][0]  # type: ignore[index]
    # The template's own words: the turn of the user, and the beginning of the assistant's.
    assert first["prompt"] == "<|bos|><|im_start|>user\nWhat is two plus three?<|im_end|>\n<|im_start|>assistant\n"

    files = {live.client.files.retrieve(id).filename: id for id in job.result_files}
    lines = [json.loads(line) for line in live.client.files.content(files["answers.jsonl"]).read().splitlines()]
    assert [(line["step"], line["by"], line["number"]) for line in lines] == [
        (one["step"], one["by"], n) for one in told if one for n in (1, 2)
    ]
    assert lines[0]["answer"] == first["answer"]


def test_the_next_job_on_the_same_rows_has_its_own_prompts(live: Live, file_id: str) -> None:
    for prompt in ("Hello", "Good morning"):
        job = live.wait(create(live, file_id, [prompt], max_steps=1, epochs=None).id)
        assert job.status == "succeeded", (job.error, live.logs())
        events = live.client.fine_tuning.jobs.list_events(job.id, limit=100).data
        told = [event.data["answers"] for event in events if "answers" in (event.data or {})]  # type: ignore[index]
        assert all(f"user\n{prompt}<" in answers[0]["prompt"] for answers in told)
        assert len(told) == 2


def test_rows_held_out_are_answered(live: Live, file_id: str) -> None:
    job = live.wait(create(live, file_id, {"validation_rows": 2}, data={"validation_fraction": 0.25}).id)
    assert job.status == "succeeded", (job.error, live.logs())
    events = live.client.fine_tuning.jobs.list_events(job.id, limit=100).data
    assert all(len(one.data["answers"]) == 2 for one in events if "answers" in (one.data or {}))  # type: ignore[index]


@pytest.mark.parametrize(
    ("generate", "param"),
    [
        (["hello"] * 21, "ext.eval.generate"),
        ([{"role": "bot", "content": "x"}], "ext.eval.generate[0][0].role"),
        ([[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]], "ext.eval.generate[0]"),
        (["  "], "ext.eval.generate[0]"),
        (["x" * 20_001], "ext.eval.generate"),
        ({"validation_rows": 2}, "ext.eval.generate"),
    ],
)
def test_what_can_not_be_asked_is_refused_at_creation(live: Live, file_id: str, generate: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        create(live, file_id, generate)
    assert refused.value.param == param
