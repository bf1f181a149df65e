"""Jobs as workers would leave them: ended, with attempts, measurements, checkpoints, files and a model."""

from typing import Any

from sqlalchemy import select

from core.db import tenancy
from core.db.session import transaction
from core.db.tables import Job, Metric
from core.services import moves, progress, runs
from core.states import Phase, Status
from core.storage import store as layout
from core.wiring import Parts
from tests.conftest import Account

WEIGHTS = ("adapter_model.safetensors", "manifest.json")


def running(parts: Parts, account: Account, job_id: str, *, generation: int = 1) -> None:
    with transaction(parts.sessions) as session:
        job = tenancy.get(session, Job, account.tenant, job_id, lock=True)
        moves.move(job, Status.QUEUED, Phase.QUEUED)
        job.generation = generation
        runs.begin_attempt(session, job, "worker_1")
    parts.store.put(layout.prepared(job_id, 1, "train.safetensors"), b"tokens")


def lost(parts: Parts, account: Account, job_id: str) -> None:
    """The attempt is over, and another one comes."""
    with transaction(parts.sessions) as session:
        runs.lost(
            session, tenancy.get(session, Job, account.tenant, job_id, lock=True), parts.settings, "it was killed"
        )


def failed(parts: Parts, account: Account, job_id: str) -> None:
    with transaction(parts.sessions) as session:
        job = tenancy.get(session, Job, account.tenant, job_id, lock=True)
        runs.failed(session, job, "out_of_memory", "It did not fit.")


def measured(parts: Parts, account: Account, job_id: str, losses: list[float], **others: list[float | None]) -> None:
    """One step for each loss."""
    with transaction(parts.sessions) as session:
        for step, loss in enumerate(losses, start=1):
            fields: dict[str, Any] = {name: values[step - 1] for name, values in others.items()}
            session.add(
                Metric(
                    job_id=job_id,
                    step=step,
                    generation=1,
                    epoch=step / len(losses),
                    train_loss=loss,
                    learning_rate=1e-4,
                    grad_norm=1.0,
                    tokens=10,
                    trained_tokens=5,
                    seconds=0.1,
                    **fields,
                )
            )


def checkpointed(parts: Parts, account: Account, job_id: str, step: int) -> str:
    """A checkpoint of an epoch, with its objects; returns the name of its model."""
    prefix = layout.run(job_id, 1, f"checkpoints/step-{step}/")
    files = [{"path": "adapter_model.safetensors", "bytes": 3, "sha256": "a" * 64}]
    for path in WEIGHTS:
        parts.store.put(prefix + path, b"abc")
    line = {"step": step, "epoch": 1.0, "kind": "epoch", "metrics": {}}
    with transaction(parts.sessions) as session:
        job = tenancy.get(session, Job, account.tenant, job_id, lock=True)
        progress.checkpointed(session, job, line, prefix, {"files": files}, "b" * 64)
        return f"{runs.model_name(session, job)}:ckpt-step-{step}"


def succeeded(parts: Parts, account: Account, job_id: str) -> str:
    """Returns the name of the model."""
    parts.store.put(layout.run(job_id, 1, "trainer.log"), b"all went well\n")
    parts.store.put(layout.run(job_id, 1, "metrics.csv"), b"step,train_loss\n")
    prefix = layout.run(job_id, 1, "artifact/")
    results = [{"filename": "step_metrics.csv", "key": layout.run(job_id, 1, "metrics.csv"), "bytes": 16}]
    for path in WEIGHTS:
        parts.store.put(prefix + path, path.encode())
        results.append({"filename": path, "key": prefix + path, "bytes": len(path)})
    results = [entry | {"sha256": "c" * 64} for entry in results]
    with transaction(parts.sessions) as session:
        job = tenancy.get(session, Job, account.tenant, job_id, lock=True)
        manifest = {"files": [{"path": WEIGHTS[0], "bytes": len(WEIGHTS[0]), "sha256": "c" * 64}]}
        runs.succeeded(session, job, prefix=prefix, manifest=manifest, results=results, line={"trained_tokens": 5})
        assert job.fine_tuned_model is not None
        return job.fine_tuned_model


def count(parts: Parts, table: Any, job_id: str) -> int:  # Any: a table with job_id
    with transaction(parts.sessions) as session:
        return len(session.scalars(select(table).where(table.job_id == job_id)).all())
