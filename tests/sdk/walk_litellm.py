"""Fine-tuning through LiteLLM, which checks every job against a closed list of states: ``python … sync|async``."""

import asyncio
import inspect
import json
import os
import sys
import time
from importlib.metadata import version
from typing import Any

import litellm
import openai

MODEL = "attune-tiny"
HERE = {
    "custom_llm_provider": "openai",
    "api_base": os.environ["OPENAI_BASE_URL"],
    "api_key": os.environ["OPENAI_API_KEY"],
}
walked: list[str] = []
way = sys.argv[1]


async def call(name: str, **given: Any) -> Any:
    """``litellm.<name>``, or its asynchronous twin."""
    answer = getattr(litellm, name if way == "sync" else f"a{name}")(**HERE, **given)
    assert inspect.isawaitable(answer) == (way == "async")
    return await answer if way == "async" else answer


async def until_ended(job_id: str) -> Any:
    deadline = time.monotonic() + 90
    while True:
        job = await call("retrieve_fine_tuning_job", fine_tuning_job_id=job_id)
        if job.status in ("succeeded", "failed", "cancelled"):
            return job
        assert time.monotonic() < deadline, job
        await asyncio.sleep(0.1)


async def main() -> None:
    talk = [{"role": "user", "content": "What comes next?"}, {"role": "assistant", "content": "The next."}]
    content = (json.dumps({"messages": talk}) + "\n").encode() * 12
    file = await call("create_file", file=("train.jsonl", content), purpose="fine-tune")
    assert (file.status, file.bytes) == ("processed", len(content))
    assert (await call("file_retrieve", file_id=file.id)).id == file.id
    assert file.id in [one.id for one in (await call("file_list", purpose="fine-tune")).data]
    assert (await call("file_content", file_id=file.id)).content == content
    walked.append("files")

    given = {"model": MODEL, "training_file": file.id, "hyperparameters": {"n_epochs": 1, "batch_size": 6}}
    job = await call("create_fine_tuning_job", seed=7, suffix="walk", **given)
    assert (job.status, job.model, job.seed) == ("validating_files", MODEL, 7)
    other = await call("create_fine_tuning_job", **given)
    listed = [one.id for one in (await call("list_fine_tuning_jobs", limit=100)).data]
    assert {job.id, other.id} <= set(listed)
    await call("cancel_fine_tuning_job", fine_tuning_job_id=other.id)
    assert (await until_ended(other.id)).status == "cancelled"
    done = await until_ended(job.id)
    assert (done.status, done.error) == ("succeeded", None)
    walked.append("jobs")

    table = (await call("file_content", file_id=done.result_files[0])).content.decode().splitlines()
    assert table[0].startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy")
    assert len(table) == 3
    walked.append("results")

    refused = ""
    try:
        await call("create_fine_tuning_job", **(given | {"hyperparameters": {"n_epochs": 99}}))
    except openai.BadRequestError as error:
        refused = str(error)
    assert "hyperparameters.n_epochs" in refused
    gone = await call("file_delete", file_id=file.id)
    assert (gone.id, gone.deleted) == (file.id, True)
    walked.append("errors")
    print(json.dumps({"version": version("litellm"), "walked": walked}))


asyncio.run(main())
