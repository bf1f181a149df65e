"""Webhook endpoints as OpenAI's wire has them; why one is disabled, and what waits, in ``ext``."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from core import clock
from core.db.tables import WebhookEndpoint
from core.webhooks import signature
from core.webhooks.address import MAX_URL

EventType = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
EVENT_TYPES: tuple[EventType, ...] = (
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
)

Name = Annotated[str, Field(min_length=1, max_length=256)]
Url = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_URL,
        description="https:// or http://, on port 443 or 80 of a public host. Redirects are not followed.",
    ),
]
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=len(EVENT_TYPES) * 10)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class WebhookCreate(_Body):
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "trainings",
                "url": "https://example.com/hooks/attune",
                "event_types": ["fine_tuning.job.succeeded", "fine_tuning.job.failed"],
            }
        }
    )

    name: Name
    url: Url
    event_types: EventTypes


class WebhookUpdate(_Body):
    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None


class WebhookRotate(_Body):
    keep_old_secret_active_for_24_hours: bool = False


class WebhookTest(_Body):
    event_type: EventType


class WebhookExt(BaseModel):
    disabled_reason: str | None
    """Why nothing is sent any more; giving a ``url`` enables the endpoint again."""
    waiting: int
    """Events that are still to be delivered."""
    last_answer: str | None
    """What came of the newest try: ``status 200``, ``no answer within 15 s``."""


class WebhookEndpointOut(BaseModel):
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    id: str
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    created_at: int
    updated_at: int
    ext: WebhookExt


class WebhookEndpointWithSecret(WebhookEndpointOut):
    signing_secret: str
    """In this answer and never again."""


class WebhookTested(BaseModel):
    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class WebhookEventTypes(BaseModel):
    object: Literal["list"] = "list"
    data: list[str]


def of(row: WebhookEndpoint, ext: WebhookExt) -> WebhookEndpointOut:
    return WebhookEndpointOut.model_validate(_fields(row, ext))


def of_new(row: WebhookEndpoint, ext: WebhookExt) -> WebhookEndpointWithSecret:
    return WebhookEndpointWithSecret.model_validate(_fields(row, ext) | {"signing_secret": row.secret})


def _fields(row: WebhookEndpoint, ext: WebhookExt) -> dict[str, object]:
    return {
        "id": row.id,
        "name": row.name,
        "url": row.url,
        "event_types": row.event_types,
        "signing_secret_hint": signature.hint(row.secret),
        "created_at": clock.unix(row.created_at),
        "updated_at": clock.unix(row.updated_at),
        "ext": ext,
    }
