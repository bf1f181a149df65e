"""`attune files`: data sets."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
