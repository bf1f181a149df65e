"""A worker process as operators see it."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from core import clock
from core.db.tables import Worker


class WorkerOut(BaseModel):
    object: Literal["worker"] = "worker"
    id: str
    name: str
    kind: Literal["prepare", "train"]
    slots: int
    device: str
    memory_bytes: int
    base_models: list[str]
    version: str
    status: Literal["online", "draining", "offline"]
    warm: bool
    started_at: int
    last_seen_at: int


def of(row: Worker, online_since: datetime) -> WorkerOut:
    """``online_since``: a worker not seen after this moment (database time) is offline."""
    alive = row.last_seen_at >= online_since
    return WorkerOut(
        id=row.id,
        name=row.name,
        kind=row.kind,
        slots=row.slots,
        device=row.device,
        memory_bytes=row.memory_bytes,
        base_models=row.base_models,
        version=row.version,
        status="offline" if not alive else "draining" if row.draining else "online",
        warm=row.warm and alive,
        started_at=clock.unix(row.started_at),
        last_seen_at=clock.unix(row.last_seen_at),
    )
