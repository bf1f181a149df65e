"""Files: received in one pass to the object store, checked on the way, listed, deleted."""

import hashlib

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from core import clock, ids
from core.config import Settings
from core.db import tenancy
from core.db.tables import File, Job, WorkItem
from core.db.tenancy import Tenant
from core.errors import Conflict, TooLarge
from core.formats.reading import Passing
from core.formats.report import FAULTS_KEPT, Report
from core.services import data, pages, replies, token_sets
from core.states import FileStatus, ItemKind
from core.storage import store as layout
from core.storage.store import Store
from core.storage.writer import Writer


class Incoming:
    """A file on its way in: hashed, stored and checked in one pass, in memory for one part. Blocks on the store."""

    def __init__(self, store: Store, settings: Settings, filename: str) -> None:
        self.id = ids.file()
        self.key = layout.file(self.id)
        self._settings = settings
        self._filename = filename
        self._writer = Writer(store, self.key)
        self._hash = hashlib.sha256()
        self._bytes = 0
        # The form's purpose may come after the file: check now, and forget the verdict if nobody asked for it.
        self._check = Passing()

    def write(self, chunk: bytes) -> None:
        self._bytes += len(chunk)
        if self._bytes > self._settings.max_file_bytes:
            raise TooLarge(
                f"file: larger than the {self._settings.max_file_bytes:,} bytes a file may have.", param="file"
            )
        self._hash.update(chunk)
        if self._bytes > self._settings.inline_check_bytes:
            # Too long to be checked while the client waits: a prepare worker does it with the same code.
            self._check.forget()
        self._check.feed(chunk)
        self._writer.write(chunk)

    def finish(self, tenant: Tenant, purpose: str, expires_after: int | None) -> tuple[File, WorkItem | None]:
        """Complete the object; returns the row to add, and the work item that settles it if the check is still due."""
        self._writer.finish()
        row = File(
            id=self.id,
            project_id=tenant.project_id,
            purpose=purpose,
            filename=self._filename,
            bytes=self._bytes,
            sha256=self._hash.hexdigest(),
            storage_key=self.key,
            status=FileStatus.UPLOADED,
            expires_at=None if expires_after is None else clock.in_seconds(expires_after),
        )
        return row, conclude(row, self._check.finish())

    def abort(self) -> None:
        self._writer.abort()


def conclude(row: File, report: Report | None) -> WorkItem | None:
    """The bytes are in the store: settle the file, or give the work item that does it if the check is still due."""
    if row.purpose != data.TRAINABLE:
        row.status = FileStatus.PROCESSED
    elif report is not None:
        settle(row, report)
    else:
        return WorkItem(id=ids.work_item(), kind=ItemKind.CHECK_FILE, subject_id=row.id)
    return None


def settle(row: File, report: Report) -> None:
    """The check's verdict: ``processed``, or ``error`` naming every bad line that the report keeps."""
    row.report = report.model_dump(mode="json")
    row.format = report.format
    row.status = FileStatus.PROCESSED if report.ok else FileStatus.ERROR
    row.status_details = None if report.ok else report.summary(FAULTS_KEPT)


def unreadable(row: File, message: str) -> None:
    """No verdict can be had on this file; say why, so that nobody waits for one."""
    row.status = FileStatus.ERROR
    row.status_details = message


def list_of(
    session: Session, tenant: Tenant, *, purpose: str | None, order: str, after: str | None, limit: int
) -> tuple[list[File], bool]:
    query = _alive(tenant)
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    cursor = None
    if after is not None:
        found = session.scalar(tenancy.owned(File, tenant, deleted=True).where(File.id == after))
        if found is None:
            raise pages.unknown_cursor(after)
        cursor = (found.created_at, found.id)
    return pages.page(session, query, (File.created_at, File.id), cursor, limit, newest_first=order == "desc")


def get(session: Session, tenant: Tenant, id: str) -> File:
    row = tenancy.get(session, File, tenant, id)
    expired = row.expires_at is not None and session.scalar(select(clock.now() >= row.expires_at))
    if expired:
        raise tenancy.missing(File, id)
    return row


def readable(session: Session, tenant: Tenant, id: str) -> File:
    """The file, if its bytes can be had: one made of an upload has none before its parts are joined."""
    row = get(session, tenant, id)
    if row.sha256:
        return row
    if row.status == FileStatus.ERROR:
        raise Conflict(f"The file {id!r} has no content: {row.status_details}", code="wrong_state")
    raise Conflict(
        f"The parts of the file {id!r} are still being joined; its content is there when its status is processed.",
        code="file_not_ready",
    )


def _alive(tenant: Tenant) -> Select[File]:
    return tenancy.owned(File, tenant).where(or_(File.expires_at.is_(None), File.expires_at > clock.now()))


def remove(session: Session, tenant: Tenant, id: str) -> list[str]:
    """Mark it deleted, with the answers about it and the tokens made of it.

    Returns the keys to remove from the store after the commit.
    """
    row = tenancy.get(session, File, tenant, id, lock=True)
    user = session.scalar(data.users_of(tenant, id).limit(1))
    if user is not None:
        raise Conflict(f"The file {id!r} is needed by the job {user.id!r}, which is {user.status}.", param="file_id")
    row.deleted_at = clock.now()
    answers = replies.forget(session, row.project_id, row.sha256)
    return [row.storage_key, *answers, *token_sets.of_file(session, id)]


def add_result(session: Session, job: Job, filename: str, key: str, bytes: int, sha256: str) -> File:
    """A file that a job made."""
    row = File(
        id=ids.file(),
        project_id=job.project_id,
        purpose="fine-tune-results",
        filename=filename,
        bytes=bytes,
        sha256=sha256,
        storage_key=key,
        status=FileStatus.PROCESSED,
        job_id=job.id,
    )
    session.add(row)
    return row
