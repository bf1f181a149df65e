"""FileObject, as OpenAI's wire has it, with what the check found in ``ext``."""

from typing import Any, Literal

from pydantic import BaseModel

from core import clock
from core.db.tables import File

UPLOAD_PURPOSES = ("fine-tune", "batch", "assistants", "vision", "user_data", "evals")
RESULT_PURPOSE = "fine-tune-results"


class FileExt(BaseModel):
    format: str | None = None
    report: dict[str, Any] | None = None  # core/formats/report.Report; kept as the check wrote it
    sha256: str | None = None  # None: the parts of an upload are not joined yet, or can't be
    job_id: str | None = None


class FileObject(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None = None
    ext: FileExt


def of(row: File) -> FileObject:
    return FileObject(
        id=row.id,
        bytes=row.bytes,
        created_at=clock.unix(row.created_at),
        expires_at=clock.unix_or_none(row.expires_at),
        filename=row.filename,
        purpose=row.purpose,
        status=row.status,
        status_details=row.status_details,
        ext=FileExt(format=row.format, report=row.report, sha256=row.sha256 or None, job_id=row.job_id),
    )
