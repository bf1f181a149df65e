"""The sweep: what has expired goes, rows first, and only one copy sweeps at a time."""

from datetime import timedelta

import pytest
from sqlalchemy import select, text

from core import clock
from core.config import Settings
from core.db.session import transaction
from core.db.tables import File, WorkItem
from core.wiring import Parts
from tests.conftest import Account, Rings
from tests.rows import file_row
from worker import reconciler


@pytest.fixture
def expired(parts: Parts, account: Account) -> str:
    """The key of a file whose time is over."""
    parts.store.put("files/file-old", b"x")
    with transaction(parts.sessions) as session:
        session.add(file_row(account, "file-old", purpose="user_data", expires_at=clock.now() - timedelta(seconds=1)))
    return "files/file-old"


def test_expired_files_are_really_deleted(parts: Parts, account: Account, expired: str) -> None:
    assert account.http.get("/v1/files/file-old").status_code == 404
    reconciler.sweep(parts)
    assert parts.store.size(expired) is None
    with transaction(parts.sessions) as session:
        assert session.get_one(File, "file-old").deleted_at is not None


def test_a_second_copy_stands_aside(parts: Parts, expired: str) -> None:
    with transaction(parts.sessions) as session:
        assert session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": reconciler._LOCK})
        reconciler.sweep(parts)
        assert parts.store.size(expired) == 1
    reconciler.sweep(parts)
    assert parts.store.size(expired) is None


def test_a_work_item_of_a_lost_worker_waits_again_and_ends_after_too_many(parts: Parts, account: Account) -> None:
    settings: Settings = parts.settings
    with transaction(parts.sessions) as session:
        session.add(file_row(account, "file-x", status="uploaded"))
        session.add(WorkItem(id="item_x", kind="check_file", subject_id="file-x"))
    for n in range(1, settings.max_attempts + 1):
        with transaction(parts.sessions) as session:
            item = session.get_one(WorkItem, "item_x")
            item.lease_until = clock.now() - timedelta(seconds=1)
            item.status = "running"
        reconciler.sweep(parts)
        with transaction(parts.sessions) as session:
            item = session.get_one(WorkItem, "item_x")
            assert (item.losses, item.lease_until) == (n, None)
    assert item.status == "failed"
    with transaction(parts.sessions) as session:
        file = session.scalars(select(File).where(File.id == "file-x")).one()
    # Nobody may wait for ever on a file that can't be settled.
    assert file.status == "error"
    assert isinstance(parts.doorbell, Rings)
    assert "prepare" in parts.doorbell.kinds
