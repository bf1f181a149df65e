"""What can be asked about data: requests checked, and what decides their answers named by its content."""

from typing import Any

from sqlalchemy.orm import Session

from core import catalog
from core.config import Settings
from core.db.tables import BaseModel, File
from core.db.tenancy import Tenant
from core.errors import BadRequest, Conflict, NotFound
from core.schemas.jobs import JobCreate
from core.schemas.reports import FileValidate, PreviewCreate
from core.services import base_models, files, jobs
from core.services.answers import Question
from core.services.data import check_purpose
from core.states import AnswerKind

MODELS_AT_ONCE = 4
"""Each is a tokenizer in memory."""


def report(session: Session, tenant: Tenant, file_id: str, models: list[str], validation_file: str | None) -> Question:
    data = files.readable(session, tenant, file_id)
    check_purpose(data, "file_id")
    validation = _other(session, tenant, validation_file, "validation_file")
    bases = _bases(session, models)
    inputs = {"data": data.sha256, "validation": validation.sha256 if validation else None, "models": _contents(bases)}
    return Question(AnswerKind.REPORT, inputs, _places(data, validation, bases), _sha256s(data, validation))


def validate(session: Session, tenant: Tenant, file_id: str, wanted: FileValidate, settings: Settings) -> Question:
    data = files.readable(session, tenant, file_id)
    check_purpose(data, "file_id")
    understood = jobs.understood(JobCreate(training_file=file_id, **wanted.model_dump(exclude_none=True)))
    validation = _other(session, tenant, wanted.validation_file, "validation_file")
    bases = _bases(session, [wanted.model])
    inputs = {
        "data": data.sha256,
        "validation": validation.sha256 if validation else None,
        "models": _contents(bases),
        "method": understood.method,
        "formats": list(catalog.formats(understood.method, understood.options)),
        "ext": wanted.ext or {},
        "min_examples": settings.min_examples,
    }
    return Question(AnswerKind.VALIDATE, inputs, _places(data, validation, bases), _sha256s(data, validation))


def preview(session: Session, tenant: Tenant, wanted: PreviewCreate) -> Question:
    if (wanted.training_file is None) == (wanted.rows is None):
        raise BadRequest("training_file: give either a file or rows.", param="training_file")
    body = wanted.model_dump(exclude_none=True, include={"model", "method", "ext"})
    jobs.understood(JobCreate(training_file=wanted.training_file or "rows", **body))
    data = _other(session, tenant, wanted.training_file, "training_file")
    bases = _bases(session, [wanted.model])
    inputs = {
        "data": data.sha256 if data else None,
        "rows": wanted.rows,
        "models": _contents(bases),
        "ext": wanted.ext or {},
        "limit": wanted.limit,
    }
    places = {"training_file_id": data.id if data else None, "base_model_ids": [base.id for base in bases]}
    return Question(AnswerKind.PREVIEW, inputs, places, _sha256s(data))


def estimate(session: Session, tenant: Tenant, wanted: JobCreate, settings: Settings) -> Question:
    """What preparing the job would find. What that costs is reckoned anew each time: workers and rates change."""
    checked = jobs.checked(session, tenant, wanted, settings)
    files = {file.param: _other(session, tenant, file.file_id, file.param) for file in checked.files}
    bases = [checked.base]
    inputs = {
        "data": {param: file.sha256 for param, file in files.items() if file is not None},
        "models": _contents(bases),
        "method": checked.method,
        "hyperparameters": checked.hyperparameters.model_dump(mode="json"),
        "ext": {name: value for name, value in (wanted.ext or {}).items() if name != "dry_run"},
        "seed": wanted.seed or 0,
        "min_examples": settings.min_examples,
    }
    places = {
        "training_file_id": wanted.training_file,
        "validation_file_id": wanted.validation_file,
        "base_model_ids": [base.id for base in bases],
    }
    return Question(AnswerKind.ESTIMATE, inputs, places, _sha256s(*files.values()))


def _other(session: Session, tenant: Tenant, id: str | None, param: str) -> File | None:
    """A file that a body or a parameter names, rather than the path."""
    if id is None:
        return None
    try:
        row = files.readable(session, tenant, id)
    except NotFound:
        raise BadRequest(f"{param}: there is no file {id!r}.", param=param, code=f"invalid_{param}") from None
    except Conflict as error:
        raise Conflict(error.message, code=error.error_code, param=param) from None
    check_purpose(row, param)
    return row


def _bases(session: Session, names: list[str]) -> list[BaseModel]:
    if len(names) > MODELS_AT_ONCE:
        raise BadRequest(f"model: {len(names)} models given; a report shows up to {MODELS_AT_ONCE}.", param="model")
    found = [base_models.usable(session, name) for name in names]
    return list({base.id: base for base in found}.values())


def _contents(bases: list[BaseModel]) -> list[dict[str, Any]]:  # Any: JSON
    return [{"name": base.name, "sha256": base.content_sha256} for base in bases]


def _places(data: File, validation: File | None, bases: list[BaseModel]) -> dict[str, Any]:  # Any: JSON
    return {
        "file_id": data.id,
        "validation_file_id": validation.id if validation else None,
        "base_model_ids": [base.id for base in bases],
    }


def _sha256s(*rows: File | None) -> list[str]:
    return [row.sha256 for row in rows if row is not None]
