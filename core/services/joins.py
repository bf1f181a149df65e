"""What becomes of an upload after its owner's last word: its parts are joined into the file, and then they go.

For the service itself: it takes rows by ids that rows of the service name.
"""

from dataclasses import dataclass

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from core import clock
from core.config import Settings
from core.db.session import Sessions, transaction
from core.db.tables import File, Upload, UploadPart, WorkItem
from core.formats.report import Report
from core.queue import claims
from core.services import files
from core.states import ItemKind, ItemStatus, UploadStatus
from core.storage import store as layout
from core.storage.store import Store

_CLEARED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Plan:
    upload: Upload
    file: File
    parts: list[UploadPart]
    """In the order given at completion."""


@dataclass(frozen=True, slots=True)
class Joined:
    """The file's bytes as one object, and what was found on the way."""

    key: str
    sha256: str
    report: Report | None


def plan(session: Session, upload_id: str) -> Plan:
    upload = session.get_one(Upload, upload_id)
    parts = {part.id: part for part in session.scalars(select(UploadPart).where(UploadPart.upload_id == upload_id))}
    return Plan(upload, session.get_one(File, upload.file_id), [parts[id] for id in upload.part_ids or []])


def settle(session: Session, item: WorkItem, joined: Joined) -> bool:
    """The file has its bytes; False when it was deleted meanwhile, and the object must go."""
    file = _file(session, item)
    claims.done(item)
    if file.deleted_at is not None:
        return False
    file.storage_key, file.sha256 = joined.key, joined.sha256
    check = files.conclude(file, joined.report)
    if check is not None:
        session.add(check)
    return True


def refuse(session: Session, item: WorkItem, message: str) -> None:
    """The parts can't become the file; say why."""
    files.unreadable(_file(session, item), message)
    claims.done(item)


def failed(session: Session, item: WorkItem, message: str) -> None:
    """Joining was given up."""
    files.unreadable(_file(session, item), message)


def expire(session: Session) -> int:
    """Mark uploads whose time is over; returns how many. :func:`clear` removes their parts."""
    rows = session.scalars(
        select(Upload)
        .where(Upload.status == UploadStatus.PENDING, Upload.expires_at <= clock.now())
        .with_for_update(key_share=True, skip_locked=True)
        .limit(100)
    ).all()
    for upload in rows:
        upload.status = UploadStatus.EXPIRED
    return len(rows)


def clear(sessions: Sessions, store: Store, settings: Settings, upload_id: str | None = None) -> int:
    """Remove parts that nobody needs any more, of one upload or of any; returns how many.

    The rows go after the objects: whoever is cut off in between leaves rows, and the next round finds them.
    """
    ended = [UploadStatus.CANCELLED, UploadStatus.EXPIRED]
    query = (
        select(UploadPart, Upload, WorkItem)
        .join(Upload, Upload.id == UploadPart.upload_id)
        .outerjoin(WorkItem, (WorkItem.subject_id == Upload.id) & (WorkItem.kind == ItemKind.JOIN_UPLOAD))
        .where(
            or_(Upload.status.in_(ended), WorkItem.status.in_([ItemStatus.DONE, ItemStatus.FAILED])),
            # A part that still comes in removes itself; an old one was cut off together with its server.
            or_(UploadPart.bytes.is_not(None), UploadPart.created_at < clock.in_seconds(-settings.upload_seconds)),
        )
        .limit(_CLEARED_AT_ONCE)
    )
    if upload_id is not None:
        query = query.where(Upload.id == upload_id)
    with transaction(sessions) as session:
        found = session.execute(query).all()
    if not found:
        return 0
    # What a join left behind that was given up; its file never had these bytes.
    for upload, item in {(upload, item) for _, upload, item in found if item and item.status == ItemStatus.FAILED}:
        assert upload.file_id is not None
        forget_tries(store, upload.file_id, item.generation)
    keys = [part.storage_key for part, _, _ in found]
    for key in (part.storage_key for part, _, _ in found if part.bytes is None):
        store.abort_multiparts(key)
    store.delete(*keys)
    with transaction(sessions) as session:
        session.execute(delete(UploadPart).where(UploadPart.id.in_([part.id for part, _, _ in found])))
    return len(found)


def forget_tries(store: Store, file_id: str, last: int) -> None:
    """Remove what tries at joining up to this generation left behind. Never called for one that was settled."""
    for generation in range(1, last + 1):
        key = layout.joined(file_id, generation)
        store.abort_multiparts(key)
        store.delete(key)


def _file(session: Session, item: WorkItem) -> File:
    upload = session.get_one(Upload, item.subject_id)
    return session.get_one(File, upload.file_id, with_for_update={"key_share": True})
