"""/v1/models. Names may hold a slash, raw or as ``%2F``."""

from fastapi import APIRouter

from api.deps import PartsDep, SessionDep, TenantDep
from core.db.session import transaction
from core.schemas.models import Model
from core.schemas.pages import Deleted, Page
from core.services import models

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def list_models(session: SessionDep, tenant: TenantDep) -> Page[Model]:
    """Base models, their aliases, and the project's own tuned models."""
    return Page(data=models.list_all(session, tenant), has_more=False)


@router.get("/{model:path}")
def get(model: str, session: SessionDep, tenant: TenantDep) -> Model:
    """A base model, an alias of one, or a tuned model of the project."""
    return models.get(session, tenant, model)


@router.delete("/{model:path}")
def delete(model: str, tenant: TenantDep, parts: PartsDep) -> Deleted:
    """Delete a tuned model with the files of its weights."""
    with transaction(parts.sessions) as session:
        keys = models.remove(session, tenant, model)
    parts.store.delete(*keys)
    return Deleted(id=model, object="model")
