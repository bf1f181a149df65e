"""A job's checkpoints: those of an epoch's end are the user's, all of them serve to resume."""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

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


def discard(session: Session, job_id: str, step: int) -> None:
    """This one can't be resumed from: the next attempt takes the one before it."""
    session.execute(delete(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.step == step))
