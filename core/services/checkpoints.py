"""A job's checkpoints: those of an epoch's end are the user's, all of them serve to resume."""

from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from core import clock
from core.db import tenancy
from core.db.tables import Checkpoint, Job
from core.db.tenancy import Tenant
from core.services import pages
from core.states import TERMINAL

_FORGOTTEN_AT_ONCE = 100


def list_of(
    session: Session, tenant: Tenant, job_id: str, *, after: str | None, limit: int
) -> tuple[Job, list[Checkpoint], bool]:
    job = tenancy.get(session, Job, tenant, job_id)
    mine = select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.kind == "epoch")
    cursor = None
    if after is not None:
        found = session.scalar(mine.where(Checkpoint.id == after))
        if found is None:
            raise pages.unknown_cursor(after)
        cursor = (found.step,)
    kept = mine.where(Checkpoint.deleted_at.is_(None))
    rows, more = pages.page(session, kept, (Checkpoint.step,), cursor, limit)
    return job, rows, more


def newest_first(session: Session, job_id: str) -> list[Checkpoint]:
    """What an attempt can resume from, the best first."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
    return list(session.scalars(query.order_by(Checkpoint.step.desc())))


def keys_of(row: Checkpoint) -> list[str]:
    """Its objects, the manifest first: without it the others are no checkpoint."""
    return [
        row.storage_prefix + path for path in ("manifest.json", *(entry["path"] for entry in row.manifest["files"]))
    ]


def prune(session: Session, job: Job, good_step: int = 0) -> list[str]:
    """Let go of what the job's policy and its next attempt don't need; returns the keys to delete after the commit.

    The two newest are always kept: where one can't be used, the job goes back to the other. So is ``good_step``'s, the
    last that is known to be good, until a later one is: those after it may be of a run that diverges.
    """
    rows = newest_first(session, job.id)
    keep = (job.resolved or {}).get("checkpoints", {}).get("keep", KEEP)
    kept = {good_step, *(row.step for row in rows[:_TO_RESUME])}
    kept |= _wanted([row for row in rows if row.kind == "epoch"], keep)
    keys: list[str] = []
    for row in rows:
        if row.step in kept or _begun_from(session, row):
            continue
        if row.kind == "epoch":
            # The mark stays: whoever reads the list page by page may have it as the cursor.
            row.deleted_at = clock.now()
        else:
            session.delete(row)
        keys += keys_of(row)
    return keys


KEEP = {"last": 3, "best": True}
_TO_RESUME = 2


def _wanted(listed: list[Checkpoint], keep: Any) -> set[int]:  # Any: core.resolved.ResolvedCheckpoints.keep, as JSON
    """Steps of the user's checkpoints, given the newest first, that the policy keeps."""
    if keep == "all":
        return {row.step for row in listed}
    if keep == "best":
        keep = {"last": 0, "best": True}
    wanted = {row.step for row in listed[: keep["last"]]}
    judged = [(loss, -row.step) for row in listed if (loss := _loss(row)) is not None]
    if keep.get("best") and judged:
        # Of equal ones the later.
        wanted.add(-min(judged)[1])
    return wanted


def _loss(row: Checkpoint) -> float | None:
    """Of the validation rows where there are some."""
    found: float | None = row.metrics.get("valid_loss", row.metrics.get("train_loss"))
    return found


def _begun_from(session: Session, row: Checkpoint) -> bool:
    """Whether a job that has not ended begins from this checkpoint."""
    of_another = Job.init["prefix"].astext == row.storage_prefix
    return session.scalar(select(Job.id).where(of_another, Job.status.not_in(TERMINAL)).limit(1)) is not None


def forget_recovery(session: Session) -> list[str]:
    """Recovery points of jobs that have ended serve nobody; returns the keys to delete after the commit."""
    rows = session.scalars(
        select(Checkpoint)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(Checkpoint.kind == "recovery", Job.status.in_(TERMINAL))
        .with_for_update(of=Checkpoint, skip_locked=True)
        .limit(_FORGOTTEN_AT_ONCE)
    ).all()
    session.execute(delete(Checkpoint).where(Checkpoint.id.in_([row.id for row in rows])))
    return [key for row in rows for key in keys_of(row)]


def show(session: Session, job_id: str, step: int) -> bool:
    """Into the user's list, whatever it was written for; whether it is there."""
    mine = update(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.step == step)
    shown = session.execute(mine.where(Checkpoint.deleted_at.is_(None)).values(kind="epoch").returning(Checkpoint.id))
    return shown.first() is not None


def discard(session: Session, job_id: str, step: int) -> None:
    """This one can't be resumed from: the next attempt takes the one before it."""
    session.execute(delete(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.step == step))
