"""Who is before whom: places of waiting jobs, and a view of the whole queue for one project."""

import heapq
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core import clock
from core.config import Settings
from core.db import tenancy
from core.db.tables import Job, Worker
from core.db.tenancy import Tenant
from core.queue import shares
from core.schemas import workers as worker_shape
from core.schemas.queue import Place, Queue, QueuedJob, QueueWorker, Running, RunningJob, Waiting
from core.services import workers
from core.states import TERMINAL, Phase, Status

PRIORITIES = {-1: "low", 0: "normal", 1: "high"}
_COUNTED = 1000
"""Places further behind are not told: counting them would make a look at one job cost more the longer the queue is."""
_LISTED = 200
_ALIVE = timedelta(minutes=1)
_LEFT = Job.expected_seconds * (1 - func.coalesce(Job.progress["percent"].as_float(), 0) / 100)
_WAITING = (Status.VALIDATING, Status.QUEUED)


def waits(job: Job) -> bool:
    return job.status in _WAITING and job.lease_until is None and job.phase != Phase.PAUSED


def places(session: Session, jobs: list[Job]) -> dict[str, Place]:
    """The places of those among these jobs that wait for a worker."""
    waiting = [job for job in jobs if waits(job)]
    found: dict[str, Place] = {}
    for status in {job.status for job in waiting}:
        order = [one.id for one in shares.order(session, status, _COUNTED)]
        position = {id: n for n, id in enumerate(order, 1)}
        starts: dict[str, datetime] = {}
        if status == Status.QUEUED:
            # Who waits behind all of them makes none of them start later.
            line = order[: max((position.get(job.id, 0) for job in waiting), default=0)]
            starts = dict(zip(line, _in_line(_ready(session), _expected(session, line)), strict=False))
        for job in waiting:
            if job.status == status:
                start = clock.unix_or_none(starts.get(job.id))
                found[job.id] = Place(position=position.get(job.id), estimated_start=start)
    return found


def _in_line(ready: list[datetime], expected: list[float | None]) -> list[datetime]:
    """When jobs start that take so many seconds each: the next one takes the slot that is free first.

    ``ready`` is a heap, and used up. A slot whose job takes nobody knows how long is lost to those behind it; the
    answer ends where no slot is left.
    """
    starts: list[datetime] = []
    for seconds in expected:
        if not ready:
            break
        starts.append(heapq.heappop(ready))
        if seconds is not None:
            heapq.heappush(ready, starts[-1] + timedelta(seconds=seconds))
    return starts


def _expected(session: Session, ids: list[str]) -> list[float | None]:
    """How many seconds each of the jobs takes, of what it has not done yet; None where there is no estimate."""
    seconds = dict(session.execute(select(Job.id, _LEFT).where(Job.id.in_(ids))).all())
    return [seconds.get(id) for id in ids]


def _ready(session: Session) -> list[datetime]:
    """When each slot is free for the next job, as a heap: now, or when its job ends, where that can be told."""
    now = session.scalars(select(clock.now())).one()
    slots = session.scalar(
        select(func.coalesce(func.sum(Worker.slots), 0)).where(
            Worker.kind == "train", Worker.draining.is_(False), Worker.last_seen_at > clock.now() - _ALIVE
        )
    )
    running = session.execute(
        select(Job.estimated_finish, _LEFT).where(Job.status == Status.RUNNING).limit(_COUNTED)
    ).all()
    free = max(0, int(slots or 0) - len(running))
    ends = [end or _later(now, left) for end, left in running]
    return sorted([now] * free + [max(end, now) for end in ends if end is not None])


def _later(now: datetime, seconds: float | None) -> datetime | None:
    return None if seconds is None else now + timedelta(seconds=seconds)


def wait(session: Session, tenant: Tenant, priority: int) -> tuple[int, float | None]:
    """Jobs that a new one of this priority would wait for, and for how many seconds; None where it can't be told."""
    before = [id for status in (Status.QUEUED, Status.VALIDATING) for id in _before(session, tenant, status, priority)]
    starts = _in_line(_ready(session), [*_expected(session, before), None])
    if len(starts) <= len(before):
        return len(before), None
    now = session.scalars(select(clock.now())).one()
    return len(before), round(max(0.0, (starts[-1] - now).total_seconds()), 1)


def _before(session: Session, tenant: Tenant, status: Status, priority: int) -> list[str]:
    order = shares.order(session, status, _COUNTED)
    mine = [one.turn for one in order if one.project_id == tenant.project_id and one.priority >= priority]
    turn = max([shares.start(session, tenant.project_id, status), *mine])
    return [one.id for one in order if one.priority > priority or (one.priority == priority and one.turn <= turn)]


def view(session: Session, tenant: Tenant, settings: Settings) -> Queue:
    mine = tenancy.owned(Job, tenant).where(Job.status.not_in(TERMINAL))
    own = list(session.scalars(mine.order_by(Job.priority.desc(), Job.created_at, Job.id).limit(_LISTED)))
    place = places(session, own)
    waiting = [
        QueuedJob(
            **place[job.id].model_dump(),
            id=job.id,
            status=job.status,
            phase=job.phase,
            priority=PRIORITIES[job.priority],
            created_at=clock.unix(job.created_at),
        )
        for job in own
        if job.id in place
    ]
    running = [
        RunningJob(
            id=job.id,
            status=job.status,
            phase=job.phase,
            estimated_finish=clock.unix_or_none(job.estimated_finish),
        )
        for job in own
        if job.lease_until is not None
    ]
    others = select(func.count()).select_from(Job).where(Job.project_id != tenant.project_id)
    theirs = others.where(Job.status.in_(_WAITING), Job.lease_until.is_(None), Job.phase != Phase.PAUSED)
    return Queue(
        waiting=Waiting(yours=waiting, others=session.scalar(theirs) or 0),
        running=Running(yours=running, others=session.scalar(others.where(Job.lease_until.is_not(None))) or 0),
        workers=_workers(session, settings),
    )


def _workers(session: Session, settings: Settings) -> list[QueueWorker]:
    """What they are and whether they are free; which machines they run on is the operator's."""
    since = workers.online_since(session, settings)
    busy = dict(
        session.execute(
            select(Job.worker_id, func.count()).where(Job.lease_until.is_not(None)).group_by(Job.worker_id)
        ).all()
    )
    return [
        QueueWorker(
            busy=busy.get(row.id, 0),
            **worker_shape.of(row, since).model_dump(
                include={"kind", "device", "slots", "status", "warm", "base_models"}
            ),
        )
        for row in workers.list_all(session)
    ]
