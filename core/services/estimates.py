"""An estimate of a job: what prepare found in its data, beside the workers, the queue and the rates of this moment."""

import math
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from core import advice, cost
from core.config import Settings
from core.cost import Cost, Machine, Plan, Sample, Shape
from core.db.tables import BaseModel, Worker
from core.db.tenancy import Tenant
from core.options import JobOptions
from core.resolved import Resolved, ResolvedPreference
from core.schemas import estimates as wire
from core.schemas.catalog import Price
from core.schemas.estimates import Choice, Estimate, Refusal
from core.schemas.jobs import JobCreate
from core.services import base_models, catalog, jobs, queue, workers

Json = dict[str, Any]  # Any: what prepare found (worker/prepare/folder.Prepared)

_USABLE = 0.9
"""Of a machine's memory: its system and the worker itself need the rest."""
_UNMEASURED = Machine(flops={"fp32": 1e11}, bytes_per_second=2e10, op_seconds=1e-5, resident_bytes=500_000_000)
"""For memory alone, as long as no worker has measured itself."""
_SHORTEST = 64
"""No shorter max_length is proposed."""


@dataclass(frozen=True)
class _Site:
    """A train worker that is there."""

    row: Worker

    @property
    def machine(self) -> Machine | None:
        return None if self.row.machine is None else Machine.model_validate(self.row.machine)

    @property
    def room(self) -> float:
        return _USABLE * self.row.memory_bytes / self.row.slots


@dataclass(frozen=True)
class _Run:
    """The job as arithmetic sees it."""

    shape: Shape
    plan: Plan
    sample: Sample
    valid: Sample | None

    def cost(self, site: _Site | None) -> Cost:
        machine = (site.machine if site is not None else None) or _UNMEASURED
        return cost.of(self.shape, self.plan, self.sample, machine, self.valid)

    def fits(self, sites: list[_Site]) -> list[_Site]:
        return [site for site in sites if self.cost(site).memory.total <= site.room]

    def with_plan(self, **changes: Any) -> "_Run":  # Any: fields of Plan
        plan = self.plan.model_copy(update=changes)
        return _Run(
            self.shape,
            plan,
            self.sample.cut(plan.max_length),
            self.valid.cut(plan.max_length) if self.valid else None,
        )


def estimate(session: Session, tenant: Tenant, wanted: JobCreate, found: Json, settings: Settings) -> Estimate:
    base = base_models.usable(session, wanted.model)
    resolved = Resolved.model_validate(found["resolved"])
    train = found["train"]
    sites = [_Site(row) for row in workers.training(session, settings)]
    run = _run(base, resolved, found)
    seconds, step_seconds, memory, reason = _on(run, sites)
    total = round(train["tokens"] * resolved.epochs)
    return Estimate(
        model=base.name,
        feasible=reason is None,
        reason=reason,
        choices=_choices(session, run, sites, base, resolved, found) if run is not None and reason is not None else [],
        tokens=wire.Tokens(
            examples=train["examples"],
            validation=found["valid"]["examples"] if found["valid"] else 0,
            sources=train["sources"],
            per_epoch=train["tokens"],
            trained_per_epoch=train["trained_tokens"],
            total=total,
            longest=train["longest"],
        ),
        steps=resolved.total_steps,
        epochs=resolved.epochs,
        memory=memory,
        seconds=seconds,
        step_seconds=step_seconds,
        price=_price(catalog.price(settings), seconds, total),
        queue=_wait(session, tenant, jobs.PRIORITIES[resolved.resources.priority]),
        workers=[_worker(run, site) for site in sites],
        resolved=resolved.model_dump(mode="json"),
        warnings=[note["message"] for note in found["notes"] if note["level"] == "warn"],
        advice=advice.advise(
            resolved,
            examples=train["examples"],
            prompt_tokens=found["prompt_tokens"],
            completion_tokens=found["completion_tokens"],
        ),
    )


def seconds(session: Session, base: BaseModel, found: Json, settings: Settings) -> float | None:
    """How long the job takes on the fastest of the workers that are there; None where none has measured itself."""
    run = _run(base, Resolved.model_validate(found["resolved"]), found)
    return _on(run, [_Site(row) for row in workers.training(session, settings)])[0]


def _run(base: BaseModel, resolved: Resolved, found: Json) -> _Run | None:
    shape = (base.facts or {}).get("shape")
    if shape is None:
        return None
    per_epoch = math.ceil(found["train"]["examples"] / resolved.batch_size)
    every = resolved.eval.every
    interval = every if isinstance(every, int) else per_epoch
    preference = resolved.preference
    # Of a pair, both answers go through the layers.
    rows = 2 if preference is not None and preference.loss != "kto" else 1
    plan = Plan.of(
        resolved,
        steps_per_epoch=per_epoch,
        batch_size=rows * resolved.batch_size,
        micro_batch_size=rows * resolved.micro_batch_size,
        evaluations=math.ceil(resolved.total_steps / interval),
        scorings=_scorings(preference, resolved.epochs),
    )
    valid = Sample.model_validate(found["valid_sample"]) if found["valid_sample"] else None
    return _Run(Shape.model_validate(shape), plan, Sample.model_validate(found["sample"]), valid)


def _scorings(preference: ResolvedPreference | None, epochs: float) -> int:
    """Once by the reference; KTO scores each prompt with another's answer too, and again in every epoch."""
    if preference is None or preference.loss in ("simpo", "orpo"):
        return 0
    return 2 + math.ceil(epochs) if preference.loss == "kto" else 1


def _on(
    run: _Run | None, sites: list[_Site]
) -> tuple[float | None, float | None, wire.MemoryParts | None, Refusal | None]:
    """Seconds, seconds a step, memory, and why it can't be."""
    none = None if sites else Refusal(code="no_worker", message="No worker that trains is there at the moment.")
    if run is None:
        return None, None, None, none
    fitting = run.fits(sites)
    measured = [run.cost(site) for site in fitting if site.machine is not None]
    best = min(measured, key=lambda one: one.seconds, default=None)
    needed = (best or run.cost(max(sites, key=lambda site: site.room, default=None))).memory
    parts = {name: round(value) for name, value in needed._asdict().items()}
    memory = wire.MemoryParts(total=round(needed.total), **parts)
    if sites and not fitting:
        room = max(site.room for site in sites)
        none = Refusal(
            code="not_enough_memory",
            message=f"It takes {_gigabytes(needed.total)}, and a slot of the largest worker has {_gigabytes(room)}.",
        )
    return (round(best.seconds, 1), best.step_seconds, memory, none) if best else (None, None, memory, none)


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.1f} GB"


def _choices(
    session: Session, run: _Run, sites: list[_Site], base: BaseModel, resolved: Resolved, found: Json
) -> list[Choice]:
    """What would fit, from the change that alters least to the one that alters most."""
    if not sites:
        return []
    changes: Json = {}
    says: list[str] = []
    choices = []
    if run.plan.micro_batch_size > 1:
        while run.plan.micro_batch_size > 1 and not run.fits(sites):
            run = run.with_plan(micro_batch_size=run.plan.micro_batch_size // 2)
        changes["micro_batch_size"] = run.plan.micro_batch_size
        says.append(f"micro_batch_size {run.plan.micro_batch_size}: the same steps, computed in smaller pieces")
    if not run.fits(sites) and not run.plan.gradient_checkpointing and run.plan.adapter != "prefix":
        run = run.with_plan(gradient_checkpointing=True)
        changes["gradient_checkpointing"] = True
        says.append("gradient_checkpointing: a third slower, the same result")
    if run.fits(sites):
        choices.append(_choice(run, sites, {"ext": changes}, says))
    else:
        choices += _smaller(run, sites, resolved.data.over_length, changes, says)
    choices += _other_bases(session, sites, base, resolved, found)
    return choices


def _smaller(run: _Run, sites: list[_Site], over_length: str, changes: Json, says: list[str]) -> list[Choice]:
    """Shorter rows, a lower rank, another adapter: what is left when the same result can't be had."""
    choices = []
    shorter = _shorter(run, sites)
    if shorter is not None:
        cut = sum(tokens > shorter for tokens, _ in run.sample.sizes) / max(1, len(run.sample.sizes))
        say = f"max_length {shorter}: {cut:.0%} of the rows are longer and are cut"
        # Leaving them out may leave too few.
        keep = {} if over_length == "truncate" else {"data": {"over_length": "truncate"}}
        shortened = {"ext": changes | {"max_length": shorter} | keep}
        choices.append(_choice(run.with_plan(max_length=shorter), sites, shortened, [*says, say]))
    rank = run.plan.rank
    while rank > 1 and not run.with_plan(rank=rank).fits(sites):
        rank //= 2
    if rank < run.plan.rank and run.with_plan(rank=rank).fits(sites):
        lower = changes | {"lora": {"rank": rank}}
        choices.append(_choice(run.with_plan(rank=rank), sites, {"ext": lower}, [*says, f"lora.rank {rank}"]))
    for adapter, instead_of, say in (
        ("lora", ("full", "layers"), "comes close to training the model's own weights, for a share of the memory"),
        ("qlora", ("full", "layers", "lora"), "the base in four bits, a little less exact"),
    ):
        other = run.with_plan(adapter=adapter, rank=run.plan.rank or JobOptions().lora.rank)
        if run.plan.adapter in instead_of and other.fits(sites):
            choices.append(_choice(other, sites, {"ext": changes | {"adapter": adapter}}, [*says, f"{adapter}: {say}"]))
            break
    return choices


def _shorter(run: _Run, sites: list[_Site]) -> int | None:
    """The greatest length that fits, in steps of 8."""
    low, high = _SHORTEST // 8, run.plan.max_length // 8
    if low > high or not run.with_plan(max_length=8 * low).fits(sites):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if run.with_plan(max_length=8 * middle).fits(sites):
            low = middle
        else:
            high = middle - 1
    return 8 * low


def _other_bases(
    session: Session, sites: list[_Site], base: BaseModel, resolved: Resolved, found: Json
) -> list[Choice]:
    """The largest of the smaller base models that would fit, its tokens taken to be about as many."""
    mine = (base.facts or {}).get("parameters", 0)
    others = [row for row in base_models.list_ready(session) if (row.facts or {}).get("parameters", mine) < mine]
    for row in sorted(others, key=lambda row: row.facts["parameters"], reverse=True):  # type: ignore[index]  # has facts
        run = _run(row, resolved, found)
        if run is not None and run.fits(sites):
            return [_choice(run, sites, {"model": row.name}, [f"the smaller base model {row.name}"])]
    return []


def _choice(run: _Run, sites: list[_Site], change: Json, says: list[str]) -> Choice:
    fitting = run.fits(sites)
    costs = [run.cost(site) for site in fitting]
    measured = [one.seconds for one, site in zip(costs, fitting, strict=True) if site.machine is not None]
    return Choice(
        change=change,
        message="; ".join(says),
        memory_bytes=round(max(one.memory.total for one in costs)),
        seconds=round(min(measured), 1) if measured else None,
    )


def _worker(run: _Run | None, site: _Site) -> wire.Machine:
    fits = run is not None and bool(run.fits([site]))
    return wire.Machine(
        device=site.row.device,
        memory_bytes=site.row.memory_bytes,
        slots=site.row.slots,
        fits=fits,
        seconds=round(run.cost(site).seconds, 1) if run is not None and fits and site.machine is not None else None,
    )


def _price(rates: Price | None, seconds: float | None, tokens: int) -> wire.Amount | None:
    if rates is None:
        return None
    told = seconds is not None or not rates.per_hour
    amount = round(catalog.cost(rates, seconds or 0.0, tokens), 4) if told else None
    return wire.Amount(amount=amount, currency=rates.currency, rates=rates)


def _wait(session: Session, tenant: Tenant, priority: int) -> wire.Wait:
    before, seconds = queue.wait(session, tenant, priority)
    return wire.Wait(jobs_before=before, seconds=seconds)
