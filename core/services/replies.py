"""What becomes of a question about data: a worker's reply or fault goes into its answer, and answers go with time.

For the service itself: it takes rows by ids that rows of the service name.
"""

from typing import Any

import orjson
from sqlalchemy import ColumnElement, and_, delete, func, select
from sqlalchemy.orm import Session

from core import clock
from core.config import Settings
from core.db.tables import Answer, WorkItem

CHANNEL = "attune_answers"
"""PostgreSQL tells the ids of settled answers here, when the transaction that settled them commits."""
IN_ROW_BYTES = 256 * 1024
"""A result of more bytes lies in the store, under the name ``RESULT``."""
RESULT = "result.json"

Json = dict[str, Any]  # Any: JSON


def question(session: Session, id: str) -> Answer | None:
    return session.get(Answer, id)


def fits_row(result: Json) -> bool:
    return len(orjson.dumps(result)) <= IN_ROW_BYTES


def settle(session: Session, id: str, result: Json | None, objects: dict[str, str]) -> None:
    """The caller holds the work item's lock: while that is there, so is the answer."""
    row = session.get_one(Answer, id, with_for_update={"key_share": True})
    row.result, row.objects, row.error = result, objects, None
    _settled(session, row)


def fail(session: Session, id: str, code: str, message: str, param: str | None) -> None:
    row = session.get_one(Answer, id, with_for_update={"key_share": True})
    row.error = {"code": code, "message": message, "param": param}
    _settled(session, row)


def _settled(session: Session, row: Answer) -> None:
    row.settled_at = clock.now()
    session.flush()
    session.execute(select(func.pg_notify(CHANNEL, row.id)))


def forget(session: Session, project_id: str, sha256: str) -> list[str]:
    """Remove what was answered about this content; returns the keys to remove from the store after the commit."""
    if not sha256:
        return []
    return _remove(session, and_(Answer.project_id == project_id, Answer.data_sha256.contains([sha256])))


def expire(session: Session, settings: Settings) -> list[str]:
    """Remove answers that nobody has asked for in a long time; returns the keys to remove from the store."""
    return _remove(session, Answer.used_at < clock.in_seconds(-24 * 3600 * settings.answer_days))


def _remove(session: Session, which: ColumnElement[bool]) -> list[str]:
    ids = session.scalars(select(Answer.id).where(which).limit(1000)).all()
    # Items first, as workers lock them. A worker that has one finds out at its next write, or its next heartbeat.
    session.execute(delete(WorkItem).where(WorkItem.subject_id.in_(ids)))
    gone = session.execute(delete(Answer).where(Answer.id.in_(ids), which).returning(Answer.id, Answer.objects)).all()
    for id, _ in gone:
        # Whoever waits for it asks again.
        session.execute(select(func.pg_notify(CHANNEL, id)))
    return [key for _, objects in gone for key in objects.values()]
