"""What a job would take, before it is made: POST /v1/fine_tuning/jobs/estimate."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends
from fastapi.responses import Response

from api import answers
from api.answers import PENDING
from api.deps import LiveDep, Parsed, PartsDep, TenantDep, body_schema, with_ext_header
from api.live import Live
from core.db.session import transaction
from core.db.tenancy import Tenant
from core.schemas.estimates import Estimate
from core.schemas.jobs import JobCreate
from core.services import estimates, questions
from core.wiring import Parts

router = APIRouter()


@router.post(
    "/fine_tuning/jobs/estimate",
    response_model=Estimate,
    responses=PENDING,
    tags=["fine-tuning"],
    summary="Estimate a job",
    openapi_extra=body_schema(JobCreate) | {"x-also": [409]},
)
async def estimate(
    tenant: TenantDep,
    parts: PartsDep,
    live: LiveDep,
    body: Annotated[Parsed[JobCreate], Depends(with_ext_header(JobCreate))],
) -> Estimate | Response:
    """Tokens, steps, memory, seconds, price and the wait in the queue of the job that this body would create.

    Where no worker could train it, ``feasible`` is false with the reason, and ``choices`` names what would do. The rows
    are prepared for this, and kept: a job created from the same body needs no preparing any more.
    """
    return await of(parts, live, tenant, body.model)


async def of(parts: Parts, live: Live, tenant: Tenant, wanted: JobCreate) -> Estimate | Response:
    """The estimate, or a 202 that says when to ask again."""
    found = await answers.answer(
        parts, live, tenant, lambda session: questions.estimate(session, tenant, wanted, parts.settings)
    )
    if isinstance(found, Response):
        return found
    return await to_thread.run_sync(_reckon, parts, tenant, wanted, found)


def _reckon(parts: Parts, tenant: Tenant, wanted: JobCreate, found: answers.Found) -> Estimate:
    with transaction(parts.sessions) as session:
        return estimates.estimate(session, tenant, wanted, found.result, parts.settings)
