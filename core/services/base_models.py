"""Base models on offer: registered by an administrator, found by name or alias."""

from typing import Any

from sqlalchemy import any_, literal, or_, select
from sqlalchemy.orm import Session

from core import clock, ids
from core.db.tables import BaseModel, WorkItem
from core.errors import BadRequest, Conflict, NotFound
from core.schemas.models import BaseModelCreate
from core.states import ItemKind


def register(session: Session, wanted: BaseModelCreate) -> BaseModel:
    """A new base model and the work item that fetches and converts it. A failed one of the same name is replaced."""
    for param, name in [("name", wanted.name), *((f"aliases[{i}]", alias) for i, alias in enumerate(wanted.aliases))]:
        taken = _named(session, name)
        if taken is None:
            continue
        if taken.name != wanted.name or taken.status != "failed":
            raise Conflict(f"{param}: the name {name!r} is taken by the base model {taken.name!r}.", param=param)
        taken.deleted_at = clock.now()
        session.flush()
    row = BaseModel(
        id=ids.base_model(),
        name=wanted.name,
        source=wanted.source,
        revision=wanted.revision,
        chat_template=wanted.chat_template,
        aliases=wanted.aliases,
        license=wanted.license,
        status="registering",
    )
    session.add(row)
    session.add(WorkItem(id=ids.work_item(), kind=ItemKind.REGISTER_MODEL, subject_id=row.id))
    session.flush()
    return row


def list_all(session: Session) -> list[BaseModel]:
    query = select(BaseModel).where(BaseModel.deleted_at.is_(None))
    return list(session.scalars(query.order_by(BaseModel.created_at.desc(), BaseModel.id.desc())))


def list_ready(session: Session) -> list[BaseModel]:
    return [row for row in list_all(session) if row.status == "ready"]


def get(session: Session, name: str) -> BaseModel:
    row = _named(session, name)
    if row is None:
        raise NotFound(f"The base model {name!r} does not exist.", param="model", code="model_not_found")
    return row


def usable(session: Session, name: str) -> BaseModel:
    """The base model that a job may start from."""
    row = _named(session, name)
    if row is None:
        offered = ", ".join(sorted(model.name for model in list_ready(session))) or "none yet"
        raise BadRequest(
            f"model: {name!r} is not a base model of this service. On offer: {offered}.",
            param="model",
            code="model_not_available",
        )
    if row.status != "ready":
        why = (row.error or {}).get("message") or "it is being registered; try again when it is ready"
        raise BadRequest(
            f"model: {name!r} can't be used: {why.rstrip('.')}.", param="model", code="model_not_available"
        )
    return row


def remove(session: Session, name: str) -> None:
    """Take it off the list. Jobs and tuned models that stand on it keep its files."""
    get(session, name).deleted_at = clock.now()


def _named(session: Session, name: str) -> BaseModel | None:
    return session.scalar(
        select(BaseModel).where(
            BaseModel.deleted_at.is_(None), or_(BaseModel.name == name, literal(name) == any_(BaseModel.aliases))
        )
    )


def by_id(session: Session, id: str) -> BaseModel:
    return session.get_one(BaseModel, id)


def registered(row: BaseModel, facts: dict[str, Any]) -> None:
    """The worker's report: it is ready. ``facts`` is the JSON of ``worker.prepare.folder.Facts``."""
    row.facts = facts
    row.files = {"files": facts["files"]}
    row.content_sha256 = facts["sha256"]
    row.license = row.license or facts["license"]
    row.progress = None
    row.status = "ready"


def failed(row: BaseModel, code: str, message: str, param: str | None) -> None:
    row.error = {"code": code, "message": message, "param": param}
    row.progress = None
    row.status = "failed"
