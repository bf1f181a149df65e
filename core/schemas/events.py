"""FineTuningJobEvent, as OpenAI's wire has it."""

from typing import Any, Literal

from pydantic import BaseModel

from core import clock
from core.db.tables import Event


class JobEvent(BaseModel):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None  # free-form on OpenAI's wire, too


def of(row: Event) -> JobEvent:
    return JobEvent(
        id=row.id,
        created_at=clock.unix(row.created_at),
        level=row.level,
        message=row.message,
        type=row.type,
        data=row.data,
    )
