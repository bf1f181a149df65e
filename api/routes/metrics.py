"""/v1/fine_tuning/jobs/{id}/metrics and …/logs"""

import difflib
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import RedirectResponse

from api.deps import PartsDep, SessionDep, TenantDep
from core.db.session import transaction
from core.errors import BadRequest, NotFound
from core.schemas.metrics import KEYS, Metrics
from core.services import attempts, metrics

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"])

_MOST = 2**53


@router.get("/{job_id}/metrics")
def get_metrics(
    job_id: str,
    session: SessionDep,
    tenant: TenantDep,
    keys: Annotated[
        list[str] | None, Query(description=f"Which of {', '.join(KEYS)}; comma-separated or repeated. All, unasked.")
    ] = None,
    first: Annotated[int, Query(alias="from", ge=0, le=_MOST, description="First step.")] = 0,
    last: Annotated[int | None, Query(alias="to", ge=0, le=_MOST, description="Last step.")] = None,
    resolution: Annotated[int, Query(ge=1, le=10_000, description="At most so many points.")] = 1000,
) -> Metrics:
    """What was measured, oldest first: each step, or stretches of steps when there are more than ``resolution``.

    A stretch tells its last step, the last measurement of each key, and in ``range`` the least and the greatest.
    """
    if last is not None and last < first:
        raise BadRequest(f"to: {last} is before from, which is {first}.", param="to")
    wanted = [key for given in keys or [",".join(KEYS)] for key in given.split(",")]
    for key in wanted:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            meant = f"; did you mean {near[0]}?" if near else f": there are {', '.join(KEYS)}"
            raise BadRequest(f"keys: {key[:60]!r} is not measured{meant}", param="keys")
    return metrics.series(
        session, tenant, job_id, keys=list(dict.fromkeys(wanted)), first=first, last=last, resolution=resolution
    )


@router.get(
    "/{job_id}/logs",
    response_class=RedirectResponse,
    status_code=302,
    responses={302: {"description": "Where the text is: a URL that is good for a while and needs no key."}},
)
def get_log(
    job_id: str,
    tenant: TenantDep,
    parts: PartsDep,
    attempt: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="The newest, unasked.")] = None,
) -> RedirectResponse:
    """What the trainer of an attempt wrote, kept when the attempt has ended, however it ended."""
    with transaction(parts.sessions) as session:
        log = attempts.log_of(session, tenant, job_id, attempt)
    # Outside of the transaction: the store may be slow.
    if parts.store.size(log.key) is None:
        raise NotFound(log.absent, param="attempt", code="log_not_found")
    url = parts.store.presigned(log.key, filename=log.filename, seconds=parts.settings.presigned_url_seconds)
    return RedirectResponse(url, 302)
