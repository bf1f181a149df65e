"""A model of the queue beside the real one: rules that workers, users, time and the reconciler follow, in any order.

The SQL is the service's own, on a real PostgreSQL. Time moves by moving every row's times back.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from core import clock
from core.config import Settings
from core.db.session import Sessions, transaction
from core.db.tables import Attempt, BaseModel, Checkpoint, Event, File, Job, Metric, Organization, Project, Table
from core.db.tables import TunedModel as Model
from core.db.tenancy import Tenant
from core.errors import Conflict, LostAuthority
from core.queue import claims, shares
from core.queue.claims import Claim
from core.queue.fence import fenced
from core.services import progress, runs, steering, sweeps
from core.states import TERMINAL, Phase, Status, Wish

PROJECTS = ("proj_a", "proj_b")
LIMIT = 2
LEASE = 60.0
TIMES = st.sampled_from([1.0, 20.0, 61.0, 400.0])
AT = st.integers(0, 1000)


@dataclass
class Known:
    """What must be true of a job, as far as the rules have come."""

    id: str
    project_id: str
    status: Status = Status.VALIDATING
    owner: Claim | None = None
    stale: list[Claim] = field(default_factory=list)
    lease: float = 0.0
    """When its owner's lease ends."""
    rests_until: float = 0.0
    steps: int = 0
    saved: int = 0
    losses: int = 0
    paused: bool = False
    wish: Wish | None = None
    cancel_asked: bool = False


class Queue(RuleBasedStateMachine):
    """Every rule does one thing to both, and expects the same of both."""

    sessions: ClassVar[Sessions]
    settings: ClassVar[Settings]

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.jobs: list[Known] = []
        self.open: tuple[Known, AbstractContextManager[Any], Session, Job] | None = None
        fresh(self.sessions)

    def teardown(self) -> None:
        if self.open is not None:
            self._close()

    # What happens.

    @initialize(project=st.sampled_from(PROJECTS))
    def begin(self, project: str) -> None:
        self.submit(project, 0, Status.QUEUED)
        self.claim(Status.QUEUED)

    @precondition(lambda self: len(self.jobs) < 5)
    @rule(
        project=st.sampled_from(PROJECTS),
        priority=st.sampled_from([-1, 0, 1]),
        status=st.sampled_from([Status.QUEUED, Status.VALIDATING]),
    )
    def submit(self, project: str, priority: int, status: Status) -> None:
        known = Known(f"ftjob-{len(self.jobs)}", project, status)
        with transaction(self.sessions) as session:
            job = Job(
                id=known.id,
                project_id=project,
                model="m",
                base_model_id="base_m",
                training_file=f"file-{project}",
                seed=0,
                method={},
                options={},
                priority=priority,
                status=status,
                phase=Phase.CREATED if status == Status.VALIDATING else Phase.QUEUED,
                event_count=0,
                last_event_step=0,
                losses=0,
            )
            shares.enter(session, job, status)
            session.add(job)
        self.jobs.append(known)

    @rule(status=st.sampled_from([Status.VALIDATING, Status.QUEUED]))
    def claim(self, status: Status) -> None:
        with transaction(self.sessions) as session:
            job = claims.next_job(session, status, "w", self.settings)
            if job is not None:
                if status == Status.QUEUED:
                    runs.begin_attempt(session, job, "w")
                    step = session.scalar(select(func.max(Checkpoint.step)).where(Checkpoint.job_id == job.id)) or 0
                    runs.resume_at(session, job, step)
                else:
                    runs.begin_prepare(job)
        free = [known for known in self.jobs if self._claimable(known, status)]
        assert (job is None) == (free == [])
        if job is None:
            return
        known = next(known for known in free if known.id == job.id)
        claim = Claim(Job, job.id, job.generation)
        assert all(claim.generation > old.generation for old in known.stale)
        known.owner, known.lease = claim, self.now + LEASE
        if status == Status.QUEUED:
            known.status, known.steps = Status.RUNNING, known.saved

    def _claimable(self, known: Known, status: Status) -> bool:
        running = sum(one.status == Status.RUNNING and one.project_id == known.project_id for one in self.jobs)
        full = status == Status.QUEUED and running >= LIMIT
        held = self.open is not None and self.open[0] is known
        rests = known.rests_until > self.now
        return known.status == status and known.owner is None and not (known.paused or rests or full or held)

    @precondition(lambda self: self._owned())
    @rule(at=AT)
    def heartbeat(self, at: int) -> None:
        known = self._pick(self._owned(), at)
        with transaction(self.sessions) as session:
            assert claims.heartbeat(session, _claim(known), self.settings) == known.wish
        known.lease = self.now + LEASE

    def train(self, known: Known, count: int) -> None:
        self._write(known, lambda session, job: _steps(session, job, known.steps, count))
        known.steps += count

    def checkpoint(self, known: Known) -> None:
        self._write(known, lambda session, job: _checkpoint(session, job, known.steps))
        known.saved, known.losses = known.steps, 0

    def prepared(self, known: Known) -> None:
        if known.wish == Wish.CANCEL:
            self._write(known, runs.cancelled)
            self._ended(known, Status.CANCELLED)
            return
        self._write(
            known,
            lambda session, job: runs.prepared(
                session, job, resolved={}, hyperparameters={}, data={}, prepared={}, notes=[]
            ),
        )
        known.status, known.losses = Status.QUEUED, 0
        self._given_back(known)

    def finish(self, known: Known) -> None:
        """The end of a run as ``worker/runner.py`` writes it: a wish to cancel wins."""

        def end(session: Session, job: Job) -> None:
            if job.wish == Wish.CANCEL:
                runs.cancelled(session, job)
            else:
                runs.succeeded(session, job, prefix="p", manifest={}, results=[], line={"trained_tokens": 1})

        self._write(known, end)
        self._ended(known, Status.CANCELLED if known.cancel_asked else Status.SUCCEEDED)

    def fail(self, known: Known) -> None:
        self._write(known, lambda session, job: runs.failed(session, job, "bad", "It was bad."))
        self._ended(known, Status.FAILED)

    def hand_back(self, known: Known) -> None:
        self._write(known, lambda session, job: runs.handed_back(session, job, "drained"))
        if known.status == Status.RUNNING:
            known.status = Status.QUEUED
        self._given_back(known)

    def lose(self, known: Known) -> None:
        self._write(known, lambda session, job: runs.lost(session, job, self.settings, "killed"))
        self._lost(known)

    @precondition(lambda self: self._owned())
    @rule(at=AT, count=st.integers(1, 3), saves=st.booleans())
    def work(self, at: int, count: int, saves: bool) -> None:
        """A run goes on; rows that are being prepared are ready."""
        known = self._pick(self._owned(), at)
        if known.status == Status.VALIDATING:
            self.prepared(known)
        elif saves and known.steps > known.saved:
            self.checkpoint(known)
        else:
            self.train(known, count)

    @precondition(lambda self: self._owned())
    @rule(at=AT, how=st.sampled_from(["hand_back", "lose", "finish", "hand_back", "fail"]))
    def let_go(self, at: int, how: str) -> None:
        known = self._pick(self._owned(), at)
        if how == "finish" and known.status != Status.RUNNING:
            how = "hand_back"
        {"finish": self.finish, "fail": self.fail, "hand_back": self.hand_back, "lose": self.lose}[how](known)

    # Who comes too late.

    @precondition(lambda self: self._late())
    @rule(
        at=AT,
        which=AT,
        deed=st.sampled_from(["heartbeat", "heartbeat", "steps", "checkpoint", "succeed", "fail", "lose", "back"]),
    )
    def zombie(self, at: int, which: int, deed: str) -> None:
        known = self._pick(self._late(), at)
        late = known.stale[which % len(known.stale)]
        deeds: dict[str, Callable[[Session, Job], object]] = {
            "steps": lambda session, job: _steps(session, job, known.steps, 1),
            "checkpoint": lambda session, job: _checkpoint(session, job, known.steps + 1),
            "succeed": lambda session, job: runs.succeeded(
                session, job, prefix="z", manifest={}, results=[], line={"trained_tokens": 1}
            ),
            "fail": lambda session, job: runs.failed(session, job, "z", "z"),
            "lose": lambda session, job: runs.lost(session, job, self.settings, "z"),
            "back": lambda session, job: runs.handed_back(session, job, "z"),
        }
        with pytest.raises(LostAuthority):
            self._late_write(late, deeds.get(deed))

    def _late_write(self, late: Claim, deed: Callable[[Session, Job], object] | None) -> None:
        if deed is None:
            with transaction(self.sessions) as session:
                claims.heartbeat(session, late, self.settings)
            return
        with fenced(self.sessions, Job, late.id, late.generation) as (session, job):
            deed(session, job)

    @precondition(lambda self: self.open is None and self._owned(Status.RUNNING))
    @rule(at=AT)
    def begin_to_write(self, at: int) -> None:
        """A worker's transaction stays open: it was stopped in the middle of a write."""
        known = self._pick(self._owned(Status.RUNNING), at)
        writing = fenced(self.sessions, Job, known.id, _claim(known).generation)
        session, job = writing.__enter__()
        # Nothing is written yet: the fence alone must keep others away from the row.
        self.open = known, writing, session, job

    @precondition(lambda self: self.open is not None)
    @rule()
    def write_to_the_end(self) -> None:
        assert self.open is not None
        known, _, session, job = self.open
        _steps(session, job, known.steps, 1)
        self._close()
        known.steps += 1

    def _close(self) -> None:
        assert self.open is not None
        writing = self.open[1]
        self.open = None
        writing.__exit__(None, None, None)

    # What time and the reconciler do.

    @precondition(lambda self: self.open is None)
    @rule(seconds=TIMES)
    def time_passes(self, seconds: float) -> None:
        with transaction(self.sessions) as session:
            session.execute(
                text(
                    "UPDATE jobs SET lease_until = lease_until - make_interval(secs => :s),"
                    " available_at = available_at - make_interval(secs => :s)"
                ),
                {"s": seconds},
            )
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        with transaction(self.sessions) as session:
            taken = sweeps.expired_jobs(session, self.settings)
            sweeps.cancelled_jobs(session)
            runs.recovered(session)
        dead = [
            known
            for known in self.jobs
            if known.owner is not None
            and known.lease <= self.now
            and not (self.open is not None and self.open[0] is known)
        ]
        assert taken == len(dead)
        for known in dead:
            self._lost(known)
        for known in self._reachable():
            if known.wish == Wish.CANCEL and known.owner is None:
                self._ended(known, Status.CANCELLED)

    # What users ask for.

    @precondition(lambda self: self._reachable())
    @rule(
        at=AT,
        what=st.sampled_from(["pause", "resume", "cancel", "stop"]),
        when=st.sampled_from(list(steering.STOPS)),
    )
    def ask(self, at: int, what: str, when: str) -> None:
        known = self._pick(self._reachable(), at)
        if what == "stop":
            self.stop(known, when)
        else:
            {"pause": self.pause, "resume": self.resume, "cancel": self.cancel}[what](known)

    def cancel(self, known: Known) -> None:
        if not self._ask(known, lambda session: steering.cancel(session, _tenant(known), known.id)):
            return
        if known.status == Status.CANCELLED:
            return
        known.cancel_asked = True
        if known.owner is None:
            self._ended(known, Status.CANCELLED)
        else:
            known.wish = Wish.CANCEL

    def pause(self, known: Known) -> None:
        if not self._ask(known, lambda session: steering.pause(session, _tenant(known), known.id)):
            return
        if known.paused or known.wish == Wish.PAUSE:
            return
        if known.owner is None and known.status == Status.QUEUED:
            known.paused = True
        else:
            known.wish = Wish.PAUSE

    def resume(self, known: Known) -> None:
        if not self._ask(known, lambda session: steering.resume(session, _tenant(known), known.id)):
            return
        if known.wish == Wish.PAUSE:
            known.wish = None
        elif known.paused:
            known.paused, known.rests_until = False, 0.0

    def stop(self, known: Known, when: str) -> None:
        if not self._ask(known, lambda session: steering.stop(session, _tenant(known), known.id, when)):
            return
        if known.status != Status.RUNNING:
            when = "now"
            if known.paused:
                known.paused, known.rests_until = False, 0.0
        known.wish = steering.STOPS[when]

    # What holds whatever happened.

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        with transaction(self.sessions) as session:
            rows = {job.id: job for job in session.scalars(select(Job))}
            metrics = _grouped(session, select(Metric.job_id, Metric.step).order_by(Metric.step))
            numbers = _grouped(session, select(Event.job_id, Event.number).order_by(Event.number))
            made = _grouped(session, select(Model.job_id, Model.id))
            open_tries = _grouped(session, select(Attempt.job_id, Attempt.generation).where(Attempt.ended_at.is_(None)))
            leases = dict(
                session.execute(
                    select(Job.id, func.extract("epoch", Job.lease_until - clock.now())).where(
                        Job.lease_until.is_not(None)
                    )
                ).all()
            )
        assert set(rows) == {known.id for known in self.jobs}
        for known in self.jobs:
            job = rows[known.id]
            owned = known.owner is not None
            assert (job.status, job.lease_until is not None) == (known.status, owned), known
            assert job.wish == known.wish
            assert (job.phase == Phase.PAUSED) == known.paused
            if known.owner is not None:
                assert job.generation == known.owner.generation
                assert abs(float(leases[known.id]) - (known.lease - self.now)) < 20
            # Neither lost nor stuck: it has ended, has an owner, is paused, or waits where workers look.
            assert known.status in TERMINAL or owned or known.status in (Status.VALIDATING, Status.QUEUED)
            assert metrics.get(known.id, []) == list(range(1, known.steps + 1))
            assert numbers.get(known.id, []) == list(range(1, job.event_count + 1))
            assert len(made.get(known.id, [])) == (known.status == Status.SUCCEEDED)
            tries = open_tries.get(known.id, [])
            assert tries == ([job.generation] if known.status == Status.RUNNING else [])
            assert not (known.cancel_asked and known.status == Status.SUCCEEDED)
        for project in PROJECTS:
            running = [one for one in self.jobs if one.project_id == project and one.status == Status.RUNNING]
            assert len(running) <= LIMIT

    # How the rules go about it.

    def _owned(self, status: Status | None = None) -> list[Known]:
        """Jobs whose owner still counts and writes nothing at this moment."""
        return [
            known
            for known in self._reachable()
            if known.owner is not None and (status is None or known.status == status)
        ]

    def _late(self) -> list[Known]:
        """Those that have an owner again first of all: there a late worker could do harm unseen."""
        late = [known for known in self._reachable() if known.stale]
        return [known for known in late if known.owner is not None] or late

    def _reachable(self) -> list[Known]:
        """Not held by an open transaction: whoever asks of such a job waits."""
        return [known for known in self.jobs if self.open is None or self.open[0] is not known]

    def _pick(self, among: list[Known], at: int) -> Known:
        return among[at % len(among)]

    def _write(self, known: Known, deed: Callable[[Session, Job], object]) -> None:
        with fenced(self.sessions, Job, known.id, _claim(known).generation) as (session, job):
            deed(session, job)

    def _ask(self, known: Known, wish: Callable[[Session], object]) -> bool:
        """False when it was refused."""
        try:
            with transaction(self.sessions) as session:
                wish(session)
        except Conflict:
            return False
        return True

    def _let_go(self, known: Known) -> None:
        if known.owner is not None:
            known.stale.append(known.owner)
        known.owner = None

    def _ended(self, known: Known, status: Status) -> None:
        self._let_go(known)
        known.status, known.wish, known.paused = status, None, False

    def _given_back(self, known: Known) -> None:
        self._let_go(known)
        if known.wish == Wish.CANCEL:
            # The next sweep finds it; nobody claims it until then.
            known.rests_until = float("inf")
        if known.wish == Wish.PAUSE and known.status == Status.QUEUED:
            known.wish, known.paused = None, True

    def _lost(self, known: Known) -> None:
        if known.wish == Wish.CANCEL:
            self._ended(known, Status.CANCELLED)
            return
        known.losses += 1
        if known.losses >= self.settings.max_attempts:
            self._ended(known, Status.FAILED)
            return
        if known.status == Status.RUNNING:
            known.status = Status.QUEUED
        self._let_go(known)
        known.rests_until = self.now + self.settings.backoff_seconds * 2 ** (known.losses - 1)


def _claim(known: Known) -> Claim:
    assert known.owner is not None
    return known.owner


def _tenant(known: Known) -> Tenant:
    return Tenant(known.project_id, "org_m", "m")


def _steps(session: Session, job: Job, after: int, count: int) -> None:
    lines = [
        {
            "step": step,
            "epoch": 1.0,
            "train_loss": 1.0,
            "learning_rate": 0.1,
            "grad_norm": 1.0,
            "tokens": 1,
            "trained_tokens": 1,
            "seconds": 0.1,
            "tokens_per_second": 1.0,
        }
        for step in range(after + 1, after + count + 1)
    ]
    progress.steps(session, job, lines, 100)


def _checkpoint(session: Session, job: Job, step: int) -> None:
    progress.checkpointed(session, job, {"step": step, "epoch": 1.0, "kind": "recovery"}, "p/", {"files": []}, "0")


def _grouped(session: Session, query: Any) -> dict[str, list[Any]]:  # Any: a select of (job's id, value)
    found: dict[str, list[Any]] = {}
    for id, value in session.execute(query):
        found.setdefault(id, []).append(value)
    return found


def fresh(sessions: Sessions) -> None:
    """An empty service with two projects."""
    with transaction(sessions) as session:
        for table in reversed(Table.metadata.sorted_tables):
            session.execute(table.delete())
        session.add(Organization(id="org_m", name="m"))
        session.flush()
        session.add(BaseModel(id="base_m", name="m", source="path:/nowhere", aliases=[], status="ready"))
        session.add_all(Project(id=id, organization_id="org_m", name=id) for id in PROJECTS)
        session.flush()
        session.add_all(
            File(
                id=f"file-{id}",
                project_id=id,
                purpose="fine-tune",
                filename="f",
                bytes=1,
                sha256="0",
                storage_key="k",
                status="processed",
            )
            for id in PROJECTS
        )
