"""Heartbeats: a child is ended as soon as the authority over its row is gone, and not before."""

import threading
import time

import pytest
from pydantic import ValidationError
from sqlalchemy import update

from core.config import Settings
from core.db.session import engine, sessions, transaction
from core.db.tables import WorkItem
from core.queue import claims
from core.queue.claims import Claim
from core.wiring import Parts
from worker.lease import Lease


@pytest.fixture
def quick(parts: Parts) -> Settings:
    return parts.settings.model_copy(update={"heartbeat_seconds": 0.05, "authority_seconds": 0.4})


@pytest.fixture
def claim(parts: Parts) -> Claim:
    with transaction(parts.sessions) as session:
        session.add(WorkItem(id="item_1", kind="check_file", subject_id="file-x"))
    with transaction(parts.sessions) as session:
        item = claims.next_item(session, "w1", parts.settings)
        assert item is not None
        return Claim(WorkItem, item.id, item.generation)


@pytest.fixture
def stopped() -> threading.Event:
    return threading.Event()


def test_a_kept_row_stops_nothing(parts: Parts, claim: Claim, quick: Settings, stopped: threading.Event) -> None:
    with Lease(parts.sessions, claim, quick, stopped.set) as lease:
        time.sleep(0.5)
        assert not stopped.is_set()
    assert not lease.lost.is_set()
    assert not lease.cancelled


def test_a_row_that_went_to_another_worker_stops_the_child(
    parts: Parts, claim: Claim, quick: Settings, stopped: threading.Event
) -> None:
    with Lease(parts.sessions, claim, quick, stopped.set) as lease:
        with transaction(parts.sessions) as session:
            session.execute(update(WorkItem).values(generation=WorkItem.generation + 1))
        assert stopped.wait(3)
        assert lease.lost.is_set()


def test_cancelling_stops_the_child_and_keeps_the_row(
    parts: Parts, claim: Claim, quick: Settings, stopped: threading.Event
) -> None:
    with Lease(parts.sessions, claim, quick, stopped.set) as lease:
        with transaction(parts.sessions) as session:
            session.execute(update(WorkItem).values(wish="cancel"))
        assert stopped.wait(3)
        assert lease.cancelled
        assert not lease.lost.is_set()


def test_a_heartbeat_that_gets_no_answer_stops_the_child_in_time(
    parts: Parts, claim: Claim, quick: Settings, stopped: threading.Event
) -> None:
    """A statement that waits raises nothing: somebody else has to look at the clock."""
    with transaction(parts.sessions) as session:
        session.execute(update(WorkItem).values(worker_id="locked"))
        began = time.monotonic()
        lease = Lease(parts.sessions, claim, quick, stopped.set)
        lease.__enter__()
        assert stopped.wait(5)
        waited = time.monotonic() - began
        assert lease.lost.is_set()
    lease.__exit__()
    assert waited > quick.authority_seconds


@pytest.mark.parametrize("wrong", [{"authority_seconds": 60}, {"lease_seconds": 30}, {"heartbeat_seconds": 40}])
def test_periods_out_of_proportion_are_refused_when_a_process_starts(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="must be less than ATTUNE_AUTHORITY_SECONDS"):
        Settings(**wrong)  # type: ignore[arg-type]  # pydantic checks


def test_a_silent_database_stops_the_child_before_the_lease_ends(
    claim: Claim, quick: Settings, stopped: threading.Event
) -> None:
    dead = sessions(engine(quick.model_copy(update={"database_url": "postgresql+psycopg://x@127.0.0.1:9/x"})))
    began = time.monotonic()
    with Lease(dead, claim, quick, stopped.set) as lease:
        assert stopped.wait(5)
        assert lease.lost.is_set()
    # Not at the first failed beat: a short absence of the database costs nothing.
    assert time.monotonic() - began > quick.authority_seconds
