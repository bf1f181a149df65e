"""Joining an upload's parts into its file: one pass hashes and checks the bytes, and the store copies the large parts.

In memory for one piece and one small part; nothing on this machine's disk.
"""

import hashlib
import threading

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from core.db.tables import UploadPart, WorkItem
from core.errors import JobError, LostAuthority, NotFound
from core.formats.reading import Passing
from core.queue.claims import Claim
from core.queue.fence import fenced
from core.services import data, joins
from core.services.joins import Joined, Plan
from core.storage import store as layout
from core.storage.store import Store
from core.storage.writer import Writer
from core.wiring import Parts
from worker import preparation
from worker.lease import Lease

log = structlog.get_logger()


class Drained(Exception):
    """This worker was told to end; somebody else begins again."""


class _Pass:
    """What is found out about the bytes as they go by."""

    def __init__(self, plan: Plan) -> None:
        self.sha256 = hashlib.sha256()
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.check = Passing()
        if plan.file.purpose != data.TRAINABLE:
            self.check.forget()

    def feed(self, piece: bytes) -> None:
        self.sha256.update(piece)
        self.md5.update(piece)
        self.check.feed(piece)


def join(parts: Parts, item: WorkItem, claim: Claim, lease: Lease, draining: threading.Event) -> None:
    """See the item through. Repeating it is harmless: parts stay until it has ended, and each try has its own key."""
    with fenced(parts.sessions, WorkItem, claim.id, claim.generation) as (session, row):
        # Behind the fence the plan is whole: parts are removed only after their item has ended.
        plan = joins.plan(session, row.subject_id)
    try:
        joins.forget_tries(parts.store, plan.file.id, claim.generation - 1)
        key = layout.joined(plan.file.id, claim.generation)
        joined = _stream(parts.store, plan, key, lease, draining)
    except Drained:
        with fenced(parts.sessions, WorkItem, claim.id, claim.generation) as (_, row):
            preparation.hand_back_item(row)
        log.info("item.handed_back", item_id=item.id)
        return
    _settle(parts, plan, claim, key, joined)
    joins.clear(parts.sessions, parts.store, parts.settings, plan.upload.id)
    # Jobs may wait for this file, and its check may still be due.
    parts.doorbell.ring("prepare")


def _settle(parts: Parts, plan: Plan, claim: Claim, key: str, joined: Joined | str) -> None:
    wanted = True
    try:
        with fenced(parts.sessions, WorkItem, claim.id, claim.generation) as (session, row):
            if isinstance(joined, Joined):
                wanted = joins.settle(session, row, joined)
            else:
                joins.refuse(session, row, joined)
    except LostAuthority:
        wanted = False
        raise
    finally:
        # After any other error the commit may have happened all the same: then the object is the file's.
        if not wanted:
            parts.store.delete(key)
    log.info("upload.joined", upload_id=plan.upload.id, file_id=plan.file.id, parts=len(plan.parts))


def _stream(store: Store, plan: Plan, key: str, lease: Lease, draining: threading.Event) -> Joined | str:
    """The bytes under one key; or the sentence that says why not, and then nothing is there."""
    found = _Pass(plan)
    writer = Writer(store, key)
    try:
        for number, part in enumerate(plan.parts, 1):
            size = part.bytes or 0
            through = writer.through(size)
            _one(store, number, part, through, writer, found, lease, draining)
            if through < size:
                writer.copy(part.storage_key, through, size - through)
        md5 = found.md5.hexdigest()
        if plan.upload.md5 not in (None, md5):
            writer.abort()
            return (
                f"The md5 of the joined parts is {md5}, and {plan.upload.md5} was given when the upload was completed."
            )
        writer.finish()
    except BaseException:
        _abort(writer)
        raise
    return Joined(key, found.sha256.hexdigest(), found.check.finish())


def _one(
    store: Store,
    number: int,
    part: UploadPart,
    through: int,
    writer: Writer,
    found: _Pass,
    lease: Lease,
    draining: threading.Event,
) -> None:
    seen = 0
    try:
        for piece in store.stream(part.storage_key):
            if lease.lost.is_set():
                raise LostAuthority(f"{lease.claim.id}: the lease ended")
            if draining.is_set():
                raise Drained
            found.feed(piece)
            if seen < through:
                writer.write(piece[: through - seen])
            seen += len(piece)
    except NotFound as error:
        raise JobError(
            f"Part {number} of the upload is no longer in the object store.", code="storage_error"
        ) from error
    if seen != part.bytes:
        raise JobError(f"Part {number} of the upload has {seen:,} bytes, not {part.bytes:,}.", code="storage_error")


def _abort(writer: Writer) -> None:
    try:
        writer.abort()
    except (BotoCoreError, ClientError) as error:
        # The next try, or the sweep after the last one, removes it.
        log.warning("join.not_aborted", error=type(error).__name__)
