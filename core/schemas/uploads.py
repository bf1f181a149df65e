"""Upload and UploadPart, as OpenAI's wire has them, and the bodies that create and complete one."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from core import clock
from core.db.tables import File, Upload, UploadPart
from core.schemas import files
from core.schemas.files import FileObject

MAX_PARTS = 10_000


class _Body(BaseModel):
    # Strict: a wrong type in a request is a mistake, never a conversion. Keys that are not known are let be.
    model_config = ConfigDict(extra="allow", strict=True)


class ExpiresAfter(_Body):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2592000)


class UploadCreate(_Body):
    model_config = ConfigDict(
        extra="allow",
        strict=True,
        json_schema_extra={
            "example": {
                "bytes": 4294967296,
                "filename": "train.jsonl",
                "mime_type": "text/jsonl",
                "purpose": "fine-tune",
            }
        },
    )

    bytes: Annotated[int, Field(ge=1)]
    filename: str = Field(min_length=1, max_length=1024)
    mime_type: str = Field(min_length=1, max_length=255)
    # The same as files.UPLOAD_PURPOSES, spelled out for the type checker.
    purpose: Literal["fine-tune", "batch", "assistants", "vision", "user_data", "evals"]
    expires_after: ExpiresAfter | None = None


class UploadComplete(_Body):
    model_config = ConfigDict(
        extra="allow",
        strict=True,
        json_schema_extra={"example": {"part_ids": ["part_abc123", "part_def456"]}},
    )

    part_ids: list[str] = Field(min_length=1, max_length=MAX_PARTS)
    md5: str | None = Field(None, pattern="^[0-9a-fA-F]{32}$")


class UploadObject(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None = None


class UploadPartObject(BaseModel):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


def of(row: Upload, file: File | None = None) -> UploadObject:
    return UploadObject(
        id=row.id,
        bytes=row.bytes,
        created_at=clock.unix(row.created_at),
        expires_at=clock.unix(row.expires_at),
        filename=row.filename,
        purpose=row.purpose,
        status=row.status,
        file=None if file is None else files.of(file),
    )


def part_of(row: UploadPart) -> UploadPartObject:
    return UploadPartObject(id=row.id, created_at=clock.unix(row.created_at), upload_id=row.upload_id)
