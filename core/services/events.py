"""A job's events: numbered without gaps, since every number is given under the job row's lock."""

from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core import ids
from core.db import tenancy
from core.db.tables import Event, Job
from core.db.tenancy import Tenant
from core.services import pages
from core.states import TERMINAL

CHANNEL = "attune_events"
"""PostgreSQL tells the ids of jobs that have new events here, when the transaction that wrote them commits."""


class News(NamedTuple):
    """Events after a number, in order and without a gap, and where the job stood before they were read."""

    events: list[Event]
    newest: int
    """Number of the newest event."""
    ended: bool
    """No event will come after ``newest``."""


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
    _tell(session, job.id)


def _tell(session: Session, job_id: str) -> None:
    """Have the commit wake whoever follows this job: once for each transaction, however many events it writes."""
    told: tuple[object, set[str]] | None = session.info.get(CHANNEL)
    transaction = session.get_transaction()
    if told is None or told[0] is not transaction:
        told = session.info[CHANNEL] = (transaction, set())
    if job_id not in told[1]:
        told[1].add(job_id)
        # On the connection: through the session it would flush what the caller has not finished yet.
        session.connection().execute(select(func.pg_notify(CHANNEL, job_id)))


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


def since(session: Session, tenant: Tenant, job_id: str, number: int, *, limit: int) -> News:
    """Up to ``limit`` events after this number, oldest first.

    The job is read first: events that are written in between only make the answer newer, and whoever saw it end then
    sees all of its events.
    """
    job = tenancy.get(session, Job, tenant, job_id)
    query = select(Event).where(Event.job_id == job_id)
    found, _ = pages.page(session, query, (Event.number,), (number,), limit, newest_first=False)
    return News(found, job.event_count, job.status in TERMINAL)


def newest(session: Session, job_ids: list[str]) -> dict[str, int]:
    """The number of each job's newest event; jobs that are gone are left out."""
    rows = session.execute(select(Job.id, Job.event_count).where(Job.id.in_(job_ids), Job.deleted_at.is_(None)))
    return dict(rows.all())
