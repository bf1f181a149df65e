"""Uploads as their owner sees them: created, filled with parts in any order, completed or cancelled.

A part's row is written before its bytes, so that nothing lies in the store that no row knows of.
"""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core import clock, ids
from core.config import MIB, Settings
from core.db import tenancy
from core.db.tables import File, Upload, UploadPart, WorkItem
from core.db.tenancy import Tenant
from core.errors import BadRequest, Conflict, TooLarge
from core.schemas.uploads import MAX_PARTS, UploadComplete, UploadCreate
from core.services import quotas
from core.states import FileStatus, ItemKind, UploadStatus
from core.storage import store as layout
from core.storage.store import Store
from core.storage.writer import Writer

_SPARE = 64 * MIB


class IncomingPart:
    """A part's bytes on their way in, in memory for a few of them. Blocks on the store."""

    def __init__(self, store: Store, part: UploadPart, limit: int) -> None:
        self.bytes = 0
        self._writer = Writer(store, part.storage_key)
        self._limit = limit

    def write(self, chunk: bytes) -> None:
        self.bytes += len(chunk)
        if self.bytes > self._limit:
            raise TooLarge(f"data: larger than the {self._limit:,} bytes this part may have.", param="data")
        self._writer.write(chunk)

    def finish(self) -> None:
        if self.bytes == 0:
            raise BadRequest("data: empty.", param="data")
        self._writer.finish()

    def abort(self) -> None:
        self._writer.abort()


def create(session: Session, tenant: Tenant, wanted: UploadCreate, filename: str, settings: Settings) -> Upload:
    if wanted.bytes > settings.max_file_bytes:
        raise TooLarge(
            f"bytes: {wanted.bytes:,} are more than the {settings.max_file_bytes:,} a file may have.", param="bytes"
        )
    quotas.check_stored_bytes(session, tenant, wanted.bytes, settings, param="bytes")
    row = Upload(
        id=ids.upload(),
        project_id=tenant.project_id,
        bytes=wanted.bytes,
        filename=filename,
        mime_type=wanted.mime_type,
        purpose=wanted.purpose,
        file_expires_after=None if wanted.expires_after is None else wanted.expires_after.seconds,
        expires_at=clock.in_seconds(settings.upload_seconds),
    )
    session.add(row)
    return row


def begin_part(session: Session, tenant: Tenant, id: str, settings: Settings) -> tuple[UploadPart, int]:
    """The row of a part that is about to come in, and how many bytes it may have."""
    upload = tenancy.get(session, Upload, tenant, id, lock=True)
    _must_be_open(session, upload)
    count, stored = session.execute(
        select(func.count(), func.coalesce(func.sum(UploadPart.bytes), 0)).where(UploadPart.upload_id == id)
    ).one()
    if count >= MAX_PARTS:
        raise Conflict(f"The upload {id!r} has {count:,} parts, and no upload may have more.", code="too_many_parts")
    # A part may be sent again when its answer was lost, but not for ever.
    if (stored or 0) >= 2 * upload.bytes + _SPARE:
        raise TooLarge(f"The parts of {id!r} hold {stored:,} bytes, more than twice those of the file.", param="data")
    part = UploadPart(id=ids.upload_part(), upload_id=id)
    part.storage_key = layout.upload_part(id, part.id)
    session.add(part)
    return part, min(settings.max_part_bytes, upload.bytes)


def end_part(session: Session, tenant: Tenant, part: UploadPart, size: int) -> UploadPart:
    """The part is whole. Refused when its upload has ended while it came in."""
    upload = tenancy.get(session, Upload, tenant, part.upload_id, lock=True)
    _must_be_open(session, upload)
    row = session.get_one(UploadPart, part.id)
    row.bytes = size
    return row


def drop_part(session: Session, part: UploadPart) -> None:
    """Forget a part that did not come in whole. Its object is gone already."""
    row = session.get(UploadPart, part.id)
    if row is not None:
        session.delete(row)


def complete(session: Session, tenant: Tenant, id: str, wanted: UploadComplete) -> tuple[Upload, File | None]:
    """Fix the order of the parts and make the file, which a prepare worker joins. Twice the same gives the same."""
    upload = tenancy.get(session, Upload, tenant, id, lock=True)
    md5 = None if wanted.md5 is None else wanted.md5.lower()
    if upload.status == UploadStatus.COMPLETED and (upload.part_ids, upload.md5) == (wanted.part_ids, md5):
        return upload, session.scalar(tenancy.owned(File, tenant).where(File.id == upload.file_id))
    _must_be_open(session, upload)
    _check_parts(session, upload, wanted.part_ids)
    file_id = ids.file()
    file = File(
        id=file_id,
        project_id=upload.project_id,
        purpose=upload.purpose,
        filename=upload.filename,
        bytes=upload.bytes,
        sha256="",
        storage_key=layout.file(file_id),
        status=FileStatus.UPLOADED,
        expires_at=None if upload.file_expires_after is None else clock.in_seconds(upload.file_expires_after),
    )
    session.add(file)
    session.flush()
    session.refresh(file)
    upload.status, upload.part_ids, upload.md5, upload.file_id = UploadStatus.COMPLETED, wanted.part_ids, md5, file_id
    session.add(WorkItem(id=ids.work_item(), kind=ItemKind.JOIN_UPLOAD, subject_id=upload.id))
    return upload, file


def cancel(session: Session, tenant: Tenant, id: str) -> Upload:
    upload = tenancy.get(session, Upload, tenant, id, lock=True)
    if upload.status != UploadStatus.CANCELLED:
        _must_be_open(session, upload)
        upload.status = UploadStatus.CANCELLED
    return upload


def _must_be_open(session: Session, upload: Upload) -> None:
    status = upload.status
    if status == UploadStatus.PENDING and session.scalar(select(clock.now() >= upload.expires_at)):
        status = UploadStatus.EXPIRED
    if status != UploadStatus.PENDING:
        how = {
            UploadStatus.COMPLETED: f"completed; its file is {upload.file_id}",
            UploadStatus.CANCELLED: "cancelled",
            UploadStatus.EXPIRED: "expired; create another one",
        }[UploadStatus(status)]
        raise Conflict(f"The upload {upload.id!r} is {how}.", code="wrong_state")


def _check_parts(session: Session, upload: Upload, part_ids: list[str]) -> None:
    sizes = {
        row.id: row.bytes or 0
        for row in session.scalars(
            select(UploadPart).where(UploadPart.upload_id == upload.id, UploadPart.bytes.is_not(None))
        )
    }
    seen: dict[str, int] = {}
    for index, part_id in enumerate(part_ids):
        param = f"part_ids[{index}]"
        if part_id not in sizes:
            raise BadRequest(f"{param}: {part_id!r} is no part of {upload.id!r}.", param=param)
        if part_id in seen:
            raise BadRequest(f"{param}: {part_id!r} is part_ids[{seen[part_id]}] already.", param=param)
        seen[part_id] = index
    total = sum(sizes[part_id] for part_id in part_ids)
    if total != upload.bytes:
        raise BadRequest(
            f"part_ids: these parts have {total:,} bytes together, and the upload was created for {upload.bytes:,}.",
            param="part_ids",
        )
