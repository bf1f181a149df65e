"""What nobody asked for but somebody must do: take rows from lost owners, remove what has expired."""

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from core import clock, telemetry
from core.config import Settings
from core.db.tables import BaseModel, File, Job, WorkItem
from core.queue import claims
from core.services import base_models, files, joins, replies, runs, token_sets
from core.states import ItemKind, ItemStatus, Status, Wish

log = structlog.get_logger()


def expired_jobs(session: Session, settings: Settings) -> int:
    """Take back jobs whose lease ran out; returns how many."""
    rows = session.scalars(
        select(Job).where(Job.lease_until <= clock.now()).with_for_update(key_share=True, skip_locked=True).limit(100)
    ).all()
    for job in rows:
        telemetry.leases_expired.labels("jobs").inc()
        log.warning("lease.expired", job_id=job.id, generation=job.generation, worker_id=job.worker_id)
        runs.lost(session, job, settings, "its worker was lost")
    return len(rows)


def expired_items(session: Session, settings: Settings) -> int:
    rows = session.scalars(
        select(WorkItem)
        .where(WorkItem.lease_until <= clock.now())
        .with_for_update(key_share=True, skip_locked=True)
        .limit(100)
    ).all()
    for item in rows:
        telemetry.leases_expired.labels("work_items").inc()
        item_lost(session, item, settings)
    return len(rows)


def item_lost(session: Session, item: WorkItem, settings: Settings) -> None:
    claims.back_off(item, settings)
    claims.release(item)
    item.status = ItemStatus.WAITING
    if item.losses >= settings.max_attempts:
        item_failed(session, item, "worker_lost", f"The worker was lost {item.losses} times while working on it.", None)


def item_failed(session: Session, item: WorkItem, code: str, message: str, param: str | None) -> None:
    """The end of a work item, told to the row it is about."""
    item.status = ItemStatus.FAILED
    item.finished_at = clock.now()
    item.error = {"code": code, "message": message, "param": param}
    claims.release(item)
    if item.kind == ItemKind.REGISTER_MODEL:
        base_models.failed(session.get_one(BaseModel, item.subject_id), code, message, param)
    elif item.kind == ItemKind.CHECK_FILE:
        files.unreadable(session.get_one(File, item.subject_id), message)
    elif item.kind == ItemKind.JOIN_UPLOAD:
        joins.failed(session, item, message)
    elif item.kind == ItemKind.ANSWER:
        replies.fail(session, item.subject_id, code, message, param)


def cancelled_jobs(session: Session) -> int:
    """Jobs that were asked to stop and that nobody owns any more."""
    rows = session.scalars(
        select(Job)
        .where(
            Job.wish == Wish.CANCEL,
            Job.lease_until.is_(None),
            Job.status.in_([Status.VALIDATING, Status.QUEUED, Status.RUNNING]),
        )
        .with_for_update(key_share=True, skip_locked=True)
        .limit(100)
    ).all()
    for job in rows:
        runs.cancelled(session, job)
    return len(rows)


def expired_files(session: Session) -> list[str]:
    """Mark files whose time is over; returns the keys to remove from the store after the commit."""
    rows = session.scalars(
        select(File)
        .where(File.expires_at <= clock.now(), File.deleted_at.is_(None))
        .with_for_update(key_share=True, skip_locked=True)
        .limit(100)
    ).all()
    keys = []
    for file in rows:
        file.deleted_at = clock.now()
        keys += [file.storage_key, *replies.forget(session, file.project_id, file.sha256)]
        keys += token_sets.of_file(session, file.id)
    return keys
