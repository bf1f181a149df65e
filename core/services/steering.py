"""What a user asks a job to do: cancel, pause, resume, stop.

A job that nobody works on is moved here and now. A job that has an owner gets a wish, which its next heartbeat brings.
"""

from sqlalchemy.orm import Session

from core import clock
from core.db import tenancy
from core.db.tables import Job
from core.db.tenancy import Tenant
from core.errors import Conflict
from core.queue import shares
from core.services import checkpoints, events
from core.services.moves import end, move
from core.states import TERMINAL, Phase, Status, Wish

STOPS = {"now": Wish.STOP_NOW, "checkpoint": Wish.STOP_AT_CHECKPOINT, "epoch": Wish.STOP_AT_EPOCH}


def cancel(session: Session, tenant: Tenant, id: str) -> Job:
    """Wins over everything else that is asked of the job, and over its success."""
    job = tenancy.get(session, Job, tenant, id, lock=True)
    if job.status == Status.CANCELLED:
        return job
    _must_live(job)
    if job.lease_until is None:
        end(session, job, Status.CANCELLED, Phase.CANCELLED)
        events.append(session, job, "The job was cancelled.")
    elif job.wish != Wish.CANCEL:
        job.wish = Wish.CANCEL
        events.append(session, job, "Cancelling: the worker was asked to stop.")
        if job.status == Status.RUNNING:
            move(job, Status.RUNNING, Phase.CANCELLING)
    return job


def pause(session: Session, tenant: Tenant, id: str) -> Job:
    """Keep the job from running until it is resumed; a running one saves where it is and frees its accelerator."""
    job = tenancy.get(session, Job, tenant, id, lock=True)
    _must_live(job)
    if job.phase == Phase.PAUSED or job.wish == Wish.PAUSE:
        return job
    if job.wish is not None:
        raise Conflict(f"The job {id!r} is asked to do something else already: {job.wish}.", code="wrong_state")
    if job.lease_until is None and job.status == Status.QUEUED:
        move(job, Status.QUEUED, Phase.PAUSED)
        events.append(session, job, "The job was paused.")
        return job
    job.wish = Wish.PAUSE
    events.append(session, job, "Pausing: the job saves where it is and frees its worker.")
    if job.status == Status.RUNNING:
        move(job, Status.RUNNING, Phase.PAUSING)
    return job


def resume(session: Session, tenant: Tenant, id: str) -> Job:
    job = tenancy.get(session, Job, tenant, id, lock=True)
    _must_live(job)
    if job.wish == Wish.PAUSE:
        # Its owner may have heard of the wish already; then it hands the job back, and somebody goes on with it.
        job.wish = None
        events.append(session, job, "The pause was called off.")
    elif job.phase == Phase.PAUSED:
        shares.enter(session, job, Status.QUEUED)
        move(job, Status.QUEUED, Phase.QUEUED)
        job.available_at = clock.now()
        events.append(session, job, "The job was resumed.")
    else:
        raise Conflict(f"The job {id!r} is not paused: it is {job.phase}.", code="wrong_state")
    return job


def stop(session: Session, tenant: Tenant, id: str, at: str) -> Job:
    """End early, and well: with a model of what was learned so far. ``at``: a key of ``STOPS``."""
    job = tenancy.get(session, Job, tenant, id, lock=True)
    _must_live(job)
    if job.wish == Wish.CANCEL:
        raise Conflict(f"The job {id!r} is being cancelled.", code="wrong_state")
    if job.status != Status.RUNNING:
        if not checkpoints.newest_first(session, id):
            raise Conflict(
                f"The job {id!r} has learned nothing yet that a model could be made of; cancel it instead.",
                code="wrong_state",
            )
        # A worker has to make the model of its last checkpoint: nothing more is trained.
        at = "now"
        if job.phase == Phase.PAUSED:
            shares.enter(session, job, Status.QUEUED)
            move(job, Status.QUEUED, Phase.QUEUED)
            job.available_at = clock.now()
    job.wish = STOPS[at]
    events.append(session, job, f"Stopping ({at}): the job will end with a model of what it has learned.")
    return job


def _must_live(job: Job) -> None:
    if job.status in TERMINAL:
        raise Conflict(f"The job {job.id!r} has ended already: it {job.status}.", code="job_ended")
