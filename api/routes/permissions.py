"""/v1/fine_tuning/checkpoints/{checkpoint}/permissions"""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query

from api.deps import AfterQuery, Parsed, SessionDep, TenantDep, body_schema, json_body
from core.db.tables import Permission as Row
from core.schemas import permissions as shape
from core.schemas.pages import Deleted, EndedPage
from core.schemas.permissions import Permission, PermissionCreate
from core.services import permissions

router = APIRouter(prefix="/fine_tuning/checkpoints", tags=["fine-tuning"])


@router.post("/{checkpoint:path}/permissions", openapi_extra=body_schema(PermissionCreate))
def create(
    checkpoint: str,
    session: SessionDep,
    tenant: TenantDep,
    body: Annotated[Parsed[PermissionCreate], Depends(json_body(PermissionCreate))],
) -> EndedPage[Permission]:
    """Let other projects of the organization see and download a tuned model or a checkpoint."""
    return _page(permissions.create(session, tenant, checkpoint, body.model.project_ids), more=False)


@router.get("/{checkpoint:path}/permissions")
def list_permissions(
    checkpoint: str,
    session: SessionDep,
    tenant: TenantDep,
    after: AfterQuery = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    order: Literal["ascending", "descending"] = "descending",
    project_id: Annotated[str | None, Query(description="Only what this project may see.")] = None,
) -> EndedPage[Permission]:
    """Which other projects may see the checkpoint."""
    rows, more = permissions.list_of(
        session,
        tenant,
        checkpoint,
        project_id=project_id,
        after=after,
        limit=limit,
        newest_first=order == "descending",
    )
    return _page(rows, more)


@router.delete("/{checkpoint:path}/permissions/{permission_id}")
def delete(checkpoint: str, permission_id: str, session: SessionDep, tenant: TenantDep) -> Deleted:
    """From now on the project can't see the checkpoint; URLs that it has got stay good until they expire."""
    permissions.remove(session, tenant, checkpoint, permission_id)
    return Deleted(id=permission_id, object="checkpoint.permission")


def _page(rows: list[Row], more: bool) -> EndedPage[Permission]:
    return EndedPage(
        data=[shape.of(row) for row in rows],
        has_more=more,
        first_id=rows[0].id if rows else None,
        last_id=rows[-1].id if rows else None,
    )
