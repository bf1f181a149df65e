"""Questions about data and their answers: a file's report, a verdict on it for a job, a preview of its rows."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from core.formats.findings import Preview, Survey, Verdict
from core.schemas.jobs import Method

Json = dict[str, Any]  # Any: checked by core/options, or by core/formats, which name every field at fault
PREVIEW_ROWS = 50


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class FileValidate(_Body):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "gemma-3-270m",
                "method": {"type": "supervised"},
                "validation_file": "file-def456",
                "ext": {"max_length": 1024},
            }
        }
    )

    model: str = Field(min_length=1, max_length=256)
    method: Method | None = None
    validation_file: str | None = Field(None, max_length=128)
    ext: Json | None = None


class PreviewCreate(_Body):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "gemma-3-270m",
                "training_file": "file-abc123",
                "limit": 3,
            }
        }
    )

    model: str = Field(min_length=1, max_length=256)
    training_file: str | None = Field(None, min_length=1, max_length=128)
    rows: Annotated[list[Json], Field(min_length=1, max_length=PREVIEW_ROWS)] | None = None
    """In place of a file: rows as its lines would have them."""
    method: Method | None = None
    ext: Json | None = None
    limit: int = Field(5, ge=1, le=PREVIEW_ROWS)


class FindingsLink(BaseModel):
    """Everything that was found about a line, each as a line of JSON."""

    url: str
    """Needs no key."""
    expires_in: int
    """Seconds for which the URL is good."""


class FileReport(Survey):
    object: Literal["file.report"] = "file.report"
    file_id: str
    findings: FindingsLink


class FileVerdict(Verdict):
    object: Literal["file.verdict"] = "file.verdict"
    file_id: str
    findings: FindingsLink


class RowsPreview(Preview):
    object: Literal["fine_tuning.preview"] = "fine_tuning.preview"
