"""Rows as tests need them before anything has happened: only what a test is about is named."""

from typing import Any

from core.db.tables import BaseModel, File, Job
from core.states import Phase, Status
from tests.conftest import Account


def file_row(account: Account, id: str, **fields: Any) -> File:
    """A file of the account's project, good for training unless ``fields`` say otherwise."""
    plain = {
        "project_id": account.tenant.project_id,
        "purpose": "fine-tune",
        "filename": "a",
        "bytes": 1,
        "sha256": "0",
        "storage_key": f"files/{id}",
        "status": "processed",
    }
    return File(id=id, **plain | fields)


def job_row(account: Account, base: BaseModel, file: File, id: str, **fields: Any) -> Job:
    """A job that waits for a train worker unless ``fields`` say otherwise."""
    plain = {
        "project_id": account.tenant.project_id,
        "model": base.name,
        "base_model_id": base.id,
        "training_file": file.id,
        "seed": 0,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {}}},
        "options": {},
        "status": Status.QUEUED,
        "phase": Phase.QUEUED,
        "event_count": 0,
        "last_event_step": 0,
        "losses": 0,
    }
    return Job(id=id, **plain | fields)
