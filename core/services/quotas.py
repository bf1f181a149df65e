"""What one project may have at once: open jobs, running jobs, stored bytes. No limit unless the operator sets one."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.config import Settings
from core.db import tenancy
from core.db.tables import File, Job, Project, Upload
from core.db.tenancy import Tenant
from core.errors import QuotaExceeded
from core.states import TERMINAL, Status, UploadStatus


def check_open_jobs(session: Session, tenant: Tenant, settings: Settings) -> None:
    """Room for one more job that has not ended."""
    limit = settings.max_open_jobs
    if limit is None:
        return
    _lock(session, tenant.project_id)
    open_jobs = _count(session, tenancy.owned(Job, tenant).where(Job.status.not_in(TERMINAL)).subquery())
    if open_jobs >= limit:
        raise QuotaExceeded(
            f"The project has {open_jobs} jobs that have not ended, and {limit} are allowed (ATTUNE_MAX_OPEN_JOBS)."
        )


def check_stored_bytes(session: Session, tenant: Tenant, more: int, settings: Settings, param: str = "file") -> None:
    """Room for this many more bytes of files. An upload that is open has a claim to the bytes it was announced with."""
    limit = settings.max_stored_bytes
    if limit is None:
        return
    _lock(session, tenant.project_id)
    mine = tenancy.owned(File, tenant).subquery()
    coming = tenancy.owned(Upload, tenant).where(Upload.status == UploadStatus.PENDING).subquery()
    stored = sum(session.scalar(select(func.coalesce(func.sum(rows.c.bytes), 0))) or 0 for rows in (mine, coming))
    if stored + more > limit:
        raise QuotaExceeded(
            f"The project's files and open uploads have {stored:,} bytes, this one has {more:,}, and {limit:,} are "
            "allowed (ATTUNE_MAX_STORED_BYTES).",
            param=param,
        )


def may_run(session: Session, project_id: str, settings: Settings) -> bool:
    """Room for one more running job. Holds the project's row, so that two claims can't both take the last place."""
    if settings.max_running_jobs is None:
        return True
    _lock(session, project_id)
    running = select(Job.id).where(Job.project_id == project_id, Job.status == Status.RUNNING).subquery()
    return _count(session, running) < settings.max_running_jobs


def _lock(session: Session, project_id: str) -> None:
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))


def _count(session: Session, rows: object) -> int:
    return session.scalar(select(func.count()).select_from(rows)) or 0  # type: ignore[arg-type]  # a subquery
