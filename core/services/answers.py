"""Questions about data (report, validate, preview, estimate): asked once, answered by prepare, kept for the next asker.

What workers write into answers, and how answers go, is in ``replies``.
"""

import hashlib
from importlib import metadata
from typing import Any, NamedTuple

import orjson
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core import clock, ids
from core.db import tenancy
from core.db.tables import Answer, WorkItem
from core.db.tenancy import Tenant
from core.errors import RateLimited
from core.states import AnswerKind, ItemKind

REVISION = 1
"""Counts changes of what is answered within one version of this package: older answers are not given then."""
OPEN_AT_ONCE = 32
"""Questions of one project that may be worked on at the same time."""
ERROR_SECONDS = 30
"""For so long a failed answer is given; whoever asks later has it tried again."""


class Question(NamedTuple):
    kind: AnswerKind
    inputs: dict[str, Any]  # Any: JSON
    """All that decides the answer, with contents named by their hashes."""
    places: dict[str, Any]  # Any: JSON
    """Where a worker finds those contents: ids of files and base models, which may differ for the same answer."""
    data_sha256: list[str]
    """Of the files whose rows the answer may quote."""


def ask(session: Session, tenant: Tenant, question: Question) -> tuple[Answer, bool]:
    """The answer's row, and whether there is work to be done for it, which workers want to be rung for."""
    id = _id(tenant, question)
    whole = question.inputs | question.places
    row = _find(session, tenant, id)
    if row is None:
        _check_open(session, tenant)
        made = insert(Answer).values(
            id=id,
            project_id=tenant.project_id,
            kind=question.kind,
            question=whole,
            data_sha256=question.data_sha256,
        )
        # When somebody else asks the same just now, theirs will do.
        new = session.scalar(made.on_conflict_do_nothing().returning(Answer.id)) is not None
        row = _find(session, tenant, id)
        assert row is not None
    else:
        new = _may_be_tried_again(session, row)
        if new:
            row.question, row.error, row.settled_at = whole, None, None
    row.used_at = clock.now()
    if new:
        session.add(WorkItem(id=ids.work_item(), kind=ItemKind.ANSWER, subject_id=id))
    session.flush()
    return row, new


def get(session: Session, tenant: Tenant, id: str) -> Answer | None:
    """None when it is gone: with a file that it was about, or with time."""
    return session.scalar(tenancy.owned(Answer, tenant).where(Answer.id == id))


def _id(tenant: Tenant, question: Question) -> str:
    decisive = [tenant.project_id, metadata.version("attune"), REVISION, question.kind, question.inputs]
    return "answer_" + hashlib.sha256(orjson.dumps(decisive, option=orjson.OPT_SORT_KEYS)).hexdigest()[:40]


def _find(session: Session, tenant: Tenant, id: str) -> Answer | None:
    found = tenancy.owned(Answer, tenant).where(Answer.id == id).with_for_update(key_share=True)
    return session.scalar(found.execution_options(populate_existing=True))


def _may_be_tried_again(session: Session, row: Answer) -> bool:
    if row.error is None or row.settled_at is None:
        return False
    pause = func.make_interval(0, 0, 0, 0, 0, 0, ERROR_SECONDS)
    return bool(session.scalar(select(clock.now() > row.settled_at + pause)))


def _check_open(session: Session, tenant: Tenant) -> None:
    waiting = tenancy.owned(Answer, tenant).where(Answer.settled_at.is_(None)).limit(OPEN_AT_ONCE)
    if len(session.scalars(waiting).all()) >= OPEN_AT_ONCE:
        raise RateLimited(
            f"{OPEN_AT_ONCE} questions about this project's data are being worked on; come again with the next one.",
            retry_after=5,
        )
