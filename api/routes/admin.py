"""/v1/admin: base models, API keys, workers. Needs a key with the scope ``admin``."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from api.deps import AdminDep, Parsed, PartsDep, SessionDep, body_schema, json_body
from core.db.session import transaction
from core.db.tables import BaseModel
from core.schemas import keys as key_shape
from core.schemas import models as model_shape
from core.schemas import workers as worker_shape
from core.schemas.keys import KeyCreate, KeyOut, NewKeyOut
from core.schemas.models import ArtifactFile, BaseModelCreate, BaseModelOut
from core.schemas.pages import Deleted, Page
from core.schemas.workers import WorkerOut
from core.services import base_models, keys, workers
from core.storage import store as layout
from core.wiring import Parts

router = APIRouter(prefix="/admin", tags=["admin"])


@router.post("/models", openapi_extra=body_schema(BaseModelCreate) | {"x-also": [409]})
def register_model(
    admin: AdminDep, parts: PartsDep, body: Annotated[Parsed[BaseModelCreate], Depends(json_body(BaseModelCreate))]
) -> BaseModelOut:
    """Register a base model. A worker fetches and converts it; watch ``status`` and ``progress``."""
    with transaction(parts.sessions) as session:
        row = base_models.register(session, body.model)
        session.refresh(row)
        answer = model_shape.base_of(row)
    parts.doorbell.ring("prepare")
    return answer


@router.get("/models")
def list_models(session: SessionDep, admin: AdminDep) -> Page[BaseModelOut]:
    """All base models, with those that are still being registered or could not be."""
    return Page(data=[model_shape.base_of(row) for row in base_models.list_all(session)], has_more=False)


@router.get("/models/{name:path}")
def get_model(
    name: str,
    session: SessionDep,
    admin: AdminDep,
    parts: PartsDep,
    artifacts: Annotated[bool, Query(description="Name the model's files, each with a URL to download it.")] = False,
) -> BaseModelOut:
    """One base model; with ``artifacts=true``, where each of its files can be downloaded."""
    row = base_models.get(session, name)
    return model_shape.base_of(row, _artifacts(parts, row) if artifacts and row.files else None)


def _artifacts(parts: Parts, row: BaseModel) -> list[ArtifactFile]:
    assert row.files is not None
    assert row.content_sha256 is not None
    return [
        ArtifactFile(
            **entry,
            url=parts.store.presigned(
                layout.base_model(row.content_sha256, entry["path"]),
                filename=entry["path"].rsplit("/", 1)[-1],
                seconds=parts.settings.presigned_url_seconds,
            ),
        )
        for entry in row.files["files"]
    ]


@router.delete("/models/{name:path}")
def delete_model(name: str, session: SessionDep, admin: AdminDep) -> Deleted:
    """Take a base model off the list. What was tuned from it stays usable."""
    base_models.remove(session, name)
    return Deleted(id=name, object="base_model")


@router.post("/keys", openapi_extra=body_schema(KeyCreate))
def create_key(
    session: SessionDep, admin: AdminDep, body: Annotated[Parsed[KeyCreate], Depends(json_body(KeyCreate))]
) -> NewKeyOut:
    """A new API key. ``key`` is in this answer and never again."""
    row, secret = keys.create(session, admin.project_id, body.model.name, list(body.model.scopes))
    session.refresh(row)
    return key_shape.of_new(row, secret)


@router.get("/keys")
def list_keys(session: SessionDep, admin: AdminDep) -> Page[KeyOut]:
    """The project's keys, without the keys themselves, which only their makers have."""
    return Page(data=[key_shape.of(row) for row in keys.list_of(session, admin)], has_more=False)


@router.delete("/keys/{key_id}")
def revoke_key(key_id: str, session: SessionDep, admin: AdminDep) -> Deleted:
    """From now on the key opens nothing."""
    keys.revoke(session, admin, key_id)
    return Deleted(id=key_id, object="api_key")


@router.get("/workers")
def list_workers(session: SessionDep, admin: AdminDep, parts: PartsDep) -> Page[WorkerOut]:
    """Who works here, on what device, since when, and whether it is still there."""
    since = workers.online_since(session, parts.settings)
    return Page(data=[worker_shape.of(row, since) for row in workers.list_all(session)], has_more=False)
