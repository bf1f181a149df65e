"""Taking rows that wait, keeping them, and giving them back: the queue itself, in SQL on database time.

A row is free when ``lease_until`` is NULL. A claim sets it and adds one to ``generation``; heartbeats move it on;
whoever gives a row back, or takes it from a lost owner, sets it to NULL again, and every later write at the old
generation is refused.
"""

from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Select, or_, select, update
from sqlalchemy.orm import Session

from core import clock, telemetry
from core.config import Settings
from core.db.tables import Job, WorkItem
from core.errors import LostAuthority
from core.queue import shares
from core.services import moves, quotas
from core.states import ItemStatus, Phase, Status, Wish

Row = TypeVar("Row", Job, WorkItem)


@dataclass(frozen=True, slots=True)
class Claim:
    """Proof of ownership: writes that name this generation count until somebody else claims the row."""

    table: type[Job] | type[WorkItem]
    id: str
    generation: int


def next_job(session: Session, status: Status, worker_id: str, settings: Settings) -> Job | None:
    """Claim the next job waiting in this status: by priority, then fair shares of projects, then age.

    Rows that others are claiming are skipped, so no claim ever waits for another one to choose.
    """
    below = None
    while heads := shares.in_turn(session, status, below):
        for head in heads:
            job = _first_of(session, head, status, settings)
            if job is not None:
                owned = _own(session, job, worker_id, settings)
                shares.take(session, owned, status)
                return owned
        below = heads[0].priority
    return None


def _first_of(session: Session, head: shares.Head, status: Status, settings: Settings) -> Job | None:
    """The project's oldest free job of this priority, locked; None when others have all of them, or it may not run."""
    oldest = (
        select(Job)
        .where(
            Job.project_id == head.project_id,
            Job.priority == head.priority,
            Job.status == status,
            Job.lease_until.is_(None),
            Job.phase != Phase.PAUSED,
            Job.available_at <= clock.now(),
            or_(Job.wish.is_(None), Job.wish != Wish.CANCEL),
        )
        .order_by(Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if status != Status.QUEUED or settings.max_running_jobs is None:
        return session.scalar(oldest)
    # Rolling back to the savepoint lets go of a project that is full, so no claim ever waits for one project while
    # it holds another: two claims that look through the same projects can't lock each other out.
    attempt = session.begin_nested()
    job = session.scalar(oldest)
    if job is None or quotas.may_run(session, job.project_id, settings):
        attempt.commit()
        return job
    job_id = job.id
    attempt.rollback()
    _tell_of_quota(session, job_id)
    return None


def _tell_of_quota(session: Session, job_id: str) -> None:
    """The job shows why it waits. Whoever else has its row just now may leave that to the next claim."""
    waiting = select(Job).where(Job.id == job_id, Job.lease_until.is_(None), Job.status == Status.QUEUED)
    job = session.scalar(waiting.with_for_update(skip_locked=True).execution_options(populate_existing=True))
    if job is not None and job.phase == Phase.QUEUED:
        moves.move(job, Status.QUEUED, Phase.WAITING_FOR_QUOTA, "the project has as many running jobs as it may")


def next_item(session: Session, worker_id: str, settings: Settings) -> WorkItem | None:
    waiting = (
        select(WorkItem)
        .where(
            WorkItem.status == ItemStatus.WAITING,
            WorkItem.lease_until.is_(None),
            WorkItem.available_at <= clock.now(),
        )
        .order_by(WorkItem.created_at, WorkItem.id)
    )
    row = _claim(session, waiting, worker_id, settings)
    if row is not None:
        row.status = ItemStatus.RUNNING
    return row


def _claim(session: Session, waiting: Select[Row], worker_id: str, settings: Settings) -> Row | None:
    row = session.scalar(waiting.limit(1).with_for_update(skip_locked=True))
    return None if row is None else _own(session, row, worker_id, settings)


def _own(session: Session, row: Row, worker_id: str, settings: Settings) -> Row:
    row.generation += 1
    row.worker_id = worker_id
    row.lease_until = clock.in_seconds(settings.lease_seconds)
    session.flush()
    session.refresh(row)
    return row


def heartbeat(session: Session, claim: Claim, settings: Settings) -> Wish | None:
    """Move the lease on; returns what its owner is asked to do. Raises LostAuthority when the row is no longer ours."""
    row = session.execute(
        update(claim.table)
        .where(
            claim.table.id == claim.id,
            claim.table.generation == claim.generation,
            claim.table.lease_until.is_not(None),
        )
        .values(lease_until=clock.in_seconds(settings.lease_seconds))
        .returning(claim.table.wish)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        telemetry.fenced_writes_refused.inc()
        raise LostAuthority(f"{claim.id} is no longer owned at generation {claim.generation}")
    return None if row.wish is None else Wish(row.wish)


def release(row: Job | WorkItem) -> None:
    """The row has no owner any more. The caller holds its lock."""
    row.lease_until = None
    row.worker_id = None


def done(item: WorkItem) -> None:
    """The item's work is finished. The caller holds its lock."""
    item.status = ItemStatus.DONE
    item.finished_at = clock.now()
    release(item)


def back_off(row: Job | WorkItem, settings: Settings) -> float:
    """Count a loss and keep the row from being claimed for a while; returns the pause in seconds."""
    row.losses += 1
    pause: float = min(settings.backoff_seconds * 2 ** (row.losses - 1), settings.backoff_max_seconds)
    row.available_at = clock.in_seconds(pause)
    return pause
