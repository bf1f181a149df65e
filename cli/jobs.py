"""`attune jobs`: make, list, look at, cancel and watch fine-tuning jobs."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import connection, exits, files, options, output, watch
from cli.exits import Refused

if TYPE_CHECKING:
    from openai import OpenAI

app = typer.Typer(no_args_is_help=True, help="Fine-tuning jobs.", epilog=exits.HELP)

Model = Annotated[str, typer.Option("--model", help="A base model, an alias, or a tuned model.")]
TrainingFile = Annotated[str, typer.Option("--training-file", help="An id (file-…) or a data file to upload.")]
ValidationFile = Annotated[str | None, typer.Option("--validation-file", help="An id or a file.")]
Seed = Annotated[int | None, typer.Option("--seed")]
Epochs = Annotated[int | None, typer.Option("--epochs")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Examples per optimizer step.")]
Multiplier = Annotated[float | None, typer.Option("--learning-rate-multiplier")]
MethodName = Annotated[str, typer.Option("--method", help="supervised, or dpo for preferences.")]
Beta = Annotated[float | None, typer.Option("--beta", help="Of the method dpo.")]
Ext = Annotated[str | None, typer.Option("--ext", help="Extension options as JSON.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="One extension option, such as lora.rank=8; may be repeated and wins over --ext."),
]
Watch = Annotated[bool, typer.Option("--watch", help="Follow it to its end.")]
JobId = Annotated[str, typer.Argument(help="ftjob-…")]


@app.command()
def create(
    model: Model,
    training_file: TrainingFile,
    validation_file: ValidationFile = None,
    suffix: Annotated[str | None, typer.Option("--suffix", help="Part of the tuned model's name.")] = None,
    seed: Seed = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate_multiplier: Multiplier = None,
    method: MethodName = "supervised",
    beta: Beta = None,
    ext: Ext = None,
    settings: Set = None,
    watch_it: Watch = False,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Make a job, uploading its files first where they are paths."""
    extension = build_ext(ext, settings or [])
    client = connection.client(home)
    request = _request(client, model, training_file, validation_file, seed, show=not json)
    request["method"] = _method(method, epochs, batch_size, learning_rate_multiplier, beta)
    if suffix is not None:
        request["suffix"] = suffix
    job = client.fine_tuning.jobs.create(**request, extra_body={"ext": extension} if extension else None)
    if watch_it:
        if not json:
            output.note(job.id)
        watch.follow(client, job.id, as_json=json)
    elif json:
        output.as_json(job.model_dump(mode="json"))
    else:
        print(job.id)


@app.command()
def estimate(
    model: Model,
    training_file: TrainingFile,
    validation_file: ValidationFile = None,
    seed: Seed = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate_multiplier: Multiplier = None,
    method: MethodName = "supervised",
    beta: Beta = None,
    ext: Ext = None,
    settings: Set = None,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """What a job would take, before it is made: tokens, memory, time, price, the wait, and advice.

    Exit status 1 when no worker could train it.
    """
    from cli import estimate as text

    extension = build_ext(ext, settings or [])
    client = connection.client(home)
    request = _request(client, model, training_file, validation_file, seed, show=not json)
    request["method"] = _method(method, epochs, batch_size, learning_rate_multiplier, beta)
    found = connection.ask(client, "/fine_tuning/jobs/estimate", request | ({"ext": extension} if extension else {}))
    if json:
        output.as_json(found)
    else:
        text.show(found)
    if not found["feasible"]:
        raise typer.Exit(exits.Exit.FAILED)


def _request(
    client: "OpenAI", model: str, training_file: str, validation_file: str | None, seed: int | None, *, show: bool
) -> dict[str, Any]:
    request: dict[str, Any] = {"model": model, "training_file": _file_id(client, training_file, show=show)}
    if validation_file is not None:
        request["validation_file"] = _file_id(client, validation_file, show=show)
    if seed is not None:
        request["seed"] = seed
    return request


def _method(
    kind: str, epochs: int | None, batch_size: int | None, learning_rate_multiplier: float | None, beta: float | None
) -> dict[str, Any]:
    given = {
        "n_epochs": epochs,
        "batch_size": batch_size,
        "learning_rate_multiplier": learning_rate_multiplier,
        "beta": beta,
    }
    known = {name: value for name, value in given.items() if value is not None}
    return {"type": kind, kind: {"hyperparameters": known}}


def _file_id(client: "OpenAI", given: str, *, show: bool) -> str:
    """An id as it is; the id of a path once it is uploaded."""
    path = Path(given).expanduser()
    if path.is_file():
        return files.send(client, path, show=show).id
    if given.startswith("file-"):
        return given
    raise Refused(f"{given} is neither a file here nor a file's id (file-…)", exits.Exit.USAGE)


def build_ext(text: str | None, settings: list[str]) -> dict[str, Any]:
    """``--ext`` and then each ``--set a.b=value``; a value is JSON where it reads as JSON, else text."""
    try:
        ext = jsonlib.loads(text) if text is not None else {}
    except ValueError as error:
        raise Refused(f"--ext is not JSON: {error}", exits.Exit.USAGE) from None
    if not isinstance(ext, dict):
        raise Refused("--ext must be a JSON object", exits.Exit.USAGE)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not all(name.split(".")):
            raise Refused(f"--set {setting}: write NAME=VALUE, such as lora.rank=8", exits.Exit.USAGE)
        *parents, last = name.split(".")
        place = ext
        for parent in parents:
            inner = place.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise Refused(f"--set {setting}: {parent} already has the value {inner!r}", exits.Exit.USAGE)
            place = inner
        try:
            place[last] = jsonlib.loads(value)
        except ValueError:
            place[last] = value
    return ext


@app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many of the newest.")] = 20,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """The newest jobs."""
    page = connection.client(home).fine_tuning.jobs.list(limit=min(limit, 100))
    jobs: list[dict[str, Any]] = []
    for job in page:
        if len(jobs) == limit:
            break
        jobs.append(job.model_dump(mode="json"))
    if json:
        output.as_json(jobs)
        return
    output.table(
        ["ID", "STATUS", "MODEL", "PROGRESS", "CREATED", "TUNED MODEL"],
        [
            (
                job["id"],
                job["status"],
                job["model"],
                _percent(job),
                output.moment(job["created_at"]),
                job["fine_tuned_model"],
            )
            for job in jobs
        ],
    )


def _percent(job: dict[str, Any]) -> str:
    progress = (job.get("ext") or {}).get("progress") or {}
    percent = progress.get("percent")
    return f"{percent:.0f} %" if isinstance(percent, int | float) else ""


@app.command()
def get(job_id: JobId, home: options.Home = None, json: options.Json = False) -> None:
    """All about one job."""
    job = connection.client(home).fine_tuning.jobs.retrieve(job_id).model_dump(mode="json")
    if json:
        output.as_json(job)
        return
    for name, value in {**job, **(job.get("ext") or {})}.items():
        if name in ("ext", "object") or value in (None, [], {}):
            continue
        if name in ("created_at", "finished_at", "estimated_finish", "phase_since"):
            value = output.moment(value)
        output.line(f"{name:<20} {value if isinstance(value, str) else jsonlib.dumps(value)}")


@app.command()
def cancel(job_id: JobId, home: options.Home = None, json: options.Json = False) -> None:
    """Ask a job to stop. Its checkpoints stay."""
    job = connection.client(home).fine_tuning.jobs.cancel(job_id)
    if json:
        output.as_json(job.model_dump(mode="json"))
    else:
        output.line(f"{job.id} is {job.status}")


@app.command("watch")
def watch_job(job_id: JobId, home: options.Home = None, json: options.Json = False) -> None:
    """Follow a job to its end: a progress bar, or with --json one JSON object a line.

    Exit status 0 when it succeeded, 3 when it failed, 4 when it was cancelled. Ctrl-C leaves the job running.
    """
    watch.follow(connection.client(home), job_id, as_json=json)
