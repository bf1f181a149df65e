"""The engine and its sessions. One request, or one step of a task, is one transaction; the edge commits."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

from core.config import Settings

Sessions = sessionmaker[Session]


def engine(settings: Settings, *, pool_size: int = 10) -> Engine:
    return create_engine(
        settings.database_url,
        pool_size=pool_size,
        max_overflow=30,
        pool_timeout=10,
        # A connection that died with a restarted server is replaced instead of failing a request.
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": 5,
            "application_name": "attune",
            # A peer that vanished without a word is noticed within half a minute.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        },
    )


def sessions(bound: Engine) -> Sessions:
    # Rows stay readable after the commit: an answer is built from what was just written.
    return sessionmaker(bound, expire_on_commit=False)


@contextmanager
def transaction(factory: Sessions) -> Iterator[Session]:
    """Commit at the end, roll back on any error."""
    with factory() as session, session.begin():
        yield session
