"""The models a project can name: base models, their aliases, and what it has tuned."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from core import clock
from core.db import tenancy
from core.db.tables import File, Job, TunedModel
from core.db.tenancy import Tenant
from core.errors import Forbidden, NotFound
from core.schemas import models as shape
from core.schemas.models import Model
from core.services import base_models, permissions, weights
from core.services.weights import Weights

_OWNER = "system"


def list_all(session: Session, tenant: Tenant) -> list[Model]:
    bases = base_models.list_ready(session)
    names = {row.id: row.name for row in base_models.list_all(session)}
    listed = [shape.of_base(row, name, _OWNER) for row in bases for name in (row.name, *row.aliases)]
    tuned = tenancy.owned(TunedModel, tenant).order_by(TunedModel.created_at.desc(), TunedModel.id.desc())
    # One query for all result files: a project may have a thousand models.
    files = dict(
        session.execute(
            select(Job.id, Job.result_files).where(
                Job.project_id == tenant.project_id, Job.fine_tuned_model.is_not(None)
            )
        ).all()
    )
    for row in session.scalars(tuned):
        base = names.get(row.base_model_id) or base_models.by_id(session, row.base_model_id).name
        listed.append(shape.of_tuned(row, base, files.get(row.job_id, []), tenant.organization))
    return listed


def get(session: Session, tenant: Tenant, name: str) -> Model:
    row = _tuned(session, tenant, name)
    owner = None if row is not None else permissions.owner(session, tenant, name)
    if owner is not None:
        row = _tuned(session, owner, name)
    if row is not None:
        # The job may be deleted: its model is not.
        job = session.scalars(tenancy.owned(Job, owner or tenant, deleted=True).where(Job.id == row.job_id)).one()
        base = base_models.by_id(session, row.base_model_id)
        # Another project's files can't be fetched by their ids; its weights are had from the artifacts.
        files = job.result_files if owner is None else []
        return shape.of_tuned(row, base.name, files, tenant.organization)
    try:
        found = base_models.get(session, name)
    except NotFound:
        raise _unknown(name) from None
    if found.status != "ready":
        raise _unknown(name)
    return shape.of_base(found, name, _OWNER)


def weights_of(session: Session, tenant: Tenant, name: str) -> Weights:
    """The files of a tuned model or a checkpoint that is this project's, or that another project lets it use."""
    try:
        return weights.of(session, tenant, name)
    except NotFound:
        owner = permissions.owner(session, tenant, name)
        if owner is not None:
            return weights.of(session, owner, name)
        # A base model that is there answers otherwise than a name that is not.
        get(session, tenant, name)
        raise NotFound(
            f"{name!r} is a base model: artifacts are had of what was tuned here.", param="model", code="no_artifacts"
        ) from None


def remove(session: Session, tenant: Tenant, name: str) -> list[str]:
    """Delete a tuned model with the files of its weights; returns the keys to remove from the store after the commit.

    The metrics file stays: it belongs to the job's story, not to the weights.
    """
    row = _tuned(session, tenant, name)
    if row is None:
        if get(session, tenant, name).ext.kind == "tuned":
            raise Forbidden(f"{name!r} belongs to another project, which lets this one use it.")
        raise Forbidden(f"{name!r} is a base model: an administrator removes it with `attune models remove`.")
    row.deleted_at = clock.now()
    weights = session.scalars(
        tenancy.owned(File, tenant).where(File.job_id == row.job_id, File.storage_key.startswith(row.storage_prefix))
    )
    keys = []
    for file in weights:
        file.deleted_at = clock.now()
        keys.append(file.storage_key)
    return keys


def _tuned(session: Session, tenant: Tenant, name: str) -> TunedModel | None:
    return session.scalar(tenancy.owned(TunedModel, tenant).where(TunedModel.id == name))


def _unknown(name: str) -> NotFound:
    return NotFound(f"The model {name!r} does not exist.", param="model", code="model_not_found")
