"""The one door to a tenant's rows. A query that does not begin here is a defect (``tests/core/test_tenancy.py``)."""

from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from core.db.tables import Answer, File, Job, Permission, TunedModel, Upload, WebhookEndpoint
from core.errors import NotFound


@dataclass(frozen=True, slots=True)
class Tenant:
    """On whose behalf a request or a task acts."""

    project_id: str
    organization_id: str
    organization: str
    key_id: str = ""
    scopes: frozenset[str] = frozenset()


Owned = TypeVar("Owned", Answer, File, Job, Permission, TunedModel, Upload, WebhookEndpoint)

# The noun that an error message uses for a table.
_NOUNS: dict[type[Any], str] = {
    Answer: "answer",
    File: "file",
    Job: "fine-tuning job",
    Permission: "permission",
    TunedModel: "model",
    Upload: "upload",
    WebhookEndpoint: "webhook endpoint",
}


def owned(table: type[Owned], tenant: Tenant, *, deleted: bool = False) -> Select[Owned]:
    """Rows of this table that the tenant may see; with ``deleted``, those it has removed as well (for cursors)."""
    query = select(table).where(table.project_id == tenant.project_id)
    # Not every table has the mark: an upload ends, it is never deleted.
    mark = getattr(table, "deleted_at", None)
    if mark is not None and not deleted:
        query = query.where(mark.is_(None))
    return query


def get(
    session: Session, table: type[Owned], tenant: Tenant, id: str, *, param: str | None = None, lock: bool = False
) -> Owned:
    """The tenant's row with this id, or NotFound: another project's row and no row at all answer the same."""
    query = owned(table, tenant).where(table.id == id)
    if lock:
        query = query.with_for_update(key_share=True)
    row = session.scalar(query)
    if row is None:
        raise missing(table, id, param)
    return row


def missing(table: type[Any], id: str, param: str | None = None) -> NotFound:
    return NotFound(f"No such {_NOUNS[table]}: {id!r}.", param=param or "id")
