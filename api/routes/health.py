"""/healthz and /readyz, for whatever keeps this process running."""

from typing import Literal

import redis
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from api.deps import PartsDep
from core.errors import Unavailable

router = APIRouter(tags=["operations"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    status: Literal["ready", "not_ready"]
    checks: dict[str, Literal["ok", "unavailable"]]


@router.get("/healthz", summary="Does it run")
async def healthz() -> Health:
    """The process runs. Touches nothing, so that a database's trouble never restarts the API."""
    return Health()


@router.get(
    "/readyz",
    summary="Can it serve",
    responses={503: {"model": Readiness, "description": "Not now; ``checks`` says what is missing."}},
)
def readyz(request: Request, parts: PartsDep, response: Response) -> Readiness:
    """Requests can be served, and the process is not about to end.

    Redis is told of but not required: jobs are accepted and found without it.
    """
    checks: dict[str, Literal["ok", "unavailable"]] = {"database": "ok", "redis": "ok", "s3": "ok"}
    try:
        with parts.sessions() as session:
            session.execute(text("SELECT 1 FROM jobs LIMIT 1"))
    except SQLAlchemyError:
        checks["database"] = "unavailable"
    try:
        with redis.Redis.from_url(parts.settings.redis_url, socket_timeout=2, socket_connect_timeout=2) as client:
            client.ping()
    except redis.RedisError:
        checks["redis"] = "unavailable"
    try:
        parts.store.ready()
    except Unavailable:
        checks["s3"] = "unavailable"
    if request.app.state.draining:
        checks["process"] = "unavailable"
    ready = "unavailable" not in {value for name, value in checks.items() if name != "redis"}
    response.status_code = 200 if ready else 503
    return Readiness(status="ready" if ready else "not_ready", checks=checks)
