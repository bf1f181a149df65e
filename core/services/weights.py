"""What a name of tuned weights stands for: a finished job's model, or one of its checkpoints."""

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.db import tenancy
from core.db.tables import Checkpoint, File, Job, TunedModel
from core.db.tenancy import Tenant
from core.errors import NotFound
from core.services import runs


@dataclass(frozen=True, slots=True)
class Weights:
    """Where weights lie. ``files``: {path, bytes, sha256}, ``path`` relative to ``prefix``."""

    name: str
    base_model_id: str
    resolved: dict[str, Any]
    """Of the job that tuned them (``core/resolved.py``)"""
    prefix: str
    files: list[dict[str, Any]]  # Any: text and numbers, as the manifest has them


def of(session: Session, tenant: Tenant, name: str) -> Weights:
    """The weights of this project that have this name; raises NotFound."""
    model = session.scalar(tenancy.owned(TunedModel, tenant).where(TunedModel.id == name))
    if model is not None:
        # The rows and not the manifest: a file that was deleted by itself is no longer there to be had.
        rows = session.scalars(
            tenancy.owned(File, tenant)
            .where(File.job_id == model.job_id, File.storage_key.startswith(model.storage_prefix, autoescape=True))
            .order_by(File.storage_key)
        )
        files = [
            {"path": row.storage_key[len(model.storage_prefix) :], "bytes": row.bytes, "sha256": row.sha256}
            for row in rows
        ]
        # The job may be deleted: its model is not.
        job = session.scalars(tenancy.owned(Job, tenant, deleted=True).where(Job.id == model.job_id)).one()
        return Weights(name, model.base_model_id, job.resolved or {}, model.storage_prefix, files)
    found = _checkpoint(session, tenant, name)
    if found is None:
        raise NotFound(f"The model {name!r} does not exist.", param="model", code="model_not_found")
    return found


def _checkpoint(session: Session, tenant: Tenant, name: str) -> Weights | None:
    parts = re.fullmatch(r"(ft:.+:([A-Za-z0-9]{8})):ckpt-step-(\d{1,18})", name)
    if parts is None:
        return None
    # Its job may not have a model yet, but the last part of a model's name is the end of the job's id.
    candidates = session.scalars(tenancy.owned(Job, tenant).where(func.right(Job.id, 8) == parts[2]))
    job = next((job for job in candidates if runs.model_name(session, job) == parts[1]), None)
    if job is None:
        return None
    row = session.scalar(
        select(Checkpoint).where(
            Checkpoint.job_id == job.id,
            Checkpoint.kind == "epoch",
            Checkpoint.step == int(parts[3]),
            Checkpoint.deleted_at.is_(None),
        )
    )
    if row is None:
        return None
    return Weights(name, job.base_model_id, job.resolved or {}, row.storage_prefix, row.manifest["files"])
