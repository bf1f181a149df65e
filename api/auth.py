"""Whose request this is: the bearer key, looked up before anything of the body is read."""

from typing import Annotated

from fastapi import Depends, Request

from api.limits import RequestLimit
from core.db.session import reading
from core.db.tenancy import Tenant
from core.errors import Forbidden, Unauthenticated
from core.services import keys
from core.wiring import Parts


def tenant(request: Request) -> Tenant:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise Unauthenticated(
            "You didn't provide an API key. Send it in the header `Authorization: Bearer <key>`.",
            code="missing_api_key",
        )
    parts: Parts = request.app.state.parts
    # A session of its own: the request's one must not be open while an upload streams in.
    with reading(parts.sessions) as session:
        found = keys.authenticate(session, secret.strip())
    limit: RequestLimit = request.app.state.limit
    limit.check(found.key_id)
    needed = "read" if request.method in ("GET", "HEAD") else "train"
    if not found.scopes & {needed, "admin"}:
        raise Forbidden(f"This API key lacks the scope {needed!r}.")
    return found


def administrator(found: Annotated[Tenant, Depends(tenant)]) -> Tenant:
    if "admin" not in found.scopes:
        raise Forbidden("This needs an API key with the scope 'admin'.")
    return found
