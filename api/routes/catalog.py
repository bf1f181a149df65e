"""/v1/fine_tuning/models"""

from fastapi import APIRouter

from api.deps import PartsDep, SessionDep, TenantDep
from core.schemas.catalog import Offer
from core.schemas.pages import Page
from core.services import catalog

router = APIRouter(prefix="/fine_tuning/models", tags=["fine-tuning"])


@router.get("")
def list_offers(session: SessionDep, tenant: TenantDep, parts: PartsDep) -> Page[Offer]:
    """Which base models can be tuned, with which methods, within which limits, and what to begin with."""
    return Page(data=catalog.offers(session, parts.settings), has_more=False)
