"""`attune files`: data sets."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

import typer

from cli import connection, exits, options, output
from cli.exits import Refused

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import FileObject

app = typer.Typer(no_args_is_help=True, help="Data sets and results.", epilog=exits.HELP)


class Counted(io.FileIO):
    """A file that tells how far it has been read, for a progress bar around the SDK's upload."""

    def __init__(self, path: Path, moved: Callable[[int], None]) -> None:
        super().__init__(path, "rb")
        self._moved = moved

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self._moved(self.tell())
        return data


def send(client: "OpenAI", path: Path, *, show: bool) -> "FileObject":
    """Upload a training file and wait until it is checked; raises Refused with its faults when it is no good."""
    with output.bytes_progress(show) as bar:
        task = bar.add_task(path.name, total=path.stat().st_size)
        with Counted(path, lambda read: bar.update(task, completed=read)) as file:
            made = client.files.create(file=(path.name, file), purpose="fine-tune")
    if made.status == "uploaded":
        if show:
            output.note(f"{path.name} is being checked")
        made = client.files.wait_for_processing(made.id, poll_interval=1.0)
    if made.status == "error":
        raise Refused(_faults(path, made.model_dump()))
    return made


def _faults(path: Path, file: dict[str, Any]) -> str:
    """Every fault the report names, a line each, and how many there are in all."""
    from core.formats.report import Fault

    report = (file.get("ext") or {}).get("report") or {}
    faults = [Fault.model_validate(fault) for fault in report.get("faults", [])]
    lines = [f"{path} ({file['id']}) can't be used"]
    if not faults:
        return f"{lines[0]}: {file.get('status_details') or 'it has faults'}"
    lines += [f"  {fault}" for fault in faults]
    more = report.get("fault_count", 0) - len(faults)
    return "\n".join([*lines, f"  … and {more} more"] if more > 0 else lines)


@app.command()
def upload(
    paths: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="JSONL files.")],
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Upload training data and have it checked."""
    client = connection.client(home)
    made = [send(client, path, show=not json) for path in paths]
    if json:
        output.as_json([file.model_dump(mode="json") for file in made])
        return
    for file in made:
        # The id alone on standard output: FILE=$(attune files upload train.jsonl)
        print(file.id)


@app.command("list")
def list_files(
    purpose: Annotated[str | None, typer.Option("--purpose", help="fine-tune or fine-tune-results.")] = None,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Files of this project, newest first."""
    client = connection.client(home)
    listed = client.files.list(purpose=purpose) if purpose else client.files.list()
    files = [file.model_dump(mode="json") for file in listed]
    if json:
        output.as_json(files)
        return
    output.table(
        ["ID", "NAME", "SIZE", "PURPOSE", "STATUS", "CREATED"],
        [
            (f["id"], f["filename"], output.size(f["bytes"]), f["purpose"], f["status"], output.moment(f["created_at"]))
            for f in files
        ],
    )


ModelOption = Annotated[
    list[str] | None, typer.Option("--model", help="A base model to count tokens for; may be repeated, up to 4 times.")
]
FindingsOption = Annotated[
    Path | None, typer.Option("--findings", help="Write everything that was found about a line there, as JSON lines.")
]


@app.command()
def report(
    file_id: Annotated[str, typer.Argument(help="A file of this project.")],
    model: ModelOption = None,
    validation: Annotated[
        str | None, typer.Option("--validation", help="The id of a file to look for the same rows in.")
    ] = None,
    findings: FindingsOption = None,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """What there is to know about a file: faults, odd and double rows, how base models see it."""
    # In the path, since the SDK would write a list as `model[]=`.
    query = [("model", name) for name in model or []]
    if validation is not None:
        query.append(("validation_file", validation))
    found = connection.ask(connection.client(home), f"/files/{quote(file_id, safe='')}/report?{urlencode(query)}")
    if findings is not None:
        import httpx

        findings.write_bytes(httpx.get(found["findings"]["url"], timeout=60).raise_for_status().content)
    _tell(file_id, found, json)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A data file.")],
    model: Annotated[
        list[Path] | None,
        typer.Option("--model", exists=True, file_okay=False, help="A model's folder to count tokens with."),
    ] = None,
    validation: Annotated[
        Path | None, typer.Option("--validation", exists=True, dir_okay=False, help="Look for the same rows in it.")
    ] = None,
    format: Annotated[str, typer.Option("--format", help="How rows are read, if not by what they look like.")] = "auto",
    findings: FindingsOption = None,
    json: options.Json = False,
) -> None:
    """The same report on a file of this machine, without a service."""
    from cli import offline

    _tell(str(path), offline.report(path, model or [], validation, format, findings), json)


def _tell(name: str, found: dict[str, Any], json: bool) -> None:
    from cli import report as text

    if json:
        output.as_json(found)
    else:
        text.show(name, found)
    if text.faulty(found):
        raise typer.Exit(exits.Exit.FAILED)


@app.command()
def preview(
    file: Annotated[str, typer.Argument(help="A data file, or the id of one.")],
    model: Annotated[str, typer.Option("--model", help="A base model of the service, or a model's folder.")],
    limit: Annotated[int, typer.Option("--limit", min=1, max=50, help="Rows to show.")] = 5,
    tokens: Annotated[bool, typer.Option("--tokens", help="List each token with its id and weight.")] = False,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """The first rows as the model sees them; what is trained on stands out."""
    from cli import offline
    from cli import preview as text

    path, folder = Path(file), Path(model)
    if path.is_file() and folder.is_dir():
        found = offline.preview(path, folder, limit)
    else:
        which = {"rows": offline.rows(path, min(limit + 1, 50))} if path.is_file() else {"training_file": file}
        body = {"model": model, "limit": limit, **which}
        found = connection.ask(connection.client(home), "/fine_tuning/preview", body)
    if json:
        output.as_json(found)
    else:
        text.show(found, tokens=tokens)
