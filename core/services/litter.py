"""What lies in the store and nobody needs: objects that no row names, and multipart uploads that nobody will complete.

Rows make objects count, and only a claim's own generation may still write: so what no row names, and no live generation
may write, will never be needed again. For the service itself: it asks for rows by what the keys say.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, func, select, tuple_
from sqlalchemy.orm import Session

from core import clock
from core.config import Settings
from core.db.session import Sessions, transaction
from core.db.tables import (
    Answer,
    Attempt,
    BaseModel,
    Checkpoint,
    File,
    Job,
    TokenSet,
    Upload,
    UploadPart,
    WorkItem,
)
from core.states import ItemKind, ItemStatus
from core.storage import store as layout
from core.storage.store import Place, Store

_PREFIXES = ("answers/", "base-models/", "files/", "jobs/", "prepared/", "uploads/")
_LOG = "trainer.log"
_AT_ONCE = 100
"""Keys that are looked at and removed together: a small number keeps what was seen close to what is done."""

Places = dict[str, Place]


def clear(sessions: Sessions, store: Store, settings: Settings, ended: Callable[[], bool] = lambda: False) -> int:
    """One round through the whole store; returns how many objects and uploads were removed. Any number may do it."""
    removed = 0
    for prefix in _PREFIXES:
        for page in store.pages(prefix):
            before = datetime.now(UTC) - timedelta(seconds=settings.litter_grace_seconds)
            old = [stored.key for stored in page if stored.modified < before]
            for start in range(0, len(old), _AT_ONCE):
                if ended():
                    return removed
                with transaction(sessions) as session:
                    found = orphans(session, old[start : start + _AT_ONCE], settings)
                store.delete(*found)
                removed += len(found)
    return removed + _abort_unfinished(sessions, store, settings)


def _abort_unfinished(sessions: Sessions, store: Store, settings: Settings) -> int:
    before = datetime.now(UTC) - timedelta(seconds=settings.litter_grace_seconds)
    old = [upload for upload in store.unfinished() if upload.begun < before]
    with transaction(sessions) as session:
        kept = live(session, _placed(upload.key for upload in old))
    gone = [upload for upload in old if layout.place(upload.key) is not None and upload.key not in kept]
    for upload in gone:
        store.abort(upload)
    return len(gone)


def orphans(session: Session, keys: list[str], settings: Settings) -> list[str]:
    """Those of these objects that no row names and no live generation may write."""
    places = _placed(keys)
    kept = live(session, places)
    for kind, named in _NAMED.items():
        mine = {key: place for key, place in places.items() if place.kind == kind}
        if mine:
            kept |= named(session, mine)
    kept |= _logs(session, places, settings)
    return [key for key in keys if key in places and key not in kept]


def live(session: Session, places: Places) -> set[str]:
    """Keys that whoever has a lease now may write: those of its own generation."""
    wanted = {(place.owner, place.generation) for place in places.values() if place.generation is not None}
    found: set[tuple[str, int]] = set()
    for table in (Job, WorkItem):
        mine = tuple_(table.id, table.generation).in_(wanted)
        found |= {(id, g) for id, g in session.execute(select(table.id, table.generation).where(mine, _leased(table)))}
    # The parts of an upload are joined under the file's name, by an item that is about the upload.
    joining = (
        select(Upload.file_id, WorkItem.generation)
        .join(WorkItem, (WorkItem.subject_id == Upload.id) & (WorkItem.kind == ItemKind.JOIN_UPLOAD))
        .where(Upload.file_id.in_([owner for owner, _ in wanted]), _leased(WorkItem))
    )
    found |= {(file_id, generation) for file_id, generation in session.execute(joining) if file_id is not None}
    return {key for key, place in places.items() if (place.owner, place.generation) in found}


def _leased(table: type[Job] | type[WorkItem]) -> ColumnElement[bool]:
    return table.lease_until.is_not(None)


def _placed(keys: Iterable[str]) -> Places:
    return {key: place for key in keys if (place := layout.place(key)) is not None}


def _files(session: Session, places: Places) -> set[str]:
    return set(session.scalars(select(File.storage_key).where(File.storage_key.in_(places), File.deleted_at.is_(None))))


def _jobs(session: Session, places: Places) -> set[str]:
    ids = {place.owner for place in places.values()}
    rows = select(Checkpoint.storage_prefix).where(Checkpoint.job_id.in_(ids), Checkpoint.deleted_at.is_(None))
    prefixes = tuple(session.scalars(rows))
    return _files(session, places) | {key for key in places if key.startswith(prefixes)}


def _logs(session: Session, places: Places, settings: Settings) -> set[str]:
    """A trainer's log is kept for a while, and no longer than its job."""
    logs = {(p.owner, p.generation): key for key, p in places.items() if p.kind == "jobs" and p.rest == _LOG}
    rows = (
        select(Attempt.job_id, Attempt.generation)
        .join(Job, Job.id == Attempt.job_id)
        .where(
            tuple_(Attempt.job_id, Attempt.generation).in_(logs),
            Job.deleted_at.is_(None),
            func.coalesce(Attempt.ended_at, clock.now()) > clock.in_seconds(-24 * 3600 * settings.log_days),
        )
    )
    return {logs[id, generation] for id, generation in session.execute(rows)}


def _prepared(session: Session, places: Places) -> set[str]:
    entry = func.jsonb_each(TokenSet.files).table_valued("key", "value", name="entry").render_derived()
    name = entry.c.value.op("->>")("key")
    return set(session.scalars(select(name).select_from(TokenSet).join(entry, name.in_(places))))


def _uploads(session: Session, places: Places) -> set[str]:
    return set(session.scalars(select(UploadPart.storage_key).where(UploadPart.storage_key.in_(places))))


def _answers(session: Session, places: Places) -> set[str]:
    ids = {place.owner for place in places.values()}
    found = set(session.scalars(select(Answer.id).where(Answer.id.in_(ids))))
    return {key for key, place in places.items() if place.owner in found}


def _base_models(session: Session, places: Places) -> set[str]:
    registering = (
        select(WorkItem.id)
        .where(WorkItem.kind == ItemKind.REGISTER_MODEL, WorkItem.status.in_([ItemStatus.WAITING, ItemStatus.RUNNING]))
        .limit(1)
    )
    if session.scalar(registering) is not None:
        # Which files it will store, or find stored already, is not known before it has done so.
        return set(places)
    shas = {place.owner for place in places.values()}
    # A base model that was removed is still what jobs and tuned models stand on.
    found = set(session.scalars(select(BaseModel.content_sha256).where(BaseModel.content_sha256.in_(shas))))
    return {key for key, place in places.items() if place.owner in found}


_NAMED: dict[str, Callable[[Session, Places], set[str]]] = {
    "answers": _answers,
    "base-models": _base_models,
    "files": _files,
    "jobs": _jobs,
    "prepared": _prepared,
    "uploads": _uploads,
}
