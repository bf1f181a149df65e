"""The one way a worker may write to a row it owns.

``WHERE generation = :g`` alone leaks: under READ COMMITTED a late worker's open statement can commit after the new
owner's claim. The row lock closes it, because a claim must wait for it. ``FOR NO KEY UPDATE`` blocks claims as
``FOR UPDATE`` does, and leaves inserts of rows that refer to this one (events, metrics) alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from core import telemetry
from core.db.session import Sessions, transaction
from core.db.tables import Job, WorkItem
from core.errors import LostAuthority

log = structlog.get_logger()

Claimed = TypeVar("Claimed", bound=Job | WorkItem)


@contextmanager
def fenced(sessions: Sessions, table: type[Claimed], id: str, generation: int) -> Iterator[tuple[Session, Claimed]]:
    """A transaction that holds the row at this generation, or LostAuthority and nothing written."""
    with transaction(sessions) as session:
        row = session.scalar(
            select(table)
            .where(table.id == id, table.generation == generation, table.lease_until.is_not(None))
            .with_for_update(key_share=True)
        )
        if row is None:
            telemetry.fenced_writes_refused.inc()
            log.warning("fence.refused", id=id, generation=generation)
            raise LostAuthority(f"{id} is no longer owned at generation {generation}")
        yield session, row
