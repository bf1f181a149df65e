"""Which other projects of the organisation may use a tuned model or a checkpoint: see it, and download its weights."""

from sqlalchemy import Select, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core import ids
from core.db import tenancy
from core.db.tables import Permission, Project
from core.db.tenancy import Tenant
from core.errors import BadRequest
from core.services import pages, tenants, weights


def create(session: Session, tenant: Tenant, checkpoint: str, project_ids: list[str]) -> list[Permission]:
    """A permission for each project; one that is there already is given back as it is."""
    weights.of(session, tenant, checkpoint)
    wanted = list(dict.fromkeys(project_ids))
    known = set(
        session.scalars(
            select(Project.id).where(Project.organization_id == tenant.organization_id, Project.id.in_(wanted))
        )
    )
    for index, project_id in enumerate(project_ids):
        if project_id not in known:
            path = f"project_ids[{index}]"
            raise BadRequest(f"{path}: there is no project {project_id!r} in this organization.", param=path)
    for project_id in wanted:
        # Two that come together must not both find none: (checkpoint, project) is unique.
        session.execute(
            insert(Permission)
            .values(
                id=ids.permission(),
                project_id=tenant.project_id,
                checkpoint=checkpoint,
                granted_project_id=project_id,
            )
            .on_conflict_do_nothing()
        )
    rows = session.scalars(_of(tenant, checkpoint).where(Permission.granted_project_id.in_(wanted))).all()
    return sorted(rows, key=lambda row: wanted.index(row.granted_project_id))


def list_of(
    session: Session,
    tenant: Tenant,
    checkpoint: str,
    *,
    project_id: str | None,
    after: str | None,
    limit: int,
    newest_first: bool,
) -> tuple[list[Permission], bool]:
    weights.of(session, tenant, checkpoint)
    query = _of(tenant, checkpoint)
    if project_id is not None:
        query = query.where(Permission.granted_project_id == project_id)
    cursor = None
    if after is not None:
        found = session.scalar(_of(tenant, checkpoint).where(Permission.id == after))
        if found is None:
            raise pages.unknown_cursor(after)
        cursor = (found.created_at, found.id)
    position = (Permission.created_at, Permission.id)
    return pages.page(session, query, position, cursor, limit, newest_first=newest_first)


def remove(session: Session, tenant: Tenant, checkpoint: str, id: str) -> None:
    row = session.scalar(_of(tenant, checkpoint).where(Permission.id == id))
    if row is None:
        raise tenancy.missing(Permission, id)
    session.delete(row)


def owner(session: Session, tenant: Tenant, checkpoint: str) -> Tenant | None:
    """The project that lets this one use the checkpoint, if there is one."""
    project_id = session.scalar(
        select(Permission.project_id).where(
            Permission.checkpoint == checkpoint, Permission.granted_project_id == tenant.project_id
        )
    )
    return None if project_id is None else tenants.of_project(session, project_id)


def _of(tenant: Tenant, checkpoint: str) -> Select[Permission]:
    return tenancy.owned(Permission, tenant).where(Permission.checkpoint == checkpoint)
