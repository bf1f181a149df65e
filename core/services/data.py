"""The data files of a job: which it names, and whether it can learn from each."""

from typing import NamedTuple

from sqlalchemy import Select, or_
from sqlalchemy.orm import Session

from core import catalog
from core.config import Settings
from core.db import tenancy
from core.db.tables import File, Job
from core.db.tenancy import Tenant
from core.errors import BadRequest
from core.formats import rows
from core.formats.report import Format, Report
from core.options import JobOptions
from core.states import TERMINAL, FileStatus

TRAINABLE = "fine-tune"
"""The purpose of files that hold rows."""


class Named(NamedTuple):
    """A file, and where the job's body names it."""

    param: str
    file_id: str

    @property
    def code(self) -> str:
        """Of a job's error: a mixed file is training data, too."""
        return "invalid_validation_file" if self.param == "validation_file" else "invalid_training_file"


def named(training_file: str, validation_file: str | None, chosen: JobOptions) -> list[Named]:
    files = [Named("training_file", training_file)]
    if validation_file is not None:
        files.append(Named("validation_file", validation_file))
    return files + [Named(f"ext.data.mix[{n}].file_id", mix.file_id) for n, mix in enumerate(chosen.data.mix or [])]


def check_named(files: list[Named], chosen: JobOptions) -> None:
    """What the names alone say."""
    if chosen.data.validation_fraction is not None and any(file.param == "validation_file" for file in files):
        path = "ext.data.validation_fraction"
        raise BadRequest(f"{path} and validation_file exclude each other: give one of them.", param=path)
    training: set[str] = set()
    for file in files:
        if file.param == "validation_file":
            continue
        if file.file_id in training:
            message = f"{file.param}: the file {file.file_id!r} is named twice; a larger weight repeats a file."
            raise BadRequest(message, param=file.param)
        training.add(file.file_id)


def require(session: Session, tenant: Tenant, file: Named, method: str, chosen: JobOptions, settings: Settings) -> File:
    """The file, when a job of this method can learn from it. An unsettled one passes: prepare has the last word."""
    # FOR SHARE: a deletion of the file waits until this job, which needs it, is there to be seen.
    row = session.scalar(tenancy.owned(File, tenant).where(File.id == file.file_id).with_for_update(read=True))
    if row is None:
        raise BadRequest(f"{file.param}: there is no file {file.file_id!r}.", param=file.param, code=file.code)
    check_purpose(row, file.param, file.code)
    fault = unfit(row, file, method, chosen, settings)
    if fault is not None:
        raise fault
    return row


def check_purpose(row: File, param: str, code: str | None = None) -> None:
    if row.purpose != TRAINABLE:
        raise BadRequest(
            f'{param}: the file {row.id!r} was uploaded with the purpose "{row.purpose}", not "{TRAINABLE}".',
            param=param,
            code=code,
        )


def unfit(row: File, file: Named, method: str, chosen: JobOptions, settings: Settings) -> BadRequest | None:
    """Why a settled file can't be learned from, or None."""
    if row.status == FileStatus.UPLOADED:
        return None
    report = None if row.report is None else Report.model_validate(row.report)
    # Rows read in another way than the check has read them: prepare will say what they are.
    asked = reads_as(file, chosen)
    other = report is not None and asked not in ("auto", report.converted_from or report.format)
    if row.status == FileStatus.ERROR and not other:
        reason = row.status_details
        if report is not None and not report.spoiled(chosen.data.max_invalid_fraction):
            reason = None
        elif report is not None and chosen.data.max_invalid_fraction and not report.broken:
            reason = (
                f"{report.bad_rows} of its {report.rows + report.bad_rows} rows are bad, more than "
                f"ext.data.max_invalid_fraction allows ({chosen.data.max_invalid_fraction:g}): {reason}"
            )
        if reason is not None:
            return BadRequest(
                f"{file.param}: the file {row.id!r} can't be used: {reason}", param=file.param, code=file.code
            )
    if report is None:
        return None
    form: Format | None = rows.BY_NAME[asked].format if other else report.format
    formats = catalog.formats(method, chosen)
    if form not in formats:
        what = f"{method} with the loss {chosen.preference.loss}" if method == "dpo" else method
        return BadRequest(
            f"{file.param}: {form} rows don't fit the method {what}, which takes {', '.join(formats)} rows.",
            param=file.param,
            code=file.code,
        )
    if file.param == "training_file" and not other and report.rows < settings.min_examples:
        return BadRequest(
            f"Training file has {report.rows} example(s), but must have at least {settings.min_examples} examples.",
            param=file.param,
            code="invalid_n_examples",
        )
    return None


def reads_as(file: Named, chosen: JobOptions) -> str:
    """``ext.format`` tells how the rows of training and validation file are read; mixed ones are recognised."""
    return "auto" if file.param.startswith("ext.") else chosen.format


def users_of(tenant: Tenant, file_id: str) -> Select[Job]:
    """Jobs that have not ended and need the file."""
    mixed = Job.options.contains({"data": {"mix": [{"file_id": file_id}]}})
    needs = or_(Job.training_file == file_id, Job.validation_file == file_id, mixed)
    return tenancy.owned(Job, tenant).where(needs, Job.status.not_in(TERMINAL))
