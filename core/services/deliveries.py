"""The outbox of webhooks: events are written in the transaction that makes them true, and delivered at least once.

Acts for the service itself. Between claiming a row and settling it no transaction is open: the receiver is elsewhere,
and slow.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

import structlog
from sqlalchemy import delete, func, literal, or_, select
from sqlalchemy.orm import Session

from core import clock, ids
from core.config import Settings
from core.db.tables import Job, Json, WebhookDelivery, WebhookEndpoint
from core.states import Status
from core.webhooks.post import Answer

log = structlog.get_logger()

_KEPT = timedelta(days=30)
_GONE = 410


@dataclass(frozen=True, slots=True)
class Due:
    """One delivery to make now."""

    id: str
    endpoint_id: str
    url: str
    secrets: tuple[str, ...]
    body: Json
    attempts: int


def ended(session: Session, job: Job, status: Status) -> None:
    """A row for each endpoint that wants to hear of this end. The caller's transaction makes both or neither."""
    type = f"fine_tuning.job.{status}"
    wanting = session.scalars(
        select(WebhookEndpoint.id).where(
            WebhookEndpoint.project_id == job.project_id,
            literal(type) == func.any(WebhookEndpoint.event_types),
            WebhookEndpoint.disabled_reason.is_(None),
            WebhookEndpoint.deleted_at.is_(None),
        )
    ).all()
    if not wanting:
        return
    assert job.finished_at is not None
    body = event(ids.webhook_event(), clock.unix(job.finished_at), type, job.id)
    session.add_all(WebhookDelivery(id=ids.webhook_delivery(), endpoint_id=id, body=body) for id in wanting)


def event(id: str, created_at: int, type: str, subject_id: str) -> Json:
    return {"id": id, "object": "event", "created_at": created_at, "type": type, "data": {"id": subject_id}}


def sample(session: Session, endpoint: WebhookEndpoint, type: str) -> Due:
    """A delivery that is in no outbox: to try an endpoint with."""
    now = session.scalars(select(clock.now())).one()
    overlapping = endpoint.previous_secret_until is not None and now < endpoint.previous_secret_until
    # The job's id is nobody's: a receiver that looks it up gets a 404, and must bear that.
    body = event(ids.webhook_event(), clock.unix(now), type, ids.job())
    return Due(ids.webhook_delivery(), endpoint.id, endpoint.url, _secrets(endpoint, overlapping), body, 0)


def _secrets(endpoint: WebhookEndpoint, overlapping: bool | None) -> tuple[str, ...]:
    """Those that sign now."""
    if overlapping and endpoint.previous_secret is not None:
        return endpoint.secret, endpoint.previous_secret
    return (endpoint.secret,)


def claim(session: Session, busy: Collection[str], limit: int, lease_seconds: float) -> list[Due]:
    """Up to ``limit`` deliveries whose time has come, one an endpoint, none of the ``busy`` ones. They come back by
    themselves when ``lease_seconds`` are over and nobody has settled them."""
    due = (
        WebhookDelivery.delivered_at.is_(None),
        WebhookDelivery.failed_at.is_(None),
        WebhookDelivery.available_at <= clock.now(),
    )
    # One an endpoint: a receiver that hangs must not take every place from the others.
    place = func.row_number().over(partition_by=WebhookDelivery.endpoint_id, order_by=WebhookDelivery.available_at)
    ranked = select(WebhookDelivery.id, place.label("place")).where(*due, WebhookDelivery.endpoint_id.not_in(busy))
    first = ranked.subquery()
    rows = session.execute(
        select(WebhookDelivery, WebhookEndpoint, WebhookEndpoint.previous_secret_until > clock.now())
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        # ``due`` again: PostgreSQL asks it once more of a row that another copy changed before we locked it.
        .where(*due, WebhookDelivery.id.in_(select(first.c.id).where(first.c.place == 1)))
        .order_by(WebhookDelivery.available_at)
        .limit(limit)
        .with_for_update(of=WebhookDelivery, key_share=True, skip_locked=True)
    ).all()
    claimed = []
    for row, endpoint, overlapping in rows:
        if endpoint.deleted_at is not None or endpoint.disabled_reason is not None:
            row.failed_at = clock.now()
            row.last_answer = "not sent: the endpoint is " + ("disabled" if endpoint.deleted_at is None else "deleted")
            continue
        row.available_at = clock.in_seconds(lease_seconds)
        secrets = _secrets(endpoint, overlapping)
        claimed.append(Due(row.id, endpoint.id, endpoint.url, secrets, row.body, row.attempts))
    return claimed


def settle(session: Session, due: Due, answer: Answer, settings: Settings) -> None:
    """What came of a try: 2xx delivers, 410 disables the endpoint, all else is tried again until the tries are used."""
    row = session.get_one(WebhookDelivery, due.id, with_for_update={"key_share": True})
    if row.delivered_at is not None or row.attempts != due.attempts:
        # Its lease ran out, and another copy has tried in the meantime: its word counts.
        return
    row.attempts += 1
    row.last_answer = answer.said
    if answer.status is not None and 200 <= answer.status < 300:
        row.delivered_at = clock.now()
        log.info("webhook.delivered", delivery_id=row.id, attempts=row.attempts)
        return
    pauses = settings.webhook_pauses
    if answer.status == _GONE:
        row.failed_at = clock.now()
        _disable(session, due)
    elif row.attempts > len(pauses):
        row.failed_at = clock.now()
    else:
        # A little more than the pause: what failed together should not come back together.
        row.available_at = clock.in_seconds(pauses[row.attempts - 1] * random.uniform(1, 1.1))
    log.warning(
        "webhook.failed", delivery_id=row.id, attempts=row.attempts, answer=answer.said, last=row.failed_at is not None
    )


def _disable(session: Session, due: Due) -> None:
    endpoint = session.get_one(WebhookEndpoint, due.endpoint_id, with_for_update={"key_share": True})
    # The owner may have given it another address since; that one has not said anything yet.
    if endpoint.url == due.url and endpoint.disabled_reason is None:
        endpoint.disabled_reason = "Its receiver answered 410 (Gone)."
        log.warning("webhook.disabled", endpoint_id=endpoint.id)


def forget_old(session: Session) -> None:
    """Rows that have ended and are old; what still waits is kept, however old."""
    ended = or_(WebhookDelivery.delivered_at.is_not(None), WebhookDelivery.failed_at.is_not(None))
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.created_at < clock.now() - _KEPT, ended))
