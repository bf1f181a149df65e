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
from core.services import base_models

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
    if row is not None:
        job = tenancy.get(session, Job, tenant, row.job_id)
        base = base_models.by_id(session, row.base_model_id)
        return shape.of_tuned(row, base.name, job.result_files, tenant.organization)
    try:
        found = base_models.get(session, name)
    except NotFound:
        raise _unknown(name) from None
    if found.status != "ready":
        raise _unknown(name)
    return shape.of_base(found, name, _OWNER)


def remove(session: Session, tenant: Tenant, name: str) -> list[str]:
    """Delete a tuned model with the files of its weights; returns the keys to remove from the store after the commit.

    The metrics file stays: it belongs to the job's story, not to the weights.
    """
    row = _tuned(session, tenant, name)
    if row is None:
        get(session, tenant, name)
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
