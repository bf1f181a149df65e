"""The queue: claims on database time, fences under the row's lock, what happens to what was lost."""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import select, text, update

from core import clock
from core.db.session import transaction
from core.db.tables import BaseModel, Event, Job, Metric
from core.errors import LostAuthority
from core.queue import claims
from core.queue.claims import Claim
from core.queue.fence import fenced
from core.services import moves, progress, runs, steering, sweeps, workers
from core.states import Phase, Status, Wish
from core.wiring import Parts
from tests.conftest import Account
from tests.rows import file_row, job_row

MakeJob = Callable[..., str]


@pytest.fixture
def make_job(parts: Parts, account: Account, base_model: BaseModel) -> MakeJob:
    def make(name: str, **fields: object) -> str:
        with transaction(parts.sessions) as session:
            file = file_row(account, f"file-{name}")
            session.add(file)
            session.flush()
            job = job_row(account, base_model, file, f"ftjob-{name}", **fields)
            session.add(job)
        return job.id

    return make


def claim(parts: Parts, status: Status = Status.QUEUED, worker: str = "w1") -> Claim | None:
    with transaction(parts.sessions) as session:
        job = claims.next_job(session, status, worker, parts.settings)
        if job is None:
            return None
        if status == Status.QUEUED:
            runs.begin_attempt(session, job, worker)
        return Claim(Job, job.id, job.generation)


def row(parts: Parts, id: str) -> Job:
    with transaction(parts.sessions) as session:
        return session.get_one(Job, id)


def expire(parts: Parts, id: str) -> None:
    with transaction(parts.sessions) as session:
        session.execute(update(Job).where(Job.id == id).values(lease_until=clock.now() - timedelta(seconds=1)))


def sweep(parts: Parts) -> int:
    with transaction(parts.sessions) as session:
        return sweeps.expired_jobs(session, parts.settings)


def test_priority_comes_before_age(parts: Parts, make_job: MakeJob) -> None:
    make_job("old")
    make_job("high", priority=1)
    make_job("low", priority=-1)
    taken = [claim(parts) for _ in range(4)]
    assert [one and one.id for one in taken] == ["ftjob-high", "ftjob-old", "ftjob-low", None]


def test_concurrent_claims_never_take_the_same_job(parts: Parts, make_job: MakeJob) -> None:
    for n in range(12):
        make_job(str(n))
    taken: list[str] = []

    def work(worker: str) -> None:
        while (one := claim(parts, worker=worker)) is not None:
            taken.append(one.id)

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(f"ftjob-{n}" for n in range(12))


def test_a_claim_adds_one_to_the_generation_and_a_lease(parts: Parts, make_job: MakeJob) -> None:
    make_job("a")
    first = claim(parts)
    assert first is not None
    job = row(parts, first.id)
    assert (job.generation, job.status, job.worker_id) == (1, "running", "w1")
    with transaction(parts.sessions) as session:
        left = session.scalar(select(job.lease_until - clock.now()))
    assert timedelta(seconds=50) < left <= timedelta(seconds=60)


def test_heartbeats_move_the_lease_and_tell_of_cancelling(parts: Parts, make_job: MakeJob, account: Account) -> None:
    make_job("a")
    mine = claim(parts)
    assert mine is not None
    before = row(parts, mine.id).lease_until
    with transaction(parts.sessions) as session:
        assert claims.heartbeat(session, mine, parts.settings) is None
    after = row(parts, mine.id).lease_until
    assert before is not None
    assert after is not None
    assert after > before
    with transaction(parts.sessions) as session:
        steering.cancel(session, account.tenant, mine.id)
    with transaction(parts.sessions) as session:
        assert claims.heartbeat(session, mine, parts.settings) == Wish.CANCEL
    assert row(parts, mine.id).phase == Phase.CANCELLING


def test_a_late_worker_can_write_nothing(parts: Parts, make_job: MakeJob) -> None:
    make_job("a")
    zombie = claim(parts)
    assert zombie is not None
    expire(parts, zombie.id)
    assert sweep(parts) == 1
    for current in range(2):
        # First while nobody owns the job, then while a successor does.
        with pytest.raises(LostAuthority), transaction(parts.sessions) as session:
            claims.heartbeat(session, zombie, parts.settings)
        with pytest.raises(LostAuthority), fenced(parts.sessions, Job, zombie.id, zombie.generation) as (session, job):
            runs.failed(session, job, "x", "y")
        if current == 0:
            with transaction(parts.sessions) as session:
                session.get_one(Job, zombie.id).available_at = clock.now()
            successor = claim(parts, worker="w2")
            assert successor is not None
            assert successor.generation == zombie.generation + 1
    assert row(parts, zombie.id).status == Status.RUNNING


def test_a_claim_waits_for_a_write_in_progress_and_sees_it(parts: Parts, make_job: MakeJob) -> None:
    """READ COMMITTED alone would let a late worker's open transaction commit after its successor's claim."""
    make_job("a")
    first = claim(parts)
    assert first is not None
    claimed = threading.Event()

    def take_over() -> None:
        with transaction(parts.sessions) as session:
            session.execute(text("SET LOCAL lock_timeout = '20s'"))
            job = session.scalars(select(Job).where(Job.id == first.id).with_for_update(key_share=True)).one()
            job.generation += 1
            session.flush()
            runs_seen = session.scalars(select(Metric.step)).all()
            assert list(runs_seen) == [11]
        claimed.set()

    thread = threading.Thread(target=take_over)
    with fenced(parts.sessions, Job, first.id, first.generation) as (session, job):
        thread.start()
        assert not claimed.wait(0.5)
        progress.steps(session, job, [step(11)], 20)
    thread.join(10)
    assert claimed.is_set()
    with pytest.raises(LostAuthority), fenced(parts.sessions, Job, first.id, first.generation) as (session, job):
        progress.steps(session, job, [step(12)], 20)


def step(n: int, **fields: float) -> dict[str, float]:
    return {
        "step": n,
        "epoch": n / 10,
        "train_loss": 1.0,
        "completion_loss": 1.0,
        "train_accuracy": 0.5,
        "learning_rate": 1e-3,
        "grad_norm": 1.0,
        "tokens": 10,
        "trained_tokens": 5,
        "seconds": 0.5,
        "tokens_per_second": 20.0,
        **fields,
    }


def test_a_lost_job_waits_and_is_tried_again_until_it_is_enough(parts: Parts, make_job: MakeJob) -> None:
    id = make_job("a")
    pauses = []
    for n in range(1, parts.settings.max_attempts + 1):
        mine = claim(parts)
        assert mine is not None, n
        expire(parts, id)
        sweep(parts)
        job = row(parts, id)
        if n < parts.settings.max_attempts:
            assert (job.status, job.phase, job.lease_until) == ("queued", "backing_off", None)
            assert claim(parts) is None
            with transaction(parts.sessions) as session:
                pauses.append(session.scalar(select(job.available_at - clock.now())).total_seconds())
                session.get_one(Job, id).available_at = clock.now()
    assert (job.status, job.error["code"]) == ("failed", "worker_lost")  # type: ignore[index]  # set by then
    assert 1.5 < pauses[1] / pauses[0] < 2.5


def test_a_checkpoint_starts_the_count_of_losses_anew(parts: Parts, make_job: MakeJob) -> None:
    id = make_job("a")
    for n in range(parts.settings.max_attempts + 2):
        mine = claim(parts)
        assert mine is not None
        with fenced(parts.sessions, Job, id, mine.generation) as (session, job):
            line = {"step": n + 1, "epoch": 0.1, "kind": "recovery", "metrics": {}}
            progress.checkpointed(session, job, line, "prefix/", {"files": []}, "0")
        expire(parts, id)
        sweep(parts)
        with transaction(parts.sessions) as session:
            session.get_one(Job, id).available_at = clock.now()
    assert row(parts, id).status == "queued"


def test_a_resumed_attempt_shows_each_step_once(parts: Parts, make_job: MakeJob) -> None:
    id = make_job("a")
    first = claim(parts)
    assert first is not None
    with fenced(parts.sessions, Job, id, first.generation) as (session, job):
        runs.resume_at(session, job, 0)
        progress.steps(session, job, [step(n) for n in range(1, 6)], 10)
    expire(parts, id)
    sweep(parts)
    with transaction(parts.sessions) as session:
        session.get_one(Job, id).available_at = clock.now()
    second = claim(parts)
    assert second is not None
    with fenced(parts.sessions, Job, id, second.generation) as (session, job):
        runs.resume_at(session, job, 3)
        assert list(session.scalars(select(Metric.step).order_by(Metric.step))) == [1, 2, 3]
        progress.steps(session, job, [step(n) for n in range(4, 11)], 10)
    with transaction(parts.sessions) as session:
        assert list(session.scalars(select(Metric.step).order_by(Metric.step))) == list(range(1, 11))
        told = session.scalars(select(Event).where(Event.type == "metrics").order_by(Event.number)).all()
        assert [event.data["step"] for event in told] == list(range(1, 11))
        numbers = list(session.scalars(select(Event.number).order_by(Event.number)))
        assert numbers == list(range(1, len(numbers) + 1))


def test_cancelling_wins_over_a_lost_worker(parts: Parts, make_job: MakeJob, account: Account) -> None:
    id = make_job("a")
    claim(parts)
    with transaction(parts.sessions) as session:
        steering.cancel(session, account.tenant, id)
    expire(parts, id)
    sweep(parts)
    assert row(parts, id).status == "cancelled"


def test_handing_back_counts_no_loss(parts: Parts, make_job: MakeJob) -> None:
    id = make_job("a")
    mine = claim(parts)
    assert mine is not None
    with fenced(parts.sessions, Job, id, mine.generation) as (session, job):
        runs.handed_back(session, job, "it was drained")
    job = row(parts, id)
    assert (job.status, job.losses, job.lease_until) == ("queued", 0, None)
    assert claim(parts) is not None


def test_a_restarted_worker_takes_back_what_its_dead_predecessor_held(parts: Parts, make_job: MakeJob) -> None:
    from core.db.tables import Worker

    id = make_job("a")
    with transaction(parts.sessions) as session:
        for worker in ("w1", "w2", "other"):
            name = "other" if worker == "other" else "here"
            session.add(Worker(id=worker, name=name, kind="train", slots=1, device="cpu", memory_bytes=1, version="0"))
    claim(parts, worker="w1")
    with transaction(parts.sessions) as session:
        assert workers.expire_leases_of_predecessors(session, "other", "train", "other") == 0
        assert workers.expire_leases_of_predecessors(session, "here", "train", "w2") == 1
    assert sweep(parts) == 1
    assert row(parts, id).status == "queued"


def test_impossible_moves_are_refused() -> None:
    job = Job(status=Status.SUCCEEDED, phase=Phase.COMPLETED)
    with pytest.raises(ValueError, match="succeeded"):
        moves.move(job, Status.RUNNING, Phase.STARTING)
    job = Job(status=Status.QUEUED, phase=Phase.QUEUED)
    with pytest.raises(ValueError, match="phase"):
        moves.move(job, Status.RUNNING, Phase.QUEUED)
