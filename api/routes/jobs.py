"""/v1/fine_tuning/jobs"""

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from sqlalchemy.orm import Session

from api.answers import PENDING
from api.deps import (
    AfterQuery,
    LiveDep,
    Parsed,
    PartsDep,
    SessionDep,
    TenantDep,
    body_schema,
    json_body,
    with_ext_header,
)
from api.live import EventStream
from api.routes import estimates
from core.db.session import transaction
from core.db.tables import Job
from core.db.tenancy import Tenant
from core.errors import BadRequest
from core.schemas import checkpoints as checkpoint_shape
from core.schemas import events as event_shape
from core.schemas.checkpoints import JobCheckpoint
from core.schemas.estimates import Estimate
from core.schemas.events import JobEvent
from core.schemas.jobs import FineTuningJob, JobCreate, JobPatch, StopRequest
from core.schemas.pages import Deleted, EndedPage, Page
from core.services import checkpoints, events, idempotency, jobs, runs, steering
from core.services.idempotency import Once
from core.wiring import Parts

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"])

LimitQuery = Annotated[int, Query(ge=1, le=100)]

_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/event-stream": {
                "schema": {
                    "type": "object",
                    "required": ["id", "data"],
                    "properties": {
                        "id": {"type": "string", "pattern": "^[0-9]+$"},
                        "data": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": {"$ref": "#/components/schemas/JobEvent"},
                        },
                    },
                }
            }
        }
    },
    204: {"description": "With `stream`: the job has ended, and the client has all of its events."},
}


@router.post(
    "",
    response_model=FineTuningJob | Estimate,
    responses=PENDING,
    openapi_extra=body_schema(JobCreate),
)
async def create(
    request: Request,
    tenant: TenantDep,
    parts: PartsDep,
    live: LiveDep,
    body: Annotated[Parsed[JobCreate], Depends(with_ext_header(JobCreate))],
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="Sent again within 24 hours with the same body, it answers with the job that it made first.",
        ),
    ] = None,
) -> FineTuningJob | Estimate | Response:
    """Create a job. Everything that can be known to be wrong is a 400 now, with the field's full path in ``param``.

    With ``ext.dry_run`` nothing is made: the answer is the estimate of the job that this body would create.
    """
    if (body.model.ext or {}).get("dry_run") is True:
        return await estimates.of(parts, live, tenant, body.model)
    once = Once(
        body=idempotency.canonical(body.json),
        key=idempotency_key,
        is_retry=request.headers.get("x-stainless-retry-count", "0") not in ("0", ""),
    )
    return await to_thread.run_sync(_create, parts, tenant, body.model, once)


def _create(parts: Parts, tenant: Tenant, wanted: JobCreate, once: Once) -> FineTuningJob:
    with transaction(parts.sessions) as session:
        job = jobs.create(session, tenant, wanted, parts.settings, once)
        session.flush()
        session.refresh(job)
        answer = jobs.wire(session, tenant, [job])[0]
    # After the commit, and best effort: the row is the work, the ring only saves a few seconds.
    parts.doorbell.ring("prepare")
    return answer


_METADATA: dict[str, Any] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "style": "deepObject",
            "explode": True,
            "description": "Only jobs with these pairs; the word `null` instead gives the jobs without metadata.",
            # Whatever it is, it comes as text and is compared as text.
            "schema": {"type": "object", "additionalProperties": True},
            "example": {"team": "support"},
        }
    ]
}


@router.get("", openapi_extra=_METADATA)
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
    """Where the job stands: ``status`` in OpenAI's words, the finer truth in ``ext.phase`` and ``ext.progress``."""
    return jobs.view(session, tenant, job_id)


@router.patch("/{job_id}", openapi_extra=body_schema(JobPatch))
def change(
    job_id: str,
    session: SessionDep,
    tenant: TenantDep,
    parts: PartsDep,
    body: Annotated[Parsed[JobPatch], Depends(with_ext_header(JobPatch))],
) -> FineTuningJob:
    """Change ``metadata`` (null removes it), ``ext.resources.priority`` and ``ext.limits``; nothing else can be."""
    return _changed(session, tenant, jobs.change(session, tenant, job_id, body.model, body.json, parts.settings))


@router.delete("/{job_id}")
def delete(job_id: str, tenant: TenantDep, parts: PartsDep) -> Deleted:
    """Delete an ended job: its events, measurements, checkpoints, logs and prepared rows.

    Its model and result files stay, and are deleted by themselves.
    """
    with transaction(parts.sessions) as session:
        gone = jobs.remove(session, tenant, job_id)
    # After the commit: a row without its object would be a broken promise, an object without a row is litter.
    parts.store.delete(*gone.keys)
    for prefix in gone.prefixes:
        parts.store.delete(*(key for key in parts.store.list(prefix) if key not in gone.kept))
    return Deleted(id=job_id, object="fine_tuning.job")


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


@router.get("/{job_id}/events", response_model=Page[JobEvent], responses=_STREAMED)
def list_events(
    request: Request,
    job_id: str,
    session: SessionDep,
    tenant: TenantDep,
    live: LiveDep,
    after: AfterQuery = None,
    limit: LimitQuery = 20,
    stream: Annotated[bool, Query(description="Oldest first, then as they happen, as server-sent events.")] = False,
    last_event_id: Annotated[
        str | None, Header(description="With `stream`: the number of the last event that the client has.")
    ] = None,
) -> Page[JobEvent] | Response:
    """Newest first. ``data.number`` counts them without gaps.

    With ``stream=true`` every event is sent in order, those that come later as they come, until the job's last one.
    A client that was cut off goes on where it was with the header ``Last-Event-ID``, as browsers do by themselves.
    """
    if stream:
        for name in ("after", "limit"):
            if name in request.query_params:
                raise BadRequest(f"{name}: goes with pages, not with stream; use the header Last-Event-ID.", param=name)
        news = events.since(session, tenant, job_id, _number(last_event_id), limit=1)
        if _number(last_event_id) > news.newest:
            raise BadRequest(
                f"Last-Event-ID: {last_event_id!r} is not the number of an event of this job, which has {news.newest}.",
                param="Last-Event-ID",
                code="invalid_cursor",
            )
        if news.ended and not news.events:
            # Nothing will come any more. This status is how a browser learns not to connect again.
            return Response(status_code=204)
        return EventStream(live.follow(tenant, job_id, _number(last_event_id)))
    rows, more = events.list_of(session, tenant, job_id, after=after, limit=limit)
    return Page(data=[event_shape.of(row) for row in rows], has_more=more)


def _number(last_event_id: str | None) -> int:
    if not last_event_id:
        return 0
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 18:
        raise BadRequest(
            f"Last-Event-ID: {last_event_id[:60]!r} is not an event's number, as `id:` has it in the stream.",
            param="Last-Event-ID",
            code="invalid_cursor",
        )
    return int(last_event_id)


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
