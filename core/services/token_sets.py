"""Prepared tokens that several jobs may share: rows made of the same data, template, tokenizer and limits.

A set belongs to a project and is found by the hash of all it was made from (``worker/tokens.py``). It stays while a
job that has not ended needs it, and else until its last job or a file of it is deleted, or nobody has used it for
``ATTUNE_TOKENS_DAYS``.
"""

from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import ARRAY, Select, Text, cast, delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core import clock
from core.config import Settings
from core.db.tables import Job, TokenSet
from core.states import TERMINAL

Json = dict[str, Any]  # names of files -> {key, bytes, sha256}; what tokenising found (worker/prepare/folder.py)

_SWEPT = 100


def find(session: Session, id: str) -> TokenSet | None:
    """Without a lock: it may be gone before it is taken."""
    return session.get(TokenSet, id)


def take(session: Session, id: str, job: Job | None) -> TokenSet | None:
    """The set, kept from being removed from now on for as long as this job has not ended; None when it is gone."""
    row = session.scalar(select(TokenSet).where(TokenSet.id == id).with_for_update())
    if row is not None:
        row.last_used_at = clock.now()
        if job is not None:
            job.token_set_id = id
    return row


def keep(
    session: Session, id: str, project_id: str, job: Job | None, *, file_ids: list[str], found: Json, files: Json
) -> TokenSet:
    """A new set, or the one that somebody else has made of the same data in the meantime."""
    session.execute(
        insert(TokenSet)
        .values(id=id, project_id=project_id, file_ids=file_ids, found=found, files=files)
        .on_conflict_do_nothing()
    )
    row = take(session, id, job)
    assert row is not None  # inserted or locked just now
    return row


def discard(session: Session, id: str) -> list[str]:
    """Forget a set whose objects are damaged, whoever uses it; returns the keys to delete after the commit."""
    row = session.scalar(select(TokenSet).where(TokenSet.id == id).with_for_update())
    return [] if row is None else _forget(session, row)


class Left(NamedTuple):
    """What becomes of a deleted job's tokens: keys to delete, or keys that other jobs need."""

    gone: list[str]
    kept: list[str]


def let_go(session: Session, job: Job) -> Left:
    """The job is deleted, and its tokens with it, unless another job has them too."""
    if job.token_set_id is None:
        return Left([], [])
    row = session.scalar(select(TokenSet).where(TokenSet.id == job.token_set_id).with_for_update())
    if row is None:
        return Left([], [])
    others = select(Job.id).where(Job.token_set_id == row.id, Job.id != job.id, Job.deleted_at.is_(None)).limit(1)
    if session.scalar(others) is None:
        return Left(_forget(session, row), [])
    return Left([], [entry["key"] for entry in row.files.values()])


def of_file(session: Session, file_id: str) -> list[str]:
    """The file is deleted: forget what was made of it, unless a job on an equal file still needs it. Keys to delete."""
    return _forget_unneeded(session, select(TokenSet).where(TokenSet.file_ids.op("@>")(cast([file_id], ARRAY(Text)))))


def unused(session: Session, settings: Settings) -> list[str]:
    """Forget what nobody has used for too long; returns the keys to delete after the commit."""
    before = clock.now() - timedelta(days=settings.tokens_days)
    return _forget_unneeded(session, select(TokenSet).where(TokenSet.last_used_at < before).limit(_SWEPT))


def _forget_unneeded(session: Session, wanted: Select[TokenSet]) -> list[str]:
    # A set that somebody is taking just now is locked, and stays. Which jobs need a set is asked when it is locked:
    # nobody can take it any more without waiting for this transaction's end.
    rows = session.scalars(wanted.with_for_update(skip_locked=True)).all()
    living = Job.token_set_id.in_([row.id for row in rows]), Job.status.not_in(TERMINAL)
    needed = set(session.scalars(select(Job.token_set_id).where(*living)))
    return [key for row in rows if row.id not in needed for key in _forget(session, row)]


def _forget(session: Session, row: TokenSet) -> list[str]:
    session.execute(delete(TokenSet).where(TokenSet.id == row.id))
    return [entry["key"] for entry in row.files.values()]
