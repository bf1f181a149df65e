"""Data looked at on this machine, with the code that the service's workers run, and without a service."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cli import output
from cli.exits import Refused

Json = dict[str, Any]  # Any: JSON


def report(path: Path, models: list[Path], validation: Path | None, format: str, findings: Path | None) -> Json:
    """As ``GET /v1/files/{id}/report`` answers it."""
    from core.formats.survey import Asked, Findings, survey

    with tempfile.TemporaryDirectory(prefix="attune-") as name, output.percent_progress(True) as bar:
        scratch = Path(name)
        told = Findings(scratch)
        task = bar.add_task(path.name, total=100)
        with _said():
            own, others = (_lenses(models, scratch / of, told, of) for of in ("data", "validation"))
            asked = Asked(path, validation, own, others if validation is not None else [], format)
            found = survey(asked, told, scratch, lambda percent: bar.update(task, completed=percent))
        told.close()
        if findings is not None:
            findings.write_bytes(told.path.read_bytes())
        return found.model_dump(mode="json")


def _lenses(models: list[Path], scratch: Path, findings: Any, of: str) -> list[Any]:  # Any: the worker's, unloaded yet
    if not models:
        # Without a model nothing of the worker is needed, nor its packages.
        return []
    from core.options import JobOptions
    from worker.prepare import local
    from worker.prepare.lens import Lens
    from worker.prepare.tokenise import encoder

    found = [local.model(folder, scratch / str(number)) for number, folder in enumerate(models)]
    return [
        Lens(one.name, encoder(one.base, one.facts, JobOptions()), one.facts, JobOptions(), findings, of)
        for one in found
    ]


def preview(path: Path, folder: Path, limit: int) -> Json:
    """As ``POST /v1/fine_tuning/preview`` answers it."""
    with tempfile.TemporaryDirectory(prefix="attune-") as scratch, _said():
        from core.options import JobOptions
        from worker.prepare import local, tokenise
        from worker.prepare import preview as rows
        from worker.prepare.preview import Wanted

        model = local.model(folder, Path(scratch))
        wanted = Wanted(model.name, model.facts, JobOptions(), limit)
        return rows.preview(path, tokenise.encoder(model.base, model.facts, JobOptions()), wanted).model_dump(
            mode="json"
        )


def rows(path: Path, limit: int) -> list[Json]:
    """The first rows of a JSONL file, to be sent along instead of uploading it."""
    import orjson

    from core.formats.parse import MAX_LINE_BYTES

    found: list[Json] = []
    with path.open("rb") as file:
        while len(found) < limit and (line := file.readline(MAX_LINE_BYTES)):
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                row = None
            if not isinstance(row, dict):
                raise Refused(f"{path}: only the rows of JSONL files are sent along; upload it and give its id.")
            found.append(row)
    return found


@contextmanager
def _said() -> Iterator[None]:
    """What the worker's code refuses is said to the person, not thrown at them."""
    from core.errors import JobError

    try:
        yield
    except ModuleNotFoundError as error:
        raise Refused(f"counting tokens needs {error.name}: pip install 'attune[worker]'") from None
    except JobError as error:
        raise Refused(error.message) from None
