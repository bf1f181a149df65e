"""The whole surface through openai-python in its strict mode: ``python walk.py sync|async``.

Runs in environments that have nothing but an SDK, three majors of it. One text serves the two clients: what the
asynchronous one gives back is awaited, what the other gives is there already.
"""

import asyncio
import hashlib
import inspect
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI

MODEL = "attune/tiny"
ENDED = ("succeeded", "failed", "cancelled")
TAG = uuid.uuid4().hex[:8]

walked: list[str] = []


async def now(answer: Any) -> Any:
    return await answer if inspect.isawaitable(answer) else answer


async def every(page: Any) -> list[Any]:
    """All that a list gives, page after page, as the SDK follows them."""
    if hasattr(page, "__aiter__"):
        return [item async for item in page]
    return list(page)


async def refusal(kind: type[Any], call: Callable[[], Any]) -> Any:
    """The error of this class that the call ends with, which the SDK was told not to try again."""
    answer = error = None
    try:
        answer = await now(call())
    except kind as caught:
        error = caught
    assert error is not None, f"no {kind.__name__} but {answer!r}"
    assert error.response.request.headers["x-stainless-retry-count"] == "0", "it was tried again"
    assert error.request_id, "no x-request-id"
    assert set(error.body) == {"message", "type", "param", "code"}, error.body
    return error


async def until(get: Callable[[], Any], true: Callable[[Any], bool], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        answer = await now(get())
        if true(answer):
            return answer
        assert time.monotonic() < deadline, f"not within {seconds} s: {answer!r}"
        await asyncio.sleep(0.1)


def rows(count: int) -> bytes:
    talks = (
        {
            "messages": [
                {"role": "user", "content": f"What comes after {n}?"},
                {"role": "assistant", "content": str(n + 1)},
            ]
        }
        for n in range(count)
    )
    return "".join(json.dumps(talk) + "\n" for talk in talks).encode()


async def files(client: Any) -> str:
    content = rows(12)
    file = await now(client.files.create(file=("train.jsonl", content), purpose="fine-tune"))
    file = await now(client.files.wait_for_processing(file.id, poll_interval=0.1))
    assert (file.status, file.bytes, file.filename) == ("processed", len(content), "train.jsonl")
    assert await now(client.files.retrieve(file.id)) == file
    assert (await now(client.files.content(file.id))).content == content

    expiring = [
        await now(
            client.files.create(
                file=(f"{TAG}-{n}.txt", b"some text"),
                purpose="user_data",
                expires_after={"anchor": "created_at", "seconds": 3600},
            )
        )
        for n in range(3)
    ]
    assert all(made.expires_at == made.created_at + 3600 for made in expiring)
    newest_first = await every(client.files.list(purpose="user_data", limit=1))
    mine = [listed.id for listed in newest_first if listed.filename.startswith(TAG)]
    assert mine == [made.id for made in reversed(expiring)]
    oldest_first = await every(client.files.list(purpose="user_data", limit=2, order="asc", after=expiring[0].id))
    assert [listed.id for listed in oldest_first if listed.filename.startswith(TAG)] == mine[-2::-1]
    for made in expiring:
        gone = await now(client.files.delete(made.id))
        assert (gone.id, gone.deleted, gone.object) == (made.id, True, "file")
    await refusal(openai.NotFoundError, lambda: client.files.retrieve(expiring[0].id))
    walked.append("files")
    return str(file.id)


async def uploads(client: Any) -> None:
    content = rows(40)
    upload = await now(
        client.uploads.upload_file_chunked(
            file=content,
            filename="parts.jsonl",
            bytes=len(content),
            mime_type="text/jsonl",
            purpose="fine-tune",
            part_size=1000,
            md5=hashlib.md5(content).hexdigest(),
        )
    )
    assert (upload.status, upload.bytes) == ("completed", len(content))
    file = await now(client.files.wait_for_processing(upload.file.id, poll_interval=0.1))
    assert (file.status, file.bytes) == ("processed", len(content))
    assert (await now(client.files.content(file.id))).content == content
    await now(client.files.delete(file.id))

    other = await now(
        client.uploads.create(bytes=10, filename="never.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    )
    assert other.status == "pending"
    part = await now(client.uploads.parts.create(other.id, data=b"01234"))
    assert part.upload_id == other.id
    # Five bytes of ten.
    await refusal(openai.BadRequestError, lambda: client.uploads.complete(other.id, part_ids=[part.id]))
    assert (await now(client.uploads.cancel(other.id))).status == "cancelled"
    await refusal(openai.ConflictError, lambda: client.uploads.complete(other.id, part_ids=[part.id]))
    walked.append("uploads")


def wanted(file_id: str, **more: Any) -> dict[str, Any]:
    """A job of two steps, which are one epoch."""
    return {
        "model": MODEL,
        "training_file": file_id,
        "seed": 7,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 6}}},
        "extra_body": {"ext": {"max_steps": 2, "lora": {"rank": 2}}},
        **more,
    }


async def submit(client: Any, file_id: str) -> str:
    job = await now(
        client.fine_tuning.jobs.create(
            **wanted(file_id, validation_file=file_id, suffix="walk", metadata={"walk": TAG})
        )
    )
    assert (job.status, job.model, job.metadata, job.seed) == ("validating_files", MODEL, {"walk": TAG}, 7)
    assert job.ext["options"] == {"max_steps": 2, "lora": {"rank": 2}}
    needed = await refusal(openai.ConflictError, lambda: client.files.delete(file_id))
    assert job.id in needed.message
    listed = await every(client.fine_tuning.jobs.list(limit=1, metadata={"walk": TAG}))
    assert [one.id for one in listed] == [job.id]
    return str(job.id)


async def jobs(client: Any, file_id: str, job_id: str) -> Any:
    """This job through to its model; another paused, resumed and cancelled."""
    again = {"extra_headers": {"Idempotency-Key": f"walk-{TAG}"}}
    other = await now(client.fine_tuning.jobs.create(**wanted(file_id), **again))
    assert (await now(client.fine_tuning.jobs.create(**wanted(file_id), **again))).id == other.id
    await refusal(
        openai.UnprocessableEntityError,
        lambda: client.fine_tuning.jobs.create(**wanted(file_id, suffix="other"), **again),
    )

    without = await now(client.fine_tuning.jobs.list(limit=100, extra_query={"metadata": "null"}))
    ids = [one.id for one in without.data]
    assert other.id in ids
    assert job_id not in ids
    page = await now(client.fine_tuning.jobs.list(limit=1, after=other.id))
    assert [one.id for one in page.data] == [job_id]

    paused = await now(client.fine_tuning.jobs.pause(other.id))
    assert paused.status in ("validating_files", "queued", "running")
    waiting = await until(lambda: client.fine_tuning.jobs.retrieve(other.id), lambda one: one.ext["phase"] == "paused")
    assert waiting.status == "queued"
    assert (await now(client.fine_tuning.jobs.resume(other.id))).status == "queued"
    await now(client.fine_tuning.jobs.cancel(other.id))
    ended = await until(lambda: client.fine_tuning.jobs.retrieve(other.id), lambda one: one.status in ENDED)
    assert (ended.status, ended.fine_tuned_model) == ("cancelled", None)
    await refusal(openai.ConflictError, lambda: client.fine_tuning.jobs.resume(other.id))

    done = await until(lambda: client.fine_tuning.jobs.retrieve(job_id), lambda one: one.status in ENDED)
    assert done.status == "succeeded", done.error
    assert done.trained_tokens > 0
    assert done.finished_at >= done.created_at
    assert done.hyperparameters.batch_size == done.method.supervised.hyperparameters.batch_size == 6
    assert done.hyperparameters.n_epochs != "auto"
    await refusal(openai.ConflictError, lambda: client.fine_tuning.jobs.cancel(job_id))
    walked.append("jobs")
    return done


async def events(client: Any, job: Any) -> None:
    found = await every(client.fine_tuning.jobs.list_events(job.id, limit=2))
    assert [event.data["number"] for event in found] == list(range(len(found), 0, -1))
    said = [event.message for event in found]
    assert f"New fine-tuned model created: {job.fine_tuned_model}" in said
    metrics = [event for event in found if event.type == "metrics"]
    assert {event.data["step"] for event in metrics} <= {1, 2}
    assert metrics
    assert all(event.data["train_loss"] > 0 for event in metrics)
    walked.append("events")


async def checkpoints(client: Any, job: Any) -> Any:
    found = await every(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [one.step_number for one in found] == [2]
    assert found[0].fine_tuning_job_id == job.id
    assert found[0].fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-2"
    assert found[0].metrics.full_valid_loss > 0
    walked.append("checkpoints")
    return found[0]


async def permissions(client: Any, checkpoint: Any) -> None:
    name, project = checkpoint.fine_tuned_model_checkpoint, os.environ["WALK_PROJECT"]
    door = client.fine_tuning.checkpoints.permissions
    (given,) = await every(door.create(name, project_ids=[project]))
    assert given.project_id == project
    told = await now(door.retrieve(name, project_id=project, limit=10, order="ascending"))
    assert [one.id for one in told.data] == [given.id]
    if hasattr(door, "list"):
        assert [one.id for one in await every(door.list(name, limit=1))] == [given.id]
    gone = await now(door.delete(given.id, fine_tuned_model_checkpoint=name))
    assert (gone.id, gone.deleted) == (given.id, True)
    await refusal(openai.NotFoundError, lambda: door.delete(given.id, fine_tuned_model_checkpoint=name))
    walked.append("permissions")


async def results(client: Any, job: Any) -> None:
    """The metrics first, then the weights, through nothing but the SDK."""
    table = (await now(client.files.content(job.result_files[0]))).text.splitlines()
    assert table[0].startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy")
    assert [row.split(",")[0] for row in table[1:]] == ["1", "2"]
    by_name = {}
    for id in job.result_files:
        file = await now(client.files.retrieve(id))
        assert file.purpose == "fine-tune-results"
        by_name[file.filename] = file
    weights = by_name["adapter_model.safetensors"]
    content = (await now(client.files.content(weights.id))).content
    assert (len(content), hashlib.sha256(content).hexdigest()) == (weights.bytes, weights.ext["sha256"])
    assert len(by_name) == len(job.result_files)
    walked.append("results")


async def models(client: Any, job: Any) -> None:
    # The name has a slash, which the newest SDK sends as %2F and the older ones as it is.
    base = await now(client.models.retrieve(MODEL))
    assert base.id == MODEL
    tuned = await now(client.models.retrieve(job.fine_tuned_model))
    names = [model.id for model in await every(client.models.list())]
    assert {MODEL, "attune-tiny", tuned.id} <= set(names)
    await refusal(openai.PermissionDeniedError, lambda: client.models.delete(MODEL))
    gone = await now(client.models.delete(tuned.id))
    assert (gone.id, gone.deleted, gone.object) == (tuned.id, True, "model")
    missing = await refusal(openai.NotFoundError, lambda: client.models.retrieve(tuned.id))
    assert missing.code == "model_not_found"
    walked.append("models")


async def errors(client: Any, file_id: str) -> None:
    create = client.fine_tuning.jobs.create
    epochs = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 0}}}
    wrong = await refusal(openai.BadRequestError, lambda: create(**wanted(file_id, method=epochs)))
    assert wrong.param == "method.supervised.hyperparameters.n_epochs"
    assert (wrong.code, wrong.type) == ("invalid_value", "invalid_request_error")
    typo = {"ext": {"lora": {"rnak": 2}}}
    wrong = await refusal(openai.BadRequestError, lambda: create(**wanted(file_id, extra_body=typo)))
    assert wrong.param == "ext.lora.rnak"
    assert "ext.lora.rank" in wrong.message
    wrong = await refusal(openai.BadRequestError, lambda: create(**wanted("file-none")))
    assert (wrong.param, wrong.code) == ("training_file", "invalid_training_file")
    wrong = await refusal(openai.BadRequestError, lambda: create(**wanted(file_id, method={"type": "reinforcement"})))
    assert wrong.param == "method.type"

    wrong = await refusal(openai.BadRequestError, lambda: client.fine_tuning.jobs.list(after="ftjob-none"))
    assert wrong.param == "after"
    await refusal(openai.NotFoundError, lambda: client.fine_tuning.jobs.retrieve("ftjob-none"))
    stranger = client.with_options(api_key="sk-attune-nobodys")
    unknown = await refusal(openai.AuthenticationError, lambda: stranger.fine_tuning.jobs.list())
    assert unknown.code == "invalid_api_key"
    talk: Any = [{"role": "user", "content": "Hello"}]
    absent = await refusal(openai.NotFoundError, lambda: client.chat.completions.create(model=MODEL, messages=talk))
    assert "not offered" in absent.message
    raw = await now(client.files.with_raw_response.list(limit=1))
    assert raw.headers["x-request-id"]
    walked.append("errors")


@asynccontextmanager
async def told(client: Any) -> AsyncIterator[Callable[[Any], Awaitable[None]]]:
    """Enters with a webhook endpoint; what it gives checks that a receiver heard of a job's end."""
    got: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((dict(self.headers.items()), body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing to the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    endpoints = client.webhooks
    assert "fine_tuning.job.succeeded" in (await now(endpoints.event_types.list())).data
    url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    made = await now(endpoints.create(name=f"walk {TAG}", url=url, event_types=["fine_tuning.job.succeeded"]))
    secret = made.signing_secret

    async def heard(job: Any) -> None:
        # Other walks' jobs may end meanwhile; they are told of as well.
        def unwrapped() -> list[Any]:
            return [endpoints.unwrap(body, headers, secret=secret) for headers, body in list(got)]

        await until(unwrapped, lambda all: any(event.data.id == job.id for event in all), 30)
        assert {event.type for event in unwrapped()} == {"fine_tuning.job.succeeded"}
        await walk_on()

    async def walk_on() -> None:
        nonlocal secret
        renamed = await now(endpoints.update(made.id, name="walked"))
        assert (await now(endpoints.retrieve(made.id))).name == renamed.name == "walked"
        assert made.id in [one.id for one in await every(endpoints.list(limit=1))]
        rotated = await now(endpoints.rotate_secret(made.id))
        assert rotated.signing_secret != secret
        secret = rotated.signing_secret
        got.clear()
        tested = await now(endpoints.test(made.id, event_type="fine_tuning.job.succeeded"))
        assert tested.status_code == 204
        (headers, body), *_ = got
        assert endpoints.unwrap(body, headers, secret=secret).type == "fine_tuning.job.succeeded"
        wrong = await refusal(
            openai.BadRequestError,
            lambda: endpoints.create(name="inside", url="http://10.0.0.1/", event_types=["fine_tuning.job.failed"]),
        )
        assert wrong.param == "url"

    try:
        yield heard
        gone = await now(endpoints.delete(made.id))
        assert (gone.id, gone.deleted) == (made.id, True)
        await refusal(openai.NotFoundError, lambda: endpoints.retrieve(made.id))
        walked.append("webhooks")
    finally:
        server.shutdown()
        server.server_close()


@asynccontextmanager
async def untold() -> AsyncIterator[Callable[[Any], Awaitable[None]]]:
    """Older SDKs have no webhook endpoints."""

    async def heard(job: Any) -> None:
        pass

    yield heard


async def walk(client: Any) -> None:
    file_id = await files(client)
    async with told(client) if hasattr(client.webhooks, "create") else untold() as heard:
        job_id = await submit(client, file_id)
        # While it trains.
        await uploads(client)
        await errors(client, file_id)
        job = await jobs(client, file_id, job_id)
        await heard(job)
    await events(client, job)
    await permissions(client, await checkpoints(client, job))
    await results(client, job)
    await models(client, job)
    await now(client.files.delete(file_id))


async def main(way: str) -> None:
    if way == "sync":
        with OpenAI(_strict_response_validation=True) as client:
            await walk(client)
    else:
        async with AsyncOpenAI(_strict_response_validation=True) as client:
            await walk(client)
    print(json.dumps({"version": openai.VERSION, "walked": walked}))


asyncio.run(main(sys.argv[1]))
