"""/v1/files"""

from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from api.deps import AfterQuery, PartsDep, SessionDep, TenantDep
from api.multipart import FormReader
from core.db.session import transaction
from core.db.tenancy import Tenant
from core.errors import BadRequest
from core.schemas import files as shape
from core.schemas.files import UPLOAD_PURPOSES, FileObject
from core.schemas.pages import Deleted, EndedPage
from core.services import files, quotas
from core.services.files import Incoming
from core.wiring import Parts

router = APIRouter(prefix="/files", tags=["files"])

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(UPLOAD_PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                    "dependentRequired": {
                        "expires_after[anchor]": ["expires_after[seconds]"],
                        "expires_after[seconds]": ["expires_after[anchor]"],
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=_FORM)
async def create(request: Request, tenant: TenantDep, parts: PartsDep) -> FileObject:
    """Upload a file. It is hashed, stored and, when it is JSONL of moderate size, checked in one pass."""
    incoming: Incoming | None = None

    def open_file(filename: str) -> Incoming:
        nonlocal incoming
        incoming = Incoming(parts.store, parts.settings, clean_name(filename))
        return incoming

    form = FormReader(request.headers.get("content-type", ""), "file", open_file)
    kept = False
    try:
        await form.read(request.stream())
        purpose, expires_after = _fields(form)
        if incoming is None:
            raise BadRequest("file: missing.", param="file", code="missing_required_parameter")
        answer = await to_thread.run_sync(_keep, parts, incoming, tenant, purpose, expires_after)
        kept = True
        return answer
    finally:
        if incoming is not None and not kept:
            # Refused, broken off or failed: no byte of it stays behind.
            await to_thread.run_sync(incoming.abort, abandon_on_cancel=False)


def _keep(parts: Parts, incoming: Incoming, tenant: Tenant, purpose: str, expires_after: int | None) -> FileObject:
    row, item = incoming.finish(tenant, purpose, expires_after)
    with transaction(parts.sessions) as session:
        quotas.check_stored_bytes(session, tenant, row.bytes, parts.settings)
        session.add(row)
        if item is not None:
            session.add(item)
        session.flush()
        session.refresh(row)
    if item is not None:
        parts.doorbell.ring("prepare")
    return shape.of(row)


def _fields(form: FormReader) -> tuple[str, int | None]:
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise BadRequest("purpose: missing.", param="purpose", code="missing_required_parameter")
    if purpose not in UPLOAD_PURPOSES:
        raise BadRequest(f"purpose: {purpose!r} is not one of {', '.join(UPLOAD_PURPOSES)}.", param="purpose")
    anchor, seconds = form.fields.get("expires_after[anchor]"), form.fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return purpose, None
    if anchor != "created_at":
        raise BadRequest(f'expires_after.anchor: {anchor!r} is not "created_at".', param="expires_after.anchor")
    if seconds is None or not seconds.isascii() or not seconds.isdigit() or not 3600 <= int(seconds) <= 2592000:
        raise BadRequest(
            f"expires_after.seconds: {seconds!r} is not a whole number from 3600 to 2592000.",
            param="expires_after.seconds",
        )
    return purpose, int(seconds)


def clean_name(filename: str) -> str:
    """The last part of the name, printable. It is shown to people and put into headers, never into a path."""
    last = filename.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in last if c.isprintable())[:255] or "file"


@router.get("")
def list_files(
    session: SessionDep,
    tenant: TenantDep,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=10000)] = 10000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> EndedPage[FileObject]:
    """Your files and the results of your jobs."""
    rows, more = files.list_of(session, tenant, purpose=purpose, order=order, after=after, limit=limit)
    return EndedPage(
        data=[shape.of(row) for row in rows],
        has_more=more,
        first_id=rows[0].id if rows else None,
        last_id=rows[-1].id if rows else None,
    )


@router.get("/{file_id}")
def get(file_id: str, session: SessionDep, tenant: TenantDep) -> FileObject:
    """What is known of a file; what its check found is in ``ext.report``."""
    return shape.of(files.get(session, tenant, file_id))


@router.delete("/{file_id}")
def delete(file_id: str, tenant: TenantDep, parts: PartsDep) -> Deleted:
    """Remove a file and its bytes. One that a job still needs stays: cancel the job first."""
    with transaction(parts.sessions) as session:
        keys = files.remove(session, tenant, file_id)
    # After the commit: a row without its object would be a broken promise, an object without a row is litter.
    parts.store.delete(*keys)
    return Deleted(id=file_id, object="file")


_LOCATION: dict[str, Any] = {
    "description": "Where the bytes are: a URL that is good for a while and needs no key. It takes `Range`.",
    "headers": {"location": {"required": True, "schema": {"type": "string", "format": "uri"}}},
}
_FACTS: dict[str, Any] = {
    "description": "The headers that the bytes come with.",
    "headers": {
        "content-length": {"required": True, "schema": {"type": "integer", "minimum": 0}},
        "etag": {"required": True, "schema": {"type": "string"}},
        "accept-ranges": {"required": True, "schema": {"const": "bytes"}},
    },
}


@router.get(
    "/{file_id}/content",
    response_class=RedirectResponse,
    status_code=302,
    responses={302: _LOCATION},
    openapi_extra={"x-also": [409]},
    summary="Download a file",
)
def content(file_id: str, session: SessionDep, tenant: TenantDep, parts: PartsDep) -> RedirectResponse:
    """Redirects to the object store, which sends the bytes; clients leave their key behind when they follow."""
    row = files.readable(session, tenant, file_id)
    url = parts.store.presigned(row.storage_key, filename=row.filename, seconds=parts.settings.presigned_url_seconds)
    return RedirectResponse(url, 302)


@router.head(
    "/{file_id}/content",
    response_class=Response,
    responses={200: _FACTS},
    openapi_extra={"x-also": [409]},
    summary="Look at a download",
)
def content_facts(file_id: str, tenant: TenantDep, parts: PartsDep) -> Response:
    """Length, type and ETag of the bytes. Answered here: a URL that is signed for GET does not serve HEAD."""
    with transaction(parts.sessions) as session:
        key = files.readable(session, tenant, file_id).storage_key
    facts = parts.store.facts(key)
    headers = {"content-length": str(facts.bytes), "content-type": facts.type, "etag": facts.etag}
    return Response(headers=headers | {"accept-ranges": "bytes"})
