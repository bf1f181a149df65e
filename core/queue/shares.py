"""Fair shares: whose turn it is among the projects that have jobs waiting, in SQL.

Start-time fair queueing (Goyal, Vin and Cheng, 1996). A project's turn in a queue moves on by the work of each job that
is taken from it, and the project whose turn is least goes next. Who had nothing waiting begins where the others are:
nobody saves up turns, and nobody pays for time that no one else wanted. Work is the tokens that a job will read times
its model's parameters, so one long job counts as much as many short ones.
"""

from typing import Any, NamedTuple

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core.db.tables import Job, Share
from core.states import Phase, Status

PRIORITIES = (1, 0, -1)
_UNIT = 1e12
"""Work is counted in so many tokens times parameters."""
_LEAST = 1e-6

# Written out as in the condition of the index ix_jobs_claim, which is used for nothing less.
_WAITING = """status = :status AND status IN ('validating_files', 'queued') AND lease_until IS NULL
    AND phase <> 'paused'"""
_FREE = f"{_WAITING} AND available_at <= now() AND (wish IS NULL OR wish <> 'cancel')"


def _heads(first: str, which: str) -> str:
    """One row for each project of these priorities that has jobs waiting: an index probe each, however many jobs."""
    return f"""
        WITH RECURSIVE heads AS (
            {first}
            UNION ALL
            SELECT next.priority, next.project_id FROM heads, LATERAL (
                SELECT priority, project_id FROM jobs
                WHERE {which} AND priority = heads.priority AND project_id > heads.project_id
                ORDER BY project_id LIMIT 1
            ) AS next
        )
    """


_HIGHEST = f"""(
    SELECT priority, project_id FROM jobs WHERE {_FREE} AND priority < :below
    ORDER BY priority DESC, project_id LIMIT 1
)"""
_EACH_PRIORITY = f"""
    SELECT first.priority, first.project_id
    FROM unnest(CAST(:priorities AS integer[])) AS class (priority), LATERAL (
        SELECT priority, project_id FROM jobs WHERE {_WAITING} AND priority = class.priority
        ORDER BY project_id LIMIT 1
    ) AS first
"""

_IN_TURN = text(f"""
    {_heads(_HIGHEST, _FREE)}
    SELECT heads.priority, heads.project_id FROM heads
    LEFT JOIN shares ON shares.project_id = heads.project_id AND shares.queue = :status,
    LATERAL (
        SELECT created_at, id FROM jobs
        WHERE {_FREE} AND priority = heads.priority AND project_id = heads.project_id
        ORDER BY created_at, id LIMIT 1
    ) AS oldest
    ORDER BY coalesce(shares.turn, 0), oldest.created_at, oldest.id
""")

_ORDER = text(f"""
    {_heads(_EACH_PRIORITY, _WAITING)},
    each AS (SELECT greatest(8, :most / greatest(1, count(*))) AS rows FROM heads)
    SELECT job.id, heads.project_id, heads.priority, each.rows AS most,
        coalesce(shares.turn, 0) - job.work
        + sum(job.work) OVER (PARTITION BY heads.project_id ORDER BY heads.priority DESC, job.created_at, job.id)
            AS turn
    FROM heads CROSS JOIN each
    LEFT JOIN shares ON shares.project_id = heads.project_id AND shares.queue = :status,
    LATERAL (
        SELECT id, created_at, work FROM jobs
        WHERE {_WAITING} AND priority = heads.priority AND project_id = heads.project_id
        ORDER BY created_at, id LIMIT (SELECT rows FROM each)
    ) AS job
    ORDER BY heads.priority DESC, turn, job.created_at, job.id
""")


class Head(NamedTuple):
    """A project with jobs of this priority that could be taken."""

    priority: int
    project_id: str


class Waiting(NamedTuple):
    """A job in the order in which workers take them. ``turn``: its project's, once those before it were taken."""

    id: str
    project_id: str
    priority: int
    turn: float


def in_turn(session: Session, status: Status, below: int | None) -> list[Head]:
    """The projects of the highest priority below this one that has free jobs, whose turn is next first."""
    found = session.execute(_IN_TURN, {"status": status, "below": max(PRIORITIES) + 1 if below is None else below})
    return [Head(row.priority, row.project_id) for row in found]


def order(session: Session, status: str, most: int) -> list[Waiting]:
    """The first waiting jobs of all projects, about ``most``, as workers would take them if none came or went."""
    rows = session.execute(_ORDER, {"status": status, "priorities": list(PRIORITIES), "most": most}).all()
    groups: dict[tuple[int, str], list[Any]] = {}  # Any: rows of the query
    for row in rows:
        groups.setdefault((row.priority, row.project_id), []).append(row)
    # A project of which not all jobs were looked at may have one before any that comes after the last that was.
    seen = {priority: float("inf") for priority in PRIORITIES}
    for (priority, _), group in groups.items():
        if len(group) == group[0].most:
            seen[priority] = min(seen[priority], group[-1].turn)
    known = []
    for row in rows:
        if row.turn > seen[row.priority]:
            break
        known.append(Waiting(row.id, row.project_id, row.priority, row.turn))
    return known


def enter(session: Session, job: Job, status: Status) -> None:
    """The job is about to wait in this queue: a project that had none waiting begins at the others' turn."""
    session.execute(insert(Share).values(project_id=job.project_id, queue=status).on_conflict_do_nothing())
    waiting = select(Job.id).where(
        Job.status == status,
        Job.status.in_((Status.VALIDATING, Status.QUEUED)),
        Job.lease_until.is_(None),
        Job.phase != Phase.PAUSED,
        Job.priority.in_(PRIORITIES),
        Job.id != job.id,
    )
    if session.scalar(waiting.where(Job.project_id == job.project_id).limit(1)) is not None:
        return
    # While nobody waits, nobody is behind: all begin where the furthest has come, and so does whoever comes next.
    nobody = session.scalar(waiting.limit(1)) is None
    reached = Share.turn if nobody else Share.served
    floor = select(func.coalesce(func.max(reached), 0)).where(Share.queue == status).scalar_subquery()
    begun = {"turn": func.greatest(Share.turn, floor)} | ({"served": floor} if nobody else {})
    session.execute(_of(job.project_id, status).values(**begun))


def start(session: Session, project_id: str, status: Status) -> float:
    """At which turn a new job of this project would come, those that it has waiting left aside."""
    own, front = session.execute(
        select(
            func.max(Share.turn).filter(Share.project_id == project_id),
            func.max(Share.served),
        ).where(Share.queue == status)
    ).one()
    return max(own or 0.0, front or 0.0)


def take(session: Session, job: Job, status: Status) -> None:
    """The job was taken from this queue: its work goes on its project's account, once however often it is taken."""
    work, job.work = job.work, 0.0
    session.flush()
    # Last in its transaction: claims of the same project wait for each other from here to the commit.
    charged = insert(Share).values(project_id=job.project_id, queue=status, turn=work)
    session.execute(
        charged.on_conflict_do_update(
            index_elements=[Share.project_id, Share.queue],
            set_={"turn": Share.turn + work, "served": func.greatest(Share.served, Share.turn)},
        )
    )


def work_of(tokens: float, parameters: float) -> float:
    """The work of a job that reads so many tokens, of a model with so many parameters."""
    return max(_LEAST, tokens * parameters / _UNIT)


def _of(project_id: str, status: Status) -> Any:  # Any: an UPDATE of one row
    return update(Share).where(Share.project_id == project_id, Share.queue == status)
