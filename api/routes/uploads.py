"""/v1/uploads"""

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Request

from api.deps import Parsed, PartsDep, SessionDep, TenantDep, body_schema, json_body
from api.multipart import FormReader
from api.routes.files import clean_name
from core.db.session import transaction
from core.db.tables import UploadPart
from core.db.tenancy import Tenant
from core.errors import BadRequest
from core.schemas import uploads as shape
from core.schemas.uploads import UploadComplete, UploadCreate, UploadObject, UploadPartObject
from core.services import joins, uploads
from core.services.uploads import IncomingPart
from core.wiring import Parts

router = APIRouter(prefix="/uploads", tags=["uploads"])

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary", "minLength": 1}},
                }
            }
        },
    }
}


@router.post("", openapi_extra=body_schema(UploadCreate))
def create(
    session: SessionDep,
    tenant: TenantDep,
    parts: PartsDep,
    body: Annotated[Parsed[UploadCreate], Depends(json_body(UploadCreate))],
) -> UploadObject:
    """Announce a file that will come in parts. They may come at once and in any order, until ``expires_at``."""
    row = uploads.create(session, tenant, body.model, clean_name(body.model.filename), parts.settings)
    session.flush()
    session.refresh(row)
    return shape.of(row)


@router.post("/{upload_id}/parts", openapi_extra=_FORM)
async def add_part(upload_id: str, request: Request, tenant: TenantDep, parts: PartsDep) -> UploadPartObject:
    """Add a part. One that is sent again is another part; completing the upload names those that count."""
    # An upload that is not there or not open is refused before its bytes are read.
    row, limit = await to_thread.run_sync(_begin, parts, tenant, upload_id)
    incoming = IncomingPart(parts.store, row, limit)
    kept = False
    try:
        form = FormReader(request.headers.get("content-type", ""), "data", lambda _: incoming)
        await form.read(request.stream())
        if not form.has_file:
            raise BadRequest("data: missing.", param="data", code="missing_required_parameter")
        answer = await to_thread.run_sync(_keep, parts, tenant, incoming, row)
        kept = True
        return answer
    finally:
        if not kept:
            # Refused, broken off or failed: no byte of it stays behind.
            await to_thread.run_sync(_drop, parts, incoming, row, abandon_on_cancel=False)


def _begin(parts: Parts, tenant: Tenant, upload_id: str) -> tuple[UploadPart, int]:
    with transaction(parts.sessions) as session:
        return uploads.begin_part(session, tenant, upload_id, parts.settings)


def _keep(parts: Parts, tenant: Tenant, incoming: IncomingPart, row: UploadPart) -> UploadPartObject:
    incoming.finish()
    with transaction(parts.sessions) as session:
        whole = uploads.end_part(session, tenant, row, incoming.bytes)
    return shape.part_of(whole)


def _drop(parts: Parts, incoming: IncomingPart, row: UploadPart) -> None:
    incoming.abort()
    with transaction(parts.sessions) as session:
        uploads.drop_part(session, row)


@router.post("/{upload_id}/complete", openapi_extra=body_schema(UploadComplete))
def complete(
    upload_id: str,
    tenant: TenantDep,
    parts: PartsDep,
    body: Annotated[Parsed[UploadComplete], Depends(json_body(UploadComplete))],
) -> UploadObject:
    """Fix the order of the parts. The file is there at once; a worker joins and checks its bytes."""
    with transaction(parts.sessions) as session:
        row, file = uploads.complete(session, tenant, upload_id, body.model)
    parts.doorbell.ring("prepare")
    return shape.of(row, file)


@router.post("/{upload_id}/cancel")
def cancel(upload_id: str, tenant: TenantDep, parts: PartsDep) -> UploadObject:
    """Nothing comes of it; its parts are removed."""
    with transaction(parts.sessions) as session:
        row = uploads.cancel(session, tenant, upload_id)
    # After the commit: from here on no part can come in.
    joins.clear(parts.sessions, parts.store, parts.settings, upload_id)
    return shape.of(row)
