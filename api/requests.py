"""Around every request: an id on the answer, and a plain refusal of what no handler should see."""

import time

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import envelope, unexpected
from core import ids, telemetry


class RequestIds:
    """Pure ASGI, so that streamed bodies pass through untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = ids.request()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)

        started = False
        began = time.perf_counter()

        async def with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                _count(scope, message["status"], time.perf_counter() - began)
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if scope["app"].state.draining:
                    # A connection that is kept would break under the client's next request.
                    headers["connection"] = "close"
            await send(message)

        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            # PostgreSQL has no NUL in text, so no id and no name can hold one.
            refused = envelope(400, "The URL holds a NUL character.", code="invalid_value")
            await refused(scope, receive, with_id)
            return
        try:
            await self._app(scope, receive, with_id)
        except Exception as error:  # the last resort: nothing may answer without the envelope
            if started:
                raise
            await unexpected(scope["path"], error)(scope, receive, with_id)


def _count(scope: Scope, status: int, seconds: float) -> None:
    # By the route and not by the path, of which there are as many as there are ids.
    route = getattr(scope.get("route"), "path", "none")
    method = scope["method"] if route != "none" else "none"
    telemetry.requests.labels(method, route, str(status)).inc()
    telemetry.request_seconds.labels(method, route).observe(seconds)
