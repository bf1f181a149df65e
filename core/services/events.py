"""A job's events: numbered without gaps, since every number is given under the job row's lock."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core import ids
from core.db import tenancy
from core.db.tables import Event, Job
from core.db.tenancy import Tenant
from core.services import pages


def append(
    session: Session,
    job: Job,
    message: str,
    *,
    level: str = "info",
    type: str = "message",
    data: dict[str, Any] | None = None,
) -> None:
    """Add an event. The caller holds the job's row (it made it, claimed it, or is inside the fence)."""
    job.event_count += 1
    session.add(
        Event(
            job_id=job.id,
            number=job.event_count,
            id=ids.event(),
            level=level,
            type=type,
            message=message,
            # The number is in the data, so that a client can see that it missed nothing.
            data={"number": job.event_count, **(data or {})},
        )
    )


def list_of(
    session: Session, tenant: Tenant, job_id: str, *, after: str | None, limit: int
) -> tuple[list[Event], bool]:
    tenancy.get(session, Job, tenant, job_id)
    query = select(Event).where(Event.job_id == job_id)
    cursor = None
    if after is not None:
        number = session.scalar(select(Event.number).where(Event.job_id == job_id, Event.id == after))
        if number is None:
            raise pages.unknown_cursor(after)
        cursor = (number,)
    return pages.page(session, query, (Event.number,), cursor, limit)
