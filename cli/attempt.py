"""`attune try`: a prompt answered at the terminal, on this machine, by a model of the service.

The service trains and keeps models and serves none: weights are downloaded once, checked, and kept in
``~/.cache/attune/models`` by the hash of what they are.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from cli import connection, options, output
from cli.exits import Exit, Refused

if TYPE_CHECKING:
    from openai import OpenAI

Json = dict[str, Any]  # Any: JSON
CHUNK_BYTES = 1 << 20
_UNUSED = ("parity.json", "training.json", "manifest.json", "merged/", "state.", "reference.", "best")
"""Beginnings of the names of files that answering does not need."""


def attempt(
    model: Annotated[str, typer.Argument(help="A base model, an alias, a tuned model (ft:…) or a checkpoint.")],
    prompt: Annotated[
        str | None, typer.Argument(help="What to say. Without it: a line each, until the input ends.")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Let the base model answer as well, first.")] = False,
    system: Annotated[str | None, typer.Option("--system", help="A system message before the prompt.")] = None,
    most: Annotated[int, typer.Option("--max-tokens", min=1, help="Of an answer.")] = 256,
    base_files: Annotated[
        Path | None,
        typer.Option("--base-files", exists=True, file_okay=False, help="The base model's folder, if it is here."),
    ] = None,
    home: options.Home = None,
) -> None:
    """Ask a model something. Its weights are downloaded once, and the answer is computed on this machine."""
    tuned, name = _weights(connection.client(home), model)
    if base and tuned is None:
        raise Refused(f"{model} is a base model: --base is for tuned ones", Exit.USAGE)
    folder = base_files or _base(home, name)
    with _loaded():
        from worker.chat import Chat

        chat = Chat(folder, tuned, both=base)
    for one in [prompt] if prompt is not None else (line.rstrip("\n") for line in sys.stdin):
        if not one.strip():
            continue
        for title, by_base in ((name, True), (model, False)) if base else ((None, False),):
            if title is not None:
                _write(f"── {title}\n")
            ended = chat.answer(one, _write, base=by_base, most=most, system=system)
            _write("\n")
            if not ended:
                output.note(f"{title or model} did not end its turn within {most} tokens")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _weights(client: "OpenAI", model: str) -> tuple[Path | None, str]:
    """Where a tuned model's weights are, and its base model's name."""
    if model.startswith("ft:"):
        return _tuned(client, model)
    return None, str(client.models.retrieve(model).model_dump()["ext"]["base_model"])


def _tuned(client: "OpenAI", model: str) -> tuple[Path, str]:
    """Folder and base model of a tuned model's weights, or a checkpoint's."""
    answer = connection.get(client, f"/models/{quote(model, safe='')}/artifacts")
    files = [file for file in answer["files"] if not file["path"].startswith(_UNUSED)]
    return _fetched(files, model), str(answer["base_model"])


def _base(home: Path | None, name: str) -> Path:
    import openai

    try:
        answer = connection.get(connection.admin(home), f"/admin/models/{quote(name, safe='')}?artifacts=true")
    except (openai.PermissionDeniedError, openai.AuthenticationError):
        raise Refused(
            f"this key may not download the base model {name}: give its folder with --base-files", Exit.FAILED
        ) from None
    return _fetched(answer["artifacts"] or [], name)


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attune" / "models"


def _fetched(files: list[Json], name: str) -> Path:
    """The folder with these files, downloaded where they are not there yet."""
    key = hashlib.sha256("".join(sorted(f"{file['path']} {file['sha256']}\n" for file in files)).encode()).hexdigest()
    folder = cache() / key[:32]
    missing = [file for file in files if not _has(folder / _inside(file["path"]), file)]
    if not missing:
        return folder
    with output.bytes_progress(True) as bar:
        task = bar.add_task(name, total=sum(file["bytes"] for file in missing))
        for file in missing:
            _download(file, folder / _inside(file["path"]), lambda count: bar.advance(task, count))
    return folder


def _inside(path: str) -> PurePosixPath:
    """A server's file name never leads out of the folder."""
    return PurePosixPath(*(part for part in PurePosixPath(path).parts if part not in ("/", "..")))


def _has(path: Path, file: Json) -> bool:
    # A file gets its name when its hash was right; what changes it later changes its size, mostly.
    return path.exists() and path.stat().st_size == file["bytes"]


def _download(file: Json, target: Path, advance: Any) -> None:
    import httpx

    target.parent.mkdir(parents=True, exist_ok=True)
    partial, digest = target.with_name(f".{target.name}.{os.getpid()}.part"), hashlib.sha256()
    try:
        with httpx.stream("GET", file["url"], timeout=60) as answer, partial.open("wb") as out:
            answer.raise_for_status()
            for chunk in answer.iter_bytes(CHUNK_BYTES):
                out.write(chunk)
                digest.update(chunk)
                advance(len(chunk))
        if digest.hexdigest() != file["sha256"]:
            raise Refused(f"{file['path']} came damaged: its sha256 is not the promised one. Try again.")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _loaded() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise Refused(f"answering needs {error.name}: pip install 'attune[worker]'") from None
