"""Core errors to HTTP: the only place that knows status codes. Every answer is OpenAI's envelope."""

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api.deps import dotted
from core import errors, telemetry
from core.errors import AttuneError

log = structlog.get_logger()

_STATUSES: dict[type[AttuneError], int] = {
    errors.BadRequest: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.QuotaExceeded: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.TooLarge: 413,
    errors.KeyReused: 422,
    errors.RateLimited: 429,
    errors.Unavailable: 503,
}

# What OpenAI's API has and this one has not, and what helps instead.
_ABSENT = {
    "chat": "Answers from a model: load the adapter with PEFT or serve it with vLLM.",
    "completions": "Answers from a model: load the adapter with PEFT or serve it with vLLM.",
    "responses": "Answers from a model: load the adapter with PEFT or serve it with vLLM.",
    "embeddings": "Embeddings are not part of this service.",
    "batches": "Batches are not part of this release.",
    "evals": "Give the job a validation file: its loss and accuracy are in the job's events and metrics file.",
    "uploads": "An upload is created, given parts, completed or cancelled; it can't be looked up.",
    "fine_tuning/alpha/graders": "Reinforcement fine-tuning is not part of this release.",
}


_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def install(app: FastAPI) -> None:
    app.add_exception_handler(AttuneError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DataError, _unstorable)
    for gone in (OperationalError, InterfaceError, PoolTimeout):
        app.add_exception_handler(gone, _database_away)


def envelope(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status, headers)


def _known(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AttuneError)
    status = next((_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES), 500)
    headers = {}
    if status in (409, 500):
        # The SDK retries these by itself, which can't help here.
        headers["x-should-retry"] = "false"
    if isinstance(error, errors.RateLimited | errors.Unavailable):
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return envelope(status, error.message, param=error.param, code=error.error_code, headers=headers)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Faults in the path or the query; bodies are read by ``api/deps.json_body``."""
    assert isinstance(error, RequestValidationError)
    sentences = [f"{dotted(fault['loc'][1:])}: {fault['msg']}, not {fault.get('input')!r}" for fault in error.errors()]
    return envelope(400, "; ".join(sentences) + ".", param=dotted(error.errors()[0]["loc"][1:]), code="invalid_value")


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path = request.url.path
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed(request))
        message, code = f"{request.method} is not allowed on {path}.", "method_not_allowed"
    elif error.status_code == 404:
        absent = next((hint for prefix, hint in _ABSENT.items() if path.startswith(f"/v1/{prefix}")), None)
        message = f"{request.method} {path}: no such route." if absent is None else f"{path} is not offered. {absent}"
        code = "unknown_url"
    else:
        message, code = str(error.detail), "http_error"
    return envelope(error.status_code, message, code=code, headers=headers)


def _allowed(request: Request) -> list[str]:
    """Methods of this path. The router names only those of the first route that it finds there."""
    # A path without parameters is not what a route with one would take it for: ``/jobs/estimate`` is no job.
    if own := request.app.openapi()["paths"].get(request.url.path):
        return [method for method in _METHODS if method.lower() in own]
    scopes = {method: {**request.scope, "method": method} for method in _METHODS}
    return [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] == Match.FULL for route in request.app.router.routes)
    ]


def _unstorable(request: Request, error: Exception) -> JSONResponse:
    return envelope(400, "A value in the request can't be stored.", code="invalid_value")


def _database_away(request: Request, error: Exception) -> JSONResponse:
    telemetry.database_away.inc()
    log.warning("database.away", error=type(error).__name__)
    return envelope(503, "The database is away; try again shortly.", code="unavailable", headers={"retry-after": "2"})


def unexpected(path: str, error: Exception) -> JSONResponse:
    """For ``api/requests.py``: whatever nobody foresaw is logged, and the client learns only that it happened."""
    log.error("request.failed", path=path, exc_info=error)
    return envelope(
        500, "The server had an error; it has been logged.", code="server_error", headers={"x-should-retry": "false"}
    )
