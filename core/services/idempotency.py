"""Creating twice makes one job: the record of a request is written in the job's own transaction."""

import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core import clock
from core.db import tenancy
from core.db.tables import IdempotencyKey, Job
from core.db.tenancy import Tenant
from core.errors import KeyReused

_KEY_LIVES = timedelta(hours=24)
_RETRY_WINDOW = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Once:
    """What makes a repeated create recognisable: a key of the client's, or the SDK's word that it is a retry."""

    body: bytes
    key: str | None = None
    is_retry: bool = False


def canonical(body: object) -> bytes:
    """The same bytes for the same JSON, however it was spaced and ordered."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def first_of(session: Session, tenant: Tenant, once: Once) -> Job | None:
    """The job that this request made before. Holds off a second copy of the request until this one is through."""
    key = _record_key(tenant, once)
    # Two copies that arrive together must not both find nothing: the second waits here for the first one's commit.
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"{tenant.project_id}/{key}", 0))))
    window = _KEY_LIVES if once.key else _RETRY_WINDOW
    row = session.get(IdempotencyKey, (tenant.project_id, key))
    if row is None:
        return None
    young = session.scalar(select(clock.now() - window < row.created_at))
    if not young or (once.key is None and not once.is_retry):
        # Too old, or the same body sent anew on purpose: the record makes way for the new job's.
        session.delete(row)
        session.flush()
        return None
    if row.body_sha256 != hashlib.sha256(once.body).digest():
        raise KeyReused(f"The idempotency key {once.key!r} was used with another request body.")
    job = session.scalar(tenancy.owned(Job, tenant).where(Job.id == row.job_id))
    if job is None:
        # It was deleted since: there is no first job that could be given back.
        session.delete(row)
        session.flush()
    return job


def remember(session: Session, tenant: Tenant, once: Once, job: Job) -> None:
    session.add(
        IdempotencyKey(
            project_id=tenant.project_id,
            key=_record_key(tenant, once),
            body_sha256=hashlib.sha256(once.body).digest(),
            job_id=job.id,
        )
    )


def _record_key(tenant: Tenant, once: Once) -> str:
    if once.key is not None:
        return f"client:{once.key}"
    return f"body:{tenant.key_id}:{hashlib.sha256(once.body).hexdigest()}"
