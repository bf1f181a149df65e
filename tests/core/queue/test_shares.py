"""Fair shares between projects: who is next, and what a waiting job's place promises."""

import threading
from collections import Counter

import pytest
from sqlalchemy import select, text

from core import clock
from core.db import tenancy
from core.db.session import transaction
from core.db.tables import BaseModel, Job, Share
from core.queue import claims, shares
from core.services import quotas, runs, steering
from core.states import Phase, Status
from core.wiring import Parts
from tests.conftest import Account, Accounts
from tests.rows import file_row, job_row


class Queue:
    """Jobs put into the train queue as prepare does it, and taken from it as workers do."""

    def __init__(self, parts: Parts, accounts: Accounts, base: BaseModel) -> None:
        self.parts = parts
        self._accounts = accounts
        self._base = base
        self._made: dict[str, Account] = {}
        self._count = 0

    def account(self, project: str) -> Account:
        if project not in self._made:
            self._made[project] = self._accounts.make(project)
            with transaction(self.parts.sessions) as session:
                session.add(file_row(self._made[project], f"file-{project}"))
        return self._made[project]

    def submit(self, project: str, count: int = 1, *, work: float = 1, priority: int = 0) -> list[str]:
        account = self.account(project)
        made = []
        for _ in range(count):
            self._count += 1
            with transaction(self.parts.sessions) as session:
                file = file_row(account, f"file-{project}")
                job = job_row(account, self._base, file, f"ftjob-{project}-{self._count}", work=work, priority=priority)
                shares.enter(session, job, Status.QUEUED)
                session.add(job)
            made.append(job.id)
        return made

    def take(self, count: int = 1, **limits: int) -> list[str]:
        settings = self.parts.settings.model_copy(update=limits)
        taken = []
        for _ in range(count):
            with transaction(self.parts.sessions) as session:
                job = claims.next_job(session, Status.QUEUED, "w1", settings)
                if job is None:
                    break
                runs.begin_attempt(session, job, "w1")
                taken.append(job.id)
        return taken

    def places(self) -> list[str]:
        with transaction(self.parts.sessions) as session:
            return [one.id for one in shares.order(session, Status.QUEUED, 1000)]


@pytest.fixture
def queue(parts: Parts, accounts: Accounts, base_model: BaseModel) -> Queue:
    return Queue(parts, accounts, base_model)


def projects(ids: list[str]) -> Counter[str]:
    return Counter(id.split("-")[1] for id in ids)


def test_a_project_with_many_jobs_does_not_keep_another_one_waiting(queue: Queue) -> None:
    queue.submit("many", 20)
    few = queue.submit("few", 2)
    taken = queue.take(5)
    assert set(few) <= set(taken)


def test_projects_that_wait_get_the_same_however_many_jobs_they_have(queue: Queue) -> None:
    for project, count in (("a", 40), ("b", 20), ("c", 10)):
        queue.submit(project, count)
    assert projects(queue.take(30)) == {"a": 10, "b": 10, "c": 10}


def test_one_long_job_counts_as_much_as_many_short_ones(queue: Queue) -> None:
    queue.submit("long", 4, work=10)
    queue.submit("short", 40, work=1)
    assert projects(queue.take(22)) == {"long": 2, "short": 20}


def test_priority_comes_before_shares(queue: Queue) -> None:
    queue.submit("other", 3)
    urgent = queue.submit("mine", 3, priority=1)
    assert queue.take(3) == urgent


def test_of_one_project_the_oldest_is_next(queue: Queue) -> None:
    ids = queue.submit("a", 5)
    assert queue.take(5) == ids


def test_nobody_saves_up_turns(queue: Queue) -> None:
    queue.submit("early", 1)
    queue.submit("busy", 40)
    queue.take(21)
    # "early" had nothing waiting while "busy" took twenty turns: from now on they take turns all the same.
    queue.submit("early", 20)
    assert projects(queue.take(10)) == {"early": 5, "busy": 5}


def test_nobody_pays_for_what_no_one_else_wanted(queue: Queue) -> None:
    queue.submit("alone", 30)
    queue.take(30)
    queue.submit("alone", 10)
    queue.submit("new", 10)
    assert projects(queue.take(10)) == {"alone": 5, "new": 5}


@pytest.mark.parametrize("first", ["alone", "new"])
def test_a_long_job_that_ran_alone_is_not_paid_for_whoever_comes_first(queue: Queue, first: str) -> None:
    queue.submit("alone", 1, work=100)
    queue.take(1)
    for project in (first, "new" if first == "alone" else "alone"):
        queue.submit(project, 10)
    assert projects(queue.take(10)) == {"alone": 5, "new": 5}


def test_a_job_that_comes_back_is_not_charged_again(queue: Queue) -> None:
    (only,) = queue.submit("a", 1, work=3)
    for _ in range(3):
        assert queue.take(1) == [only]
        with transaction(queue.parts.sessions) as session:
            runs.handed_back(session, session.get_one(Job, only), "it was drained")
    with transaction(queue.parts.sessions) as session:
        assert session.scalars(select(Share.turn)).all() == [3.0]


def test_places_are_the_order_in_which_jobs_are_taken(queue: Queue) -> None:
    queue.submit("a", 6, work=2)
    queue.submit("b", 3)
    queue.submit("b", 2, priority=-1)
    queue.submit("c", 2, priority=1)
    queue.submit("c", 4, work=0.5)
    queue.take(4)
    promised = queue.places()
    assert len(promised) == 13
    assert queue.take(13) == promised


def test_a_place_moves_back_only_when_somebody_comes_before_it(queue: Queue) -> None:
    """Jobs that start, end, are cancelled or come behind move no place back."""
    queue.submit("a", 8)
    queue.submit("b", 8)
    places = queue.places()
    mine = places[-1]
    seen = [places.index(mine)]

    def look() -> None:
        places = queue.places()
        seen.append(places.index(mine))

    for turn in range(10):
        (running,) = queue.take(1)
        look()
        with transaction(queue.parts.sessions) as session:
            runs.failed(session, session.get_one(Job, running), "x", "y")
        look()
        if turn == 3:
            other = next(id for id in queue.places() if id != mine)
            with transaction(queue.parts.sessions) as session:
                steering.cancel(session, queue.account(other.split("-")[1]).tenant, other)
            look()
        if turn == 5:
            queue.submit("a", 1)
            look()
    assert seen == sorted(seen, reverse=True)


def test_far_behind_no_place_is_told(queue: Queue) -> None:
    ids = queue.submit("a", 30) + queue.submit("b", 3)
    with transaction(queue.parts.sessions) as session:
        known = [one.id for one in shares.order(session, Status.QUEUED, 20)]
    assert set(ids[-3:]) <= set(known)
    assert len(known) < len(ids)
    assert queue.places()[: len(known)] == known


def test_claims_of_many_workers_at_once_are_fair_and_keep_the_limit(queue: Queue) -> None:
    for project in ("a", "b", "c", "d"):
        queue.submit(project, 12)
    taken: list[str] = []

    def work() -> None:
        while found := queue.take(1, max_running_jobs=6):
            taken.extend(found)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert projects(taken) == {"a": 6, "b": 6, "c": 6, "d": 6}
    with transaction(queue.parts.sessions) as session:
        for project in ("a", "b", "c", "d"):
            tenant = queue.account(project).tenant
            limits = queue.parts.settings.model_copy(update={"max_running_jobs": 6})
            assert not quotas.may_run(session, tenant.project_id, limits)
            waiting = tenancy.owned(Job, tenant).where(Job.phase == Phase.WAITING_FOR_QUOTA)
            assert session.scalars(waiting).first() is not None


def test_a_full_project_stands_in_nobodys_way(queue: Queue) -> None:
    queue.submit("full", 5, priority=1)
    other = queue.submit("other", 1, priority=-1)
    assert projects(queue.take(3, max_running_jobs=2)) == {"full": 2, "other": 1}
    assert queue.take(1, max_running_jobs=2) == []
    assert other


def test_a_claim_looks_at_the_index_and_not_at_the_jobs(queue: Queue) -> None:
    (job,) = queue.submit("a", 1)
    others = [column.name for column in Job.__table__.columns if column.name not in ("id", "priority")]
    names = ", ".join(others)
    with queue.parts.sessions() as session:
        # Enough for the index to pay, and known to the planner: what is in a table of a few rows, nobody asks an index.
        copies = f"INSERT INTO jobs (id, priority, {names}) SELECT id || n, n % 3 - 1, {names} FROM jobs"
        session.execute(text(f"{copies}, generate_series(1, 2000) AS n WHERE id = :id"), {"id": job})
        session.execute(text("ANALYZE jobs"))
        plan = (
            session.execute(text("EXPLAIN " + shares._IN_TURN.text), {"status": "queued", "below": 2}).scalars().all()
        )
        session.rollback()
    assert sum("ix_jobs_claim" in line for line in plan) == 3, "\n".join(plan)


def test_a_pause_is_no_place(queue: Queue) -> None:
    first, second = queue.submit("a", 2)
    tenant = queue.account("a").tenant
    with transaction(queue.parts.sessions) as session:
        steering.pause(session, tenant, first)
    assert queue.places() == [second]
    assert queue.take(2) == [second]
    with transaction(queue.parts.sessions) as session:
        steering.resume(session, tenant, first)
        session.get_one(Job, first).available_at = clock.now()
    assert queue.take(1) == [first]
