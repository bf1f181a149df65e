"""Jobs that begin from what an earlier job has tuned."""

from typing import Any

import openai
import pytest

from tests.conftest import chat_rows, preference_rows
from tests.flow.conftest import Live

pytestmark = pytest.mark.flow
LORA = {"rank": 4}


@pytest.fixture(scope="module")
def first(live: Live) -> Any:
    return _run(live, chat_rows(16), {"lora": LORA, "epochs": 4, "optim": {"learning_rate": 1e-2}})


def _create(live: Live, rows: bytes, ext: dict[str, Any], **more: Any) -> Any:
    file_id = live.client.files.create(file=("rows.jsonl", rows), purpose="fine-tune").id
    body = {"model": "attune-tiny", "training_file": file_id, "extra_body": {"ext": ext}, **more}
    return live.client.fine_tuning.jobs.create(**body)


def _run(live: Live, rows: bytes, ext: dict[str, Any], **more: Any) -> Any:
    job = live.wait(_create(live, rows, ext, **more).id)
    assert job.status == "succeeded", (job.error, live.logs())
    return job


def _losses(live: Live, job: Any) -> list[float]:
    text = live.client.files.content(job.result_files[0]).read().decode()
    return [float(line.split(",")[1]) for line in text.splitlines()[1:]]


def test_a_job_goes_on_from_a_model_and_from_a_checkpoint_with_its_optimizer(live: Live, first: Any) -> None:
    checkpoint = live.client.fine_tuning.jobs.checkpoints.list(first.id).data[0].fine_tuned_model_checkpoint
    begun = _losses(live, first)
    for origin in ({"init_from": first.fine_tuned_model}, {"init_from": checkpoint, "resume_optimizer": True}):
        job = _run(live, chat_rows(16), {"lora": LORA, "epochs": 1, **origin})
        assert job.ext["resolved"]["init_from"] == origin["init_from"]
        # It has learned these rows already.
        assert _losses(live, job)[0] < begun[0] - 0.1


def test_preferences_come_after_examples(live: Live, first: Any) -> None:
    job = _run(live, preference_rows(12), {"lora": LORA, "init_from": first.fine_tuned_model}, method={"type": "dpo"})
    assert job.fine_tuned_model != first.fine_tuned_model


@pytest.mark.parametrize(
    ("ext", "param", "said"),
    [
        ({"lora": {"rank": 8}}, "ext.lora.rank", "8 is not what .* was tuned with, 4"),
        ({"adapter": "ia3"}, "ext.adapter", "ia3 is not what"),
        ({"lora": LORA, "resume_optimizer": True}, "ext.resume_optimizer", "checkpoints have it"),
        ({"lora": LORA, "init_from": "ft:attune-tiny:nobody::abcdefgh"}, "ext.init_from", "does not exist"),
        ({"lora": LORA, "init_from": "attune-tiny"}, "ext.init_from", "is a base model"),
    ],
)
def test_what_a_job_can_not_begin_from_is_refused(
    ext: dict[str, Any], param: str, said: str, live: Live, first: Any
) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as error:
        _create(live, chat_rows(12), {"init_from": first.fine_tuned_model, **ext})
    assert error.value.param == param
