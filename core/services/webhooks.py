"""Webhook endpoints of a project: made, listed, changed, rotated, removed."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from core import clock, ids
from core.db import tenancy
from core.db.tables import WebhookDelivery, WebhookEndpoint
from core.db.tenancy import Tenant
from core.errors import QuotaExceeded
from core.schemas.webhooks import WebhookCreate, WebhookExt, WebhookUpdate
from core.services import pages
from core.webhooks import signature

# Each end of a job is a row and a connection for every endpoint.
MAX_ENDPOINTS = 100
_OVERLAP_SECONDS = 24 * 3600


def create(session: Session, tenant: Tenant, body: WebhookCreate) -> WebhookEndpoint:
    """The caller has checked where ``url`` leads (``core/webhooks/address.py``), without a transaction open."""
    owned = tenancy.owned(WebhookEndpoint, tenant).subquery()
    if (session.scalar(select(func.count()).select_from(owned)) or 0) >= MAX_ENDPOINTS:
        raise QuotaExceeded(f"A project can have {MAX_ENDPOINTS} webhook endpoints.", code="too_many_webhooks")
    row = WebhookEndpoint(
        id=ids.webhook_endpoint(),
        project_id=tenant.project_id,
        name=body.name,
        url=body.url,
        event_types=_once(body.event_types),
        secret=signature.new_secret(),
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def _once(types: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(types))


def get(session: Session, tenant: Tenant, id: str) -> WebhookEndpoint:
    return tenancy.get(session, WebhookEndpoint, tenant, id)


def list_of(session: Session, tenant: Tenant, *, after: str | None, limit: int) -> tuple[list[WebhookEndpoint], bool]:
    cursor = None
    if after is not None:
        found = session.scalar(tenancy.owned(WebhookEndpoint, tenant, deleted=True).where(WebhookEndpoint.id == after))
        if found is None:
            raise pages.unknown_cursor(after)
        cursor = (found.created_at, found.id)
    position = (WebhookEndpoint.created_at, WebhookEndpoint.id)
    return pages.page(session, tenancy.owned(WebhookEndpoint, tenant), position, cursor, limit)


def update(session: Session, tenant: Tenant, id: str, body: WebhookUpdate) -> WebhookEndpoint:
    """Change what is given. A ``url``, be it the same one, enables a disabled endpoint: its owner says it is there."""
    row = tenancy.get(session, WebhookEndpoint, tenant, id, lock=True)
    given = {
        "name": body.name,
        "url": body.url,
        "event_types": None if body.event_types is None else _once(body.event_types),
    }
    changed: dict[str, object] = {
        name: value for name, value in given.items() if value is not None and getattr(row, name) != value
    }
    if body.url is not None and row.disabled_reason is not None:
        changed["disabled_reason"] = None
    for name, value in changed.items():
        setattr(row, name, value)
    if changed:
        _touch(session, row)
    return row


def rotate(session: Session, tenant: Tenant, id: str, *, overlap: bool) -> WebhookEndpoint:
    """A new secret. With ``overlap`` the old one goes on signing beside it for 24 hours, else it ends now."""
    row = tenancy.get(session, WebhookEndpoint, tenant, id, lock=True)
    row.previous_secret = row.secret if overlap else None
    row.previous_secret_until = clock.in_seconds(_OVERLAP_SECONDS) if overlap else None
    row.secret = signature.new_secret()
    _touch(session, row)
    return row


def _touch(session: Session, row: WebhookEndpoint) -> None:
    row.updated_at = clock.now()
    session.flush()
    session.refresh(row)


def remove(session: Session, tenant: Tenant, id: str) -> None:
    """Its secrets go at once; what waits to be delivered is not sent any more."""
    row = tenancy.get(session, WebhookEndpoint, tenant, id, lock=True)
    row.deleted_at = clock.now()
    row.secret, row.previous_secret = "", None


def standing(session: Session, rows: Sequence[WebhookEndpoint]) -> list[WebhookExt]:
    """How each endpoint is doing, in the order given."""
    endpoint_ids = [row.id for row in rows]
    open_rows = WebhookDelivery.delivered_at.is_(None) & WebhookDelivery.failed_at.is_(None)
    waiting = dict(
        session.execute(
            select(WebhookDelivery.endpoint_id, func.count())
            .where(WebhookDelivery.endpoint_id.in_(endpoint_ids), open_rows)
            .group_by(WebhookDelivery.endpoint_id)
        ).all()
    )
    newest = dict(
        session.execute(
            select(WebhookDelivery.endpoint_id, WebhookDelivery.last_answer)
            .ext(distinct_on(WebhookDelivery.endpoint_id))
            .where(WebhookDelivery.endpoint_id.in_(endpoint_ids), WebhookDelivery.last_answer.is_not(None))
            .order_by(WebhookDelivery.endpoint_id, WebhookDelivery.created_at.desc())
        ).all()
    )
    return [
        WebhookExt(disabled_reason=row.disabled_reason, waiting=waiting.get(row.id, 0), last_answer=newest.get(row.id))
        for row in rows
    ]
