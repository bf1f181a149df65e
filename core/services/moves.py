"""The one way a job changes its status or phase."""

from datetime import UTC, datetime

from sqlalchemy.orm import Session

from core import clock, telemetry
from core.db.tables import Job
from core.services import deliveries
from core.states import Phase, Status, check_move


def move(job: Job, status: Status, phase: Phase, reason: str | None = None) -> None:
    """The caller holds the row's lock."""
    check_move(Status(job.status), status, phase)
    if job.phase != phase:
        if isinstance(job.phase_since, datetime):
            since = (datetime.now(UTC) - job.phase_since).total_seconds()
            telemetry.phase_seconds.labels(job.phase).observe(max(0.0, since))
        job.phase_since = clock.now()
    job.status, job.phase, job.phase_reason = status, phase, reason


def end(session: Session, job: Job, status: Status, phase: Phase) -> None:
    """A terminal status: no owner, no wish, no estimate, a time of ending; and whoever wants to hear of it will."""
    move(job, status, phase)
    telemetry.jobs_ended.labels(status).inc()
    job.finished_at = clock.now()
    job.estimated_finish = None
    job.lease_until = None
    job.worker_id = None
    job.wish = None
    session.flush()
    deliveries.ended(session, job, status)
