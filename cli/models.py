"""`attune models`: base models on offer, and the weights of tuned ones."""

import hashlib
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from cli import connection, exits, options, output
from cli.exits import Exit, Refused

if TYPE_CHECKING:
    from openai import OpenAI

app = typer.Typer(no_args_is_help=True, help="Base models, and tuned models' weights.", epilog=exits.HELP)

POLL_SECONDS = 1.0
CHUNK_BYTES = 1 << 20


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The name that jobs give as `model`.")],
    source: Annotated[str, typer.Option("--source", help="hf:OWNER/NAME, path:FOLDER or gguf:FILE.")],
    revision: Annotated[str | None, typer.Option("--revision", help="Revision of a Hugging Face repository.")] = None,
    chat_template: Annotated[
        Path | None, typer.Option("--chat-template", exists=True, dir_okay=False, help="A Jinja file to use.")
    ] = None,
    alias: Annotated[list[str] | None, typer.Option("--alias", help="Another name for it; may be repeated.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when it is ready, or at once.")] = True,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Register a base model. The worker reads the source: a path is a path on its machine."""
    client = connection.admin(home)
    body: dict[str, Any] = {"name": name, "source": _absolute(source)}
    if revision is not None:
        body["revision"] = revision
    if chat_template is not None:
        body["chat_template"] = chat_template.read_text()
    if alias:
        body["aliases"] = alias
    model = connection.post(client, "/admin/models", body)
    if wait:
        model = _wait(client, model, show=not json)
    if json:
        output.as_json(model)
    elif model["status"] == "ready":
        facts = model.get("facts") or {}
        output.line(f"{name} is ready: {_count(facts.get('parameters'))} parameters")
        if facts.get("license"):
            output.line(f"Its licence: {facts['license']}")
    if model["status"] == "failed":
        error = model.get("error") or {}
        raise Refused(f"{name} could not be registered: {error.get('message', 'no reason was given')}", Exit.JOB_FAILED)


def _absolute(source: str) -> str:
    """The worker runs in another folder, so a path is sent whole."""
    kind, colon, where = source.partition(":")
    if colon and kind in ("path", "gguf") and where:
        return f"{kind}:{Path(where).expanduser().absolute()}"
    return source


def _wait(client: "OpenAI", model: dict[str, Any], *, show: bool) -> dict[str, Any]:
    with output.percent_progress(show) as bar:
        task = bar.add_task(str(model["id"]), total=100)
        while model["status"] == "registering":
            progress = model.get("progress") or {}
            words = " ".join(filter(None, [model["id"], progress.get("message")]))
            bar.update(task, completed=progress.get("percent", 0), description=words)
            time.sleep(POLL_SECONDS)
            model = connection.get(client, f"/admin/models/{quote(model['id'], safe='')}")
        if model["status"] == "ready":
            bar.update(task, completed=100, description=str(model["id"]))
    return model


@app.command("list")
def list_models(home: options.Home = None, json: options.Json = False) -> None:
    """Base models, their aliases, and tuned models that this key may use."""
    models = [model.model_dump(mode="json") for model in connection.client(home).models.list()]
    if json:
        output.as_json(models)
        return
    rows = []
    for model in models:
        ext = model.get("ext") or {}
        kind = f"alias of {ext['alias_of']}" if ext.get("alias_of") else ext.get("kind")
        base = ext.get("base_model") if ext.get("kind") == "tuned" else None
        rows.append((model["id"], kind, base, output.moment(model["created"])))
    output.table(["MODEL", "KIND", "BASE MODEL", "CREATED"], rows)
    _note_unready(home)


def _note_unready(home: Path | None) -> None:
    """Registrations that have not ended well yet, for who may see them."""
    import openai

    try:
        registered = connection.get(connection.admin(home), "/admin/models")["data"]
    except (openai.PermissionDeniedError, openai.AuthenticationError):
        return
    for model in registered:
        if model["status"] != "ready":
            detail = (model.get("progress") or model.get("error") or {}).get("message")
            output.note(f"{model['id']}: {model['status']}" + (f" ({detail})" if detail else ""))


@app.command()
def download(
    model: Annotated[str, typer.Argument(help="A tuned model: ft:… (or the id of its job, ftjob-…).")],
    to: Annotated[Path | None, typer.Option("--to", help="Folder for the files. Default: the model's name.")] = None,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Download a tuned model's files and check each against its manifest."""
    client = connection.client(home)
    files = [client.files.retrieve(file_id) for file_id in _result_files(client, model)]
    folder = to or Path(model.replace(":", "-").replace("/", "--"))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with output.bytes_progress(not json) as bar:
        total = bar.add_task("all files", total=sum(file.bytes for file in files))
        for file in files:
            path = _inside(file.filename)
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = _download(client, file.id, target, lambda count: bar.advance(total, count))
            written.append({"path": path.as_posix(), "bytes": target.stat().st_size, "sha256": digest})
    checked = _check(folder, written)
    if json:
        output.as_json({"folder": str(folder), "files": written, "checked": checked})
        return
    output.table(["FILE", "SIZE", "SHA-256"], [(f["path"], output.size(f["bytes"]), f["sha256"]) for f in written])
    output.line(f"{len(written)} files in {folder}, {checked} of them checked against manifest.json")


def _inside(filename: str) -> PurePosixPath:
    """A server's file name never leads out of the folder."""
    return PurePosixPath(*(part for part in PurePosixPath(filename).parts if part not in ("/", "..")))


def _result_files(client: "OpenAI", model: str) -> list[str]:
    if model.startswith("ftjob-"):
        job = client.fine_tuning.jobs.retrieve(model)
        if not job.result_files:
            raise Refused(f"{model} has no files: its status is {job.status}")
        return job.result_files
    found = client.models.retrieve(model).model_dump()
    files = (found.get("ext") or {}).get("result_files")
    if not files:
        raise Refused(f"{model} is no tuned model: there is nothing of it to download")
    return [str(file) for file in files]


def _download(client: "OpenAI", file_id: str, target: Path, advance: Any) -> str:
    """Stream a file to disk and give its SHA-256; a broken download leaves no file of that name."""
    digest = hashlib.sha256()
    partial = target.with_name(f".{target.name}.part")
    try:
        with client.files.with_streaming_response.content(file_id) as answer, partial.open("wb") as file:
            for chunk in answer.iter_bytes(CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                advance(len(chunk))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return digest.hexdigest()


def _check(folder: Path, written: list[dict[str, Any]]) -> int:
    """Compare with manifest.json and give the number of files that it names; raises Refused on any difference."""
    import json

    if "manifest.json" not in {file["path"] for file in written}:
        raise Refused(f"the files in {folder} came without a manifest.json, so they could not be checked")
    manifest = json.loads((folder / "manifest.json").read_text())
    have = {file["path"]: file for file in written}
    for entry in manifest["files"]:
        file = have.get(_inside(entry["path"]).as_posix())
        if file is None:
            raise Refused(f"{entry['path']} is in the manifest and was not among the files")
        if file["sha256"] != entry["sha256"]:
            raise Refused(f"{folder / file['path']} is damaged: its sha256 is not the manifest's. Download it again.")
    return len(manifest["files"])


def _count(number: Any) -> str:
    return f"{number / 1e6:,.1f} million" if isinstance(number, int | float) else "an unknown number of"
