"""The tries at training a job, and what is left of them."""

from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.db import tenancy
from core.db.tables import Attempt, Job
from core.db.tenancy import Tenant
from core.errors import NotFound
from core.storage import store as layout


class Log(NamedTuple):
    key: str
    filename: str
    absent: str
    """What to say when there is no such object."""


def present(session: Session, job: Job) -> Attempt:
    """That of the claim that holds the job now."""
    return session.scalars(select(Attempt).where(Attempt.job_id == job.id, Attempt.generation == job.generation)).one()


def log_of(session: Session, tenant: Tenant, job_id: str, n: int | None) -> Log:
    """Where the trainer's log of this attempt is kept, or of the newest one."""
    job = tenancy.get(session, Job, tenant, job_id)
    query = select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.n.desc()).limit(1)
    attempt = session.scalar(query if n is None else query.where(Attempt.n == n))
    if attempt is None:
        which = "no attempt" if n is None else f"no attempt {n}"
        raise NotFound(
            f"The job {job_id!r} has {which} at training: it is {job.status}.", param="attempt", code="log_not_found"
        )
    why = (
        "its log is kept when it has ended; until then, follow the events"
        if attempt.ended_at is None
        else "its worker was lost before it could keep the log"
    )
    return Log(
        key=layout.run(job_id, attempt.generation, "trainer.log"),
        filename=f"{job_id}-attempt-{attempt.n}.log",
        absent=f"Attempt {attempt.n} of the job {job_id!r} has no log: {why}.",
    )
