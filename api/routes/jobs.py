"""/v1/fine_tuning/jobs"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy.orm import Session

from api.deps import AfterQuery, Parsed, PartsDep, SessionDep, TenantDep, body_schema, json_body, with_ext_header
from core.db.session import transaction
from core.db.tables import Job
from core.db.tenancy import Tenant
from core.schemas import checkpoints as checkpoint_shape
from core.schemas import events as event_shape
from core.schemas.checkpoints import JobCheckpoint
from core.schemas.events import JobEvent
from core.schemas.jobs import FineTuningJob, JobCreate, StopRequest
from core.schemas.pages import EndedPage, Page
from core.services import checkpoints, events, idempotency, jobs, runs, steering
from core.services.idempotency import Once

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"])

LimitQuery = Annotated[int, Query(ge=1, le=100)]


@router.post("", openapi_extra=body_schema(JobCreate))
def create(
    request: Request,
    tenant: TenantDep,
    parts: PartsDep,
    body: Annotated[Parsed[JobCreate], Depends(with_ext_header(JobCreate))],
) -> FineTuningJob:
    """Create a job. Everything that can be known to be wrong is a 400 now, with the field's full path in ``param``."""
    once = Once(
        body=idempotency.canonical(body.json),
        key=request.headers.get("idempotency-key"),
        is_retry=request.headers.get("x-stainless-retry-count", "0") not in ("0", ""),
    )
    with transaction(parts.sessions) as session:
        job = jobs.create(session, tenant, body.model, parts.settings, once)
        session.flush()
        session.refresh(job)
        answer = jobs.wire(session, tenant, [job])[0]
    # After the commit, and best effort: the row is the work, the ring only saves a few seconds.
    parts.doorbell.ring("prepare")
    return answer


@router.get("")
def list_jobs(
    request: Request, session: SessionDep, tenant: TenantDep, after: AfterQuery = None, limit: LimitQuery = 20
) -> Page[FineTuningJob]:
    """Newest first. ``metadata[k]=v`` filters, ``metadata=null`` gives the jobs without metadata."""
    wanted = {
        key[len("metadata[") : -1]: value
        for key, value in request.query_params.items()
        if key.startswith("metadata[") and key.endswith("]")
    }
    rows, more = jobs.list_of(
        session,
        tenant,
        after=after,
        limit=limit,
        metadata=wanted,
        without_metadata=request.query_params.get("metadata") == "null",
    )
    return Page(data=jobs.wire(session, tenant, rows), has_more=more)


@router.get("/{job_id}")
def get(job_id: str, session: SessionDep, tenant: TenantDep) -> FineTuningJob:
    return jobs.wire(session, tenant, [jobs.get(session, tenant, job_id)])[0]


@router.post("/{job_id}/cancel")
def cancel(job_id: str, session: SessionDep, tenant: TenantDep) -> FineTuningJob:
    """At once when it waits; a running job's worker is told by its next heartbeat. Wins over everything else."""
    return _changed(session, tenant, steering.cancel(session, tenant, job_id))


@router.post("/{job_id}/pause")
def pause(job_id: str, session: SessionDep, tenant: TenantDep) -> FineTuningJob:
    """A running job saves where it is and frees its worker. ``ext.phase`` says ``pausing``, then ``paused``."""
    return _changed(session, tenant, steering.pause(session, tenant, job_id))


@router.post("/{job_id}/resume")
def resume(job_id: str, tenant: TenantDep, parts: PartsDep) -> FineTuningJob:
    """Back into the queue; it goes on at the step after the one it was paused at."""
    with transaction(parts.sessions) as session:
        answer = _changed(session, tenant, steering.resume(session, tenant, job_id))
    parts.doorbell.ring("train")
    return answer


@router.post("/{job_id}/stop", openapi_extra=body_schema(StopRequest))
def stop(
    job_id: str,
    tenant: TenantDep,
    parts: PartsDep,
    body: Annotated[Parsed[StopRequest], Depends(json_body(StopRequest))],
) -> FineTuningJob:
    """End early and well: the job succeeds with a model of what it has learned."""
    with transaction(parts.sessions) as session:
        answer = _changed(session, tenant, steering.stop(session, tenant, job_id, body.model.at))
    parts.doorbell.ring("train")
    return answer


def _changed(session: Session, tenant: Tenant, job: Job) -> FineTuningJob:
    session.flush()
    session.refresh(job)
    return jobs.wire(session, tenant, [job])[0]


@router.get("/{job_id}/events")
def list_events(
    job_id: str, session: SessionDep, tenant: TenantDep, after: AfterQuery = None, limit: LimitQuery = 20
) -> Page[JobEvent]:
    """Newest first. ``data.number`` counts them without gaps."""
    rows, more = events.list_of(session, tenant, job_id, after=after, limit=limit)
    return Page(data=[event_shape.of(row) for row in rows], has_more=more)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    job_id: str, session: SessionDep, tenant: TenantDep, after: AfterQuery = None, limit: LimitQuery = 10
) -> EndedPage[JobCheckpoint]:
    """Newest first: one for each epoch."""
    job, rows, more = checkpoints.list_of(session, tenant, job_id, after=after, limit=limit)
    name = job.fine_tuned_model or runs.model_name(session, job)
    return EndedPage(
        data=[checkpoint_shape.of(row, name) for row in rows],
        has_more=more,
        first_id=rows[0].id if rows else None,
        last_id=rows[-1].id if rows else None,
    )
