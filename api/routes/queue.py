"""/v1/fine_tuning/queue"""

from fastapi import APIRouter

from api.deps import PartsDep, SessionDep, TenantDep
from core.schemas.queue import Queue
from core.services import queue

router = APIRouter(prefix="/fine_tuning/queue", tags=["fine-tuning"])


@router.get("")
def get_queue(session: SessionDep, tenant: TenantDep, parts: PartsDep) -> Queue:
    """What waits, what runs, and which workers there are. Other projects' jobs are only counted."""
    return queue.view(session, tenant, parts.settings)
