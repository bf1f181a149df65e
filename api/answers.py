"""Waiting for what prepare works out: the answer when it comes in time, else 202 and when to come again.

Nobody holds a thread or a database connection while waiting.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson
from anyio import to_thread
from fastapi.responses import JSONResponse, Response
from sqlalchemy.orm import Session

from api.live import Live
from core.db.session import reading, transaction
from core.db.tables import Answer
from core.db.tenancy import Tenant
from core.errors import AttuneError, BadRequest, Unavailable
from core.schemas.answers import Pending
from core.services import answers, replies
from core.services.answers import Question
from core.wiring import Parts

Json = dict[str, Any]  # Any: JSON

RETRY_SECONDS = 2
PENDING: dict[int | str, Json] = {
    202: {
        "model": Pending,
        "description": "It is being worked on: send the same request again after `retry-after` seconds.",
        "headers": {"retry-after": {"$ref": "#/components/headers/retry-after"}},
    }
}

# What is not the asker's doing: the one may be better the next time, the other is logged where it happened.
_AWAY = frozenset({"worker_lost", "storage_error"})
_DEFECTS = frozenset({"server_error", "prepare_failed"})


class Found(NamedTuple):
    result: Json
    objects: dict[str, str]
    """Keys in the store by name."""


async def answer(parts: Parts, live: Live, tenant: Tenant, question: Callable[[Session], Question]) -> Found | Response:
    """The answer, or the 202 to send. ``question`` may refuse the request by raising."""
    clock = asyncio.get_running_loop().time
    end = clock() + parts.settings.answer_wait_seconds
    row = await to_thread.run_sync(_ask, parts, tenant, question)
    waits = row.settled_at is None
    with live.bell(row.id) as bell:
        while waits:
            # Taken before the look, so that what comes during the look is not slept through.
            ring = bell.next
            seen = await to_thread.run_sync(_look, parts, tenant, row.id)
            # One that is gone went with a file of the same content: it is asked for anew.
            row = seen if seen is not None else await to_thread.run_sync(_ask, parts, tenant, question)
            waits = row.settled_at is None and await live.rung(ring, end)
    if row.settled_at is None:
        return _pending(row)
    if row.error is not None:
        raise _refused(row.error)
    if row.result is None:
        return Found(orjson.loads(await to_thread.run_sync(parts.store.get, row.objects[replies.RESULT])), row.objects)
    return Found(row.result, row.objects)


def _ask(parts: Parts, tenant: Tenant, question: Callable[[Session], Question]) -> Answer:
    with transaction(parts.sessions) as session:
        row, new = answers.ask(session, tenant, question(session))
    if new:
        # After the commit, and best effort: the row is the work, the ring only saves a few seconds.
        parts.doorbell.ring("prepare")
    return row


def _look(parts: Parts, tenant: Tenant, id: str) -> Answer | None:
    with reading(parts.sessions) as session:
        return answers.get(session, tenant, id)


def _pending(row: Answer) -> Response:
    body = Pending(id=row.id, kind=row.kind).model_dump(mode="json")
    return JSONResponse(body, 202, {"retry-after": str(RETRY_SECONDS)})


def _refused(error: Json) -> AttuneError:
    if error["code"] in _AWAY:
        return Unavailable(error["message"])
    kind = AttuneError if error["code"] in _DEFECTS else BadRequest
    return kind(error["message"], code=error["code"], param=error["param"])
