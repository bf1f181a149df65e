"""/v1/webhook_endpoints, /v1/webhook_event_types"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy.orm import Session

from api.deps import AfterQuery, Parsed, PartsDep, SessionDep, TenantDep, body_schema, json_body, parse
from core.config import Settings
from core.db.session import transaction
from core.db.tables import WebhookEndpoint
from core.errors import BadRequest
from core.schemas import webhooks as shape
from core.schemas.pages import Deleted, EndedPage
from core.schemas.webhooks import (
    EVENT_TYPES,
    WebhookCreate,
    WebhookEndpointOut,
    WebhookEndpointWithSecret,
    WebhookEventTypes,
    WebhookRotate,
    WebhookTest,
    WebhookTested,
    WebhookUpdate,
)
from core.services import deliveries, webhooks
from core.webhooks import address
from core.webhooks.address import Allowed
from core.webhooks.post import post

router = APIRouter(tags=["webhooks"])

_OPTIONAL_BODY = body_schema(WebhookRotate)
_OPTIONAL_BODY["requestBody"]["required"] = False


async def _rotation(request: Request) -> Parsed[WebhookRotate]:
    """Every field has a default, so no body at all is a body too."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return parse(WebhookRotate, b"{}")
    return await json_body(WebhookRotate)(request)


@router.get("/webhook_event_types")
def list_event_types(tenant: TenantDep) -> WebhookEventTypes:
    """What an endpoint can be told of."""
    return WebhookEventTypes(data=list(EVENT_TYPES))


@router.post("/webhook_endpoints", openapi_extra=body_schema(WebhookCreate))
def create(
    tenant: TenantDep, parts: PartsDep, body: Annotated[Parsed[WebhookCreate], Depends(json_body(WebhookCreate))]
) -> WebhookEndpointWithSecret:
    """A new endpoint. ``signing_secret`` is in this answer and never again."""
    # Before the transaction, since it asks the name service. It is asked again at each delivery.
    _check(body.model.url, parts.settings)
    with transaction(parts.sessions) as session:
        row = webhooks.create(session, tenant, body.model)
        return shape.of_new(row, webhooks.standing(session, [row])[0])


def _check(url: str, settings: Settings) -> None:
    address.check(url, Allowed.parse(settings.webhook_allow))


@router.get("/webhook_endpoints")
def list_endpoints(
    session: SessionDep, tenant: TenantDep, after: AfterQuery = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> EndedPage[WebhookEndpointOut]:
    """Newest first."""
    rows, more = webhooks.list_of(session, tenant, after=after, limit=limit)
    return EndedPage(
        data=[shape.of(row, ext) for row, ext in zip(rows, webhooks.standing(session, rows), strict=True)],
        has_more=more,
        first_id=rows[0].id if rows else None,
        last_id=rows[-1].id if rows else None,
    )


@router.get("/webhook_endpoints/{webhook_endpoint_id}")
def get(webhook_endpoint_id: str, session: SessionDep, tenant: TenantDep) -> WebhookEndpointOut:
    """An endpoint, how its deliveries go, and why it is disabled where it is."""
    return _out(session, webhooks.get(session, tenant, webhook_endpoint_id))


def _out(session: Session, row: WebhookEndpoint) -> WebhookEndpointOut:
    return shape.of(row, webhooks.standing(session, [row])[0])


@router.post("/webhook_endpoints/{webhook_endpoint_id}", openapi_extra=body_schema(WebhookUpdate))
def update(
    webhook_endpoint_id: str,
    tenant: TenantDep,
    parts: PartsDep,
    body: Annotated[Parsed[WebhookUpdate], Depends(json_body(WebhookUpdate))],
) -> WebhookEndpointOut:
    """Change what is given. A ``url`` enables an endpoint that was disabled."""
    if body.model.url is not None:
        _check(body.model.url, parts.settings)
    with transaction(parts.sessions) as session:
        return _out(session, webhooks.update(session, tenant, webhook_endpoint_id, body.model))


@router.delete("/webhook_endpoints/{webhook_endpoint_id}")
def delete(webhook_endpoint_id: str, session: SessionDep, tenant: TenantDep) -> Deleted:
    """What it still waits for is not sent any more."""
    webhooks.remove(session, tenant, webhook_endpoint_id)
    return Deleted(id=webhook_endpoint_id, object="webhook_endpoint.deleted")


@router.post("/webhook_endpoints/{webhook_endpoint_id}/rotate_secret", openapi_extra=_OPTIONAL_BODY)
def rotate_secret(
    webhook_endpoint_id: str,
    session: SessionDep,
    tenant: TenantDep,
    body: Annotated[Parsed[WebhookRotate], Depends(_rotation)],
) -> WebhookEndpointWithSecret:
    """A new secret. With ``keep_old_secret_active_for_24_hours`` both sign in the meantime."""
    overlap = body.model.keep_old_secret_active_for_24_hours
    row = webhooks.rotate(session, tenant, webhook_endpoint_id, overlap=overlap)
    return shape.of_new(row, webhooks.standing(session, [row])[0])


@router.post("/webhook_endpoints/{webhook_endpoint_id}/test", openapi_extra=body_schema(WebhookTest))
def test(
    webhook_endpoint_id: str,
    tenant: TenantDep,
    parts: PartsDep,
    body: Annotated[Parsed[WebhookTest], Depends(json_body(WebhookTest))],
) -> WebhookTested:
    """Send a sample event now, once. ``status_code`` is the receiver's, whatever it was; without one this is a 400."""
    type = body.model.event_type
    with transaction(parts.sessions) as session:
        due = deliveries.sample(session, webhooks.get(session, tenant, webhook_endpoint_id), type)
    answer = post(due.url, due.id, due.body, due.secrets, parts.settings)
    if answer.status is None:
        raise BadRequest(f"The receiver gave no answer: {answer.said.rstrip('.')}.", code="webhook_unreachable")
    return WebhookTested(webhook_endpoint_id=due.endpoint_id, event_type=type, status_code=answer.status)
