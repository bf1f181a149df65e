"""What a job may take at most, in time and money: ``ext.limits``, held against what its attempts have taken."""

from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core import options
from core.config import Settings
from core.db.tables import Attempt, Job
from core.errors import BadRequest
from core.options import Limits
from core.services import catalog


class Reached(NamedTuple):
    message: str
    save: bool
    """Whether the job is to end with a model of what it has learned, rather than fail."""


def check(limits: Limits, settings: Settings) -> None:
    """A price that nobody has set can't be kept to."""
    if limits.max_cost is not None and catalog.price(settings) is None:
        raise BadRequest(
            "ext.limits.max_cost: this service has no prices (ATTUNE_PRICE_PER_HOUR, "
            "ATTUNE_PRICE_PER_MILLION_TOKENS); ext.limits.max_seconds can be kept to.",
            param="ext.limits.max_cost",
        )


def reached(session: Session, job: Job, settings: Settings) -> Reached | None:
    """The limit that the job has come to, if any. Seconds are those on an accelerator, over all attempts."""
    asked = (job.options or {}).get("limits")
    if not asked:
        return None
    limits = options.Limits.model_validate(asked)
    session.flush()
    sums = select(func.sum(Attempt.accelerator_seconds), func.sum(Attempt.tokens)).where(Attempt.job_id == job.id)
    seconds, tokens = (number or 0 for number in session.execute(sums).one())
    save = limits.on_limit == "save"
    if limits.max_seconds is not None and seconds >= limits.max_seconds:
        return Reached(f"The job has trained for {seconds:.0f} s, and its limit is {limits.max_seconds:g} s.", save)
    rates = catalog.price(settings)
    if limits.max_cost is None or rates is None:
        return None
    cost = catalog.cost(rates, seconds, tokens)
    if cost < limits.max_cost:
        return None
    return Reached(f"The job has cost {cost:.2f} {rates.currency}, and its limit is {limits.max_cost:g}.", save)
