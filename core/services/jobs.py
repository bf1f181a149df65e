"""Fine-tuning jobs as their owner sees them: create, list, get, change, remove.

Asking a running job to do something is in ``steering``; what workers do to jobs is in ``runs``.
"""

import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

from sqlalchemy import Select, delete
from sqlalchemy.orm import Session

from core import catalog, clock, ids, options
from core.config import Settings
from core.db import tenancy
from core.db.tables import Attempt, BaseModel, Checkpoint, Event, File, Job, Metric, Permission
from core.db.tenancy import Tenant
from core.errors import BadRequest, Conflict
from core.options import Hyperparameters, JobOptions, OptionsError
from core.queue import shares
from core.schemas import jobs as shape
from core.schemas.jobs import FineTuningJob, JobCreate, JobPatch
from core.services import (
    base_models,
    data,
    events,
    idempotency,
    limits,
    origins,
    pages,
    queue,
    quotas,
    runs,
    token_sets,
    workers,
)
from core.services.idempotency import Once
from core.states import TERMINAL, Phase, Status
from core.storage import store as layout

_LEAST_BYTES = {"qlora": 0.5}
"""Of a base model's parameter in memory; of any other adapter two."""
PRIORITIES = {"low": -1, "normal": 0, "high": 1}


class Understood(NamedTuple):
    method: str
    hyperparameters: Hyperparameters
    options: JobOptions


class Checked(NamedTuple):
    method: str
    hyperparameters: Hyperparameters
    options: JobOptions
    base: BaseModel
    files: list[data.Named]
    init: dict[str, Any] | None  # Any: as ``core/services/origins.py`` has it


class Removal(NamedTuple):
    """Objects to delete after the commit: those of the keys, and all below the prefixes but those that are kept."""

    keys: tuple[str, ...]
    prefixes: tuple[str, ...]
    kept: frozenset[str]


def create(session: Session, tenant: Tenant, wanted: JobCreate, settings: Settings, once: Once) -> Job:
    """A new job with its first events, or the one that this same request made before: all in one transaction."""
    first = idempotency.first_of(session, tenant, once)
    if first is not None:
        return first
    method, asked, chosen, base, _, init = checked(session, tenant, wanted, settings)
    _check_room(session, base, chosen)
    quotas.check_open_jobs(session, tenant, settings)
    job = Job(
        id=ids.job(),
        project_id=tenant.project_id,
        model=wanted.model,
        base_model_id=base.id,
        training_file=wanted.training_file,
        validation_file=wanted.validation_file,
        suffix=wanted.suffix,
        seed=secrets.randbelow(2**31) if wanted.seed is None else wanted.seed,
        user_metadata=wanted.metadata,
        method={"type": method, method: {"hyperparameters": asked.model_dump(mode="json")}},
        init=init,
        options=wanted.ext or {},
        priority=PRIORITIES[chosen.resources.priority],
        status=Status.VALIDATING,
        phase=Phase.CREATED,
        event_count=0,
    )
    session.add(job)
    session.flush()
    shares.enter(session, job, Status.VALIDATING)
    idempotency.remember(session, tenant, once, job)
    events.append(session, job, f"Created fine-tuning job: {job.id}")
    for key in wanted.model_extra or {}:
        events.append(session, job, f"{key}: this field is not known here and was ignored.", level="warn")
    if base.name != wanted.model:
        events.append(session, job, f"The model {wanted.model!r} stands for the base model {base.name!r} here.")
    events.append(session, job, f"Validating training file: {wanted.training_file}")
    return job


def _check_room(session: Session, base: BaseModel, chosen: JobOptions) -> None:
    """Refuse what no registered worker could ever run: the base model's weights alone are larger than any slot.

    What else a run needs is known once its data are prepared, and told by an estimate.
    """
    if chosen.adapter == "qlora" and not workers.four_bits(session):
        raise BadRequest(
            "ext.adapter: qlora needs a base model in four bits, and no registered worker's device can do that.",
            param="ext.adapter",
            code="no_worker_fits",
        )
    if chosen.precision == "fp16" and not workers.half(session):
        raise BadRequest(
            "ext.precision: fp16 needs a device that computes in it, and no registered worker's does.",
            param="ext.precision",
            code="no_worker_fits",
        )
    parameters = (base.facts or {}).get("parameters")
    room = workers.largest_room(session)
    if parameters is None or room is None:
        return
    least = parameters * _LEAST_BYTES.get(chosen.adapter, 2.0)
    if least > room:
        raise BadRequest(
            f"model: the weights of {base.name!r} alone take {least / 1e9:.1f} GB, and a slot of the largest "
            f"registered worker has {room / 1e9:.1f} GB.",
            param="model",
            code="no_worker_fits",
        )


def checked(session: Session, tenant: Tenant, wanted: JobCreate, settings: Settings) -> Checked:
    """All that can be known of a body now; raises BadRequest for what is wrong with it."""
    method, asked, chosen = understood(wanted)
    _check_request(wanted)
    limits.check(chosen.limits, settings)
    base = base_models.usable(session, wanted.model)
    files = data.named(wanted.training_file, wanted.validation_file, chosen)
    data.check_named(files, chosen)
    held_out = wanted.validation_file is not None or chosen.data.validation_fraction is not None
    if isinstance(chosen.eval.generate, dict) and not held_out:
        path = "ext.eval.generate"
        raise BadRequest(f"{path}: validation_rows needs validation_file or ext.data.validation_fraction.", param=path)
    for file in files:
        data.require(session, tenant, file, method, chosen, settings)
    return Checked(method, asked, chosen, base, files, origins.origin(session, tenant, chosen, base))


def understood(wanted: JobCreate) -> Understood:
    """Method, hyperparameters and options of a body; raises BadRequest for what is wrong with them."""
    method, asked, prefix = _method(wanted)
    return Understood(method, asked, _options(wanted, method, asked, prefix))


def _method(wanted: JobCreate) -> tuple[str, Hyperparameters, str]:
    """Method, hyperparameters, and the path at which the user wrote them."""
    if wanted.method is None:
        return "supervised", _hyperparameters(wanted.hyperparameters, "hyperparameters"), "hyperparameters"
    kind = wanted.method.type
    if kind not in catalog.METHODS:
        raise BadRequest(
            f'method.type: "{kind}" is not available in this release; it takes "supervised" or "dpo".',
            param="method.type",
            code="method_not_available",
        )
    prefix = f"method.{kind}.hyperparameters"
    given = (getattr(wanted.method, kind) or {}).get("hyperparameters")
    if given is None and wanted.hyperparameters is not None:
        return kind, _hyperparameters(wanted.hyperparameters, "hyperparameters"), "hyperparameters"
    return kind, _hyperparameters(given, prefix), prefix


def _hyperparameters(given: object, prefix: str) -> Hyperparameters:
    try:
        return options.parse_hyperparameters({} if given is None else given, prefix)
    except OptionsError as error:
        raise _bad(error.faults) from None


def _options(wanted: JobCreate, method: str, asked: Hyperparameters, prefix: str) -> JobOptions:
    try:
        chosen = options.parse(wanted.ext or {})
    except OptionsError as error:
        raise _bad(error.faults) from None
    faults = [*options.conflicts(chosen, asked, prefix), *options.unsupported(chosen, method)]
    if chosen.early_stopping is not None and not (wanted.validation_file or chosen.data.validation_fraction):
        path = "ext.early_stopping"
        message = f"{path} needs validation rows: give validation_file or ext.data.validation_fraction"
        faults.append(options.Fault(path, message))
    if faults:
        raise _bad(faults)
    return chosen


def _bad(faults: list[options.Fault]) -> BadRequest:
    return BadRequest("; ".join(fault.message for fault in faults) + ".", param=faults[0].path)


def _check_request(wanted: JobCreate) -> None:
    if wanted.integrations:
        raise BadRequest(
            "integrations: none is available in this release; the metrics file carries the same numbers.",
            param="integrations",
        )
    _check_metadata(wanted.metadata)


def _check_metadata(metadata: dict[str, str] | None) -> None:
    if metadata is None:
        return
    if len(metadata) > 16:
        raise BadRequest(f"metadata: {len(metadata)} pairs given, at most 16 are kept.", param="metadata")
    for key, value in metadata.items():
        if len(key) > 64 or len(value) > 512:
            path = f"metadata.{key[:64]}"
            raise BadRequest(f"{path}: a key has up to 64 characters and a value up to 512.", param=path)


def list_of(
    session: Session,
    tenant: Tenant,
    *,
    after: str | None,
    limit: int,
    metadata: dict[str, str] | None = None,
    without_metadata: bool = False,
) -> tuple[list[Job], bool]:
    query = tenancy.owned(Job, tenant)
    if without_metadata:
        query = query.where(Job.user_metadata.is_(None))
    elif metadata:
        query = query.where(Job.user_metadata.contains(metadata))
    cursor = None
    if after is not None:
        found = session.scalar(tenancy.owned(Job, tenant, deleted=True).where(Job.id == after))
        if found is None:
            raise pages.unknown_cursor(after)
        cursor = (found.created_at, found.id)
    return pages.page(session, query, (Job.created_at, Job.id), cursor, limit)


def get(session: Session, tenant: Tenant, id: str) -> Job:
    return tenancy.get(session, Job, tenant, id)


def view(session: Session, tenant: Tenant, id: str) -> FineTuningJob:
    """One job as the wire has it, in one query: this is what clients ask for again and again."""
    rows = session.execute(_with_attempts(tenancy.owned(Job, tenant).where(Job.id == id))).all()
    if not rows:
        raise tenancy.missing(Job, id)
    job, base_model, _ = rows[0]
    attempts = [attempt for _, _, attempt in rows if attempt is not None]
    return shape.of(job, base_model, tenant.organization_id, attempts, queue.places(session, [job]).get(id))


def change(
    session: Session, tenant: Tenant, id: str, wanted: JobPatch, given: dict[str, Any], settings: Settings
) -> Job:
    """Change what of a job can be changed. ``given``: the body as it was sent, where null differs from nothing."""
    _only_changeable(given)
    _check_metadata(wanted.metadata)
    job = tenancy.get(session, Job, tenant, id, lock=True)
    if "metadata" in given:
        job.user_metadata = wanted.metadata
    ext = given.get("ext") or {}
    priority = (ext.get("resources") or {}).get("priority")
    if priority is not None and PRIORITIES[priority] != job.priority:
        _must_go_on(job, "ext.resources.priority")
        job.priority = PRIORITIES[priority]
        _note(job, "resources", {"priority": priority})
        events.append(session, job, f"The priority is {priority} now.")
    if ext.get("limits"):
        _must_go_on(job, "ext.limits")
        _note(job, "limits", ext["limits"])
        allowed = options.parse(job.options).limits
        limits.check(allowed, settings)
        words = ", ".join(f"{name} {value}" for name, value in allowed.model_dump(exclude_none=True).items())
        events.append(session, job, f"The limits are {words} now.")
    return job


def _must_go_on(job: Job, path: str) -> None:
    if job.status in TERMINAL:
        message = f"{path}: the job {job.id!r} has ended already: it {job.status}."
        raise Conflict(message, param=path, code="job_ended")


def _note(job: Job, section: str, values: dict[str, Any]) -> None:
    """Write changed options down where the job's owner reads them."""
    job.options = job.options | {section: (job.options.get(section) or {}) | values}
    if job.resolved is not None:
        job.resolved = job.resolved | {section: (job.resolved.get(section) or {}) | values}


_CHANGEABLE = {
    "metadata": None,
    "ext": {
        "resources": {"priority": None},
        "limits": {"max_seconds": None, "max_cost": None, "on_limit": None},
    },
}


def _only_changeable(given: dict[str, Any]) -> None:
    """Refuse every other key, one that a new job may have and one that is not known alike."""
    faults = list(_unchangeable(given, _CHANGEABLE, ""))
    if faults:
        raise _bad(faults)
    try:
        options.parse(given.get("ext") or {})
    except OptionsError as error:
        raise _bad(error.faults) from None


def _unchangeable(given: dict[str, Any], table: dict[str, Any], prefix: str) -> Iterator[options.Fault]:
    known = set(options.known())
    for key, value in given.items():
        path = f"{prefix}{key}"
        if key not in table:
            near = None if path in known else options.suggest(path, known)
            hint = f"; did you mean {near}?" if near and path.startswith("ext.") else ""
            what = "is not an option" if path.startswith("ext.") and path not in known else "can't be changed any more"
            yield options.Fault(path, f"{path} {what}{hint or '; metadata, ext.resources.priority and ext.limits can'}")
        elif table[key] is not None and isinstance(value, dict):
            yield from _unchangeable(value, table[key], f"{path}.")


def remove(session: Session, tenant: Tenant, id: str) -> Removal:
    """Delete an ended job with its events, measurements, checkpoints and logs, and its prepared rows unless another
    job on the same data has them too.

    Its model and its result files are things of their own and stay; each is deleted by itself.
    """
    job = tenancy.get(session, Job, tenant, id, lock=True)
    if job.status not in TERMINAL:
        raise Conflict(f"The job {id!r} is {job.status}: cancel it before you delete it.", code="wrong_state")
    name = runs.model_name(session, job)
    for table in (Event, Metric, Checkpoint):
        session.execute(delete(table).where(table.job_id == id))
    shared = Permission.checkpoint.startswith(f"{name}:ckpt-step-", autoescape=True)
    for permission in session.scalars(tenancy.owned(Permission, tenant).where(shared)):
        session.delete(permission)
    job.deleted_at = clock.now()
    job.prepared = None
    results = session.scalars(tenancy.owned(File, tenant).where(File.job_id == id))
    tokens = token_sets.let_go(session, job)
    return Removal(
        keys=tuple(tokens.gone),
        prefixes=(layout.all_prepared(id), layout.all_runs(id)),
        kept=frozenset([*(file.storage_key for file in results), *tokens.kept]),
    )


def wire(session: Session, tenant: Tenant, rows: list[Job]) -> list[FineTuningJob]:
    """The rows as OpenAI's wire has them, with one or two more queries for all of them together."""
    wanted = tenancy.owned(Job, tenant, deleted=True).where(Job.id.in_([row.id for row in rows]))
    around = _with_attempts(wanted).with_only_columns(Job.id, BaseModel.name, Attempt)
    bases: dict[str, str] = {}
    attempts: dict[str, list[Attempt]] = {row.id: [] for row in rows}
    for id, name, attempt in session.execute(around):
        bases[id] = name
        if attempt is not None:
            attempts[id].append(attempt)
    places = queue.places(session, rows)
    return [shape.of(row, bases[row.id], tenant.organization_id, attempts[row.id], places.get(row.id)) for row in rows]


def _with_attempts(jobs: Select[Job]) -> Select[Job, str, Attempt | None]:
    """A row for each attempt of these jobs, the first first; one without for a job that has none."""
    return (
        jobs.join(BaseModel, BaseModel.id == Job.base_model_id)
        .outerjoin(Attempt, Attempt.job_id == Job.id)
        .add_columns(BaseModel.name, Attempt)
        .order_by(Job.id, Attempt.n)
    )
