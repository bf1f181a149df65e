"""The engine and its sessions. One request, or one step of a task, is one transaction; the edge commits."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import Session, sessionmaker

from core.config import Settings

_TRUSTED = 1.0
"""Seconds for which a connection that was given back is taken to be alive. Asking it costs as much as a small query."""


def engine(settings: Settings, *, pool_size: int = 10) -> Engine:
    bound = create_engine(
        settings.database_url,
        pool_size=pool_size,
        max_overflow=30,
        pool_timeout=10,
        connect_args={
            "connect_timeout": 5,
            "application_name": "attune",
            # A process that was stopped inside a transaction must not keep its locks for ever: nobody could take the
            # row from it. No transaction of ours waits for anything but the database.
            "options": f"-c idle_in_transaction_session_timeout={int(1000 * settings.lease_seconds)}",
            # A peer that vanished without a word is noticed within half a minute.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        },
    )
    _replace_dead(bound)
    return bound


def _replace_dead(bound: Engine) -> None:
    """A connection that died with a restarted server while it lay in the pool is replaced, and fails no request.

    SQLAlchemy's ``pool_pre_ping`` does the same before every single use.
    """

    def given_back(connection: Any, record: Any) -> None:  # Any: psycopg's connection and the pool's record of it
        record.info["idle_since"] = time.monotonic()

    def taken(connection: Any, record: Any, proxy: Any) -> None:
        idle_since = record.info.get("idle_since")
        if idle_since is not None and time.monotonic() - idle_since > _TRUSTED:
            try:
                bound.dialect.do_ping(connection)
            except bound.dialect.loaded_dbapi.Error as error:
                raise InvalidatePoolError(str(error)) from None

    event.listen(bound, "checkin", given_back)
    event.listen(bound, "checkout", taken)


class Sessions(sessionmaker[Session]):
    """Makes sessions over one engine's pool."""

    def __init__(self, bound: Engine) -> None:
        # Rows stay readable after the commit: an answer is built from what was just written.
        super().__init__(bound, expire_on_commit=False)
        self.reading = sessionmaker(bound.execution_options(isolation_level="AUTOCOMMIT"), expire_on_commit=False)


def sessions(bound: Engine) -> Sessions:
    return Sessions(bound)


@contextmanager
def transaction(factory: Sessions) -> Iterator[Session]:
    """Commit at the end, roll back on any error."""
    with factory() as session, session.begin():
        yield session


def reading(factory: Sessions) -> Session:
    """For requests that only read. Each query sees what is committed when it runs, which is all that a transaction at
    PostgreSQL's own isolation level would give them, and there is nothing to begin and nothing to commit."""
    return factory.reading()
