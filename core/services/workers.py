"""The registry of workers: who is there, what they have, when they were last seen."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Double, cast, delete, func, select, update
from sqlalchemy.orm import Session

from core import clock
from core.config import Settings
from core.db.tables import Job, Worker, WorkItem

_FORGOTTEN_AFTER = timedelta(days=1)


def register(session: Session, worker: Worker) -> None:
    session.add(worker)


def seen(
    session: Session,
    worker_id: str,
    *,
    warm: bool,
    draining: bool,
    base_models: list[str],
    machine: dict[str, Any] | None = None,  # Any: JSON of core.cost.Machine
) -> None:
    session.execute(
        update(Worker)
        .where(Worker.id == worker_id)
        .values(last_seen_at=clock.now(), warm=warm, draining=draining, base_models=base_models, machine=machine)
    )


def gone(session: Session, worker_id: str) -> None:
    session.execute(delete(Worker).where(Worker.id == worker_id))


def online_since(session: Session, settings: Settings) -> datetime:
    """A worker seen after this moment is online: three heartbeats may be missed."""
    return session.scalar(select(clock.now() - timedelta(seconds=3 * settings.heartbeat_seconds)))  # type: ignore[return-value]  # never NULL


def list_all(session: Session) -> list[Worker]:
    return list(session.scalars(select(Worker).order_by(Worker.kind, Worker.started_at.desc())))


def training(session: Session, settings: Settings) -> list[Worker]:
    """Workers that take jobs for training: there, and not about to stop."""
    there = Worker.last_seen_at > clock.now() - timedelta(seconds=3 * settings.heartbeat_seconds)
    taking = select(Worker).where(Worker.kind == "train", Worker.draining.is_(False), there)
    return list(session.scalars(taking.order_by(Worker.started_at, Worker.id)))


def largest_room(session: Session) -> float | None:
    """Bytes of memory of the largest slot of any registered train worker, there or not; None where there is none."""
    room = func.max(Worker.memory_bytes / cast(Worker.slots, Double))
    found = session.scalar(select(room).where(Worker.kind == "train"))
    return None if found is None else float(found)


def four_bits(session: Session) -> bool:
    """Whether a registered train worker can hold a base in four bits; one that has not measured itself might."""
    return _might(session, lambda machine: machine.get("four_bits", True))


def half(session: Session) -> bool:
    """Whether a registered train worker computes in float16; one that has not measured itself might."""
    return _might(session, lambda machine: "fp16" in machine["flops"])


def _might(session: Session, can: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether a registered train worker can, or may turn out to: none is there, or one has not measured itself."""
    machines = session.scalars(select(Worker.machine).where(Worker.kind == "train")).all()
    return not machines or any(machine is None or can(machine) for machine in machines)


def forget_old(session: Session) -> None:
    session.execute(delete(Worker).where(Worker.last_seen_at < clock.now() - _FORGOTTEN_AFTER))


def expire_leases_of_predecessors(session: Session, name: str, kind: str, worker_id: str) -> int:
    """End the leases of earlier processes of this name; returns how many.

    Only for a worker that holds its name's lock file: the kernel gives it away when the process before is dead, so
    there is nobody left to own those rows, and waiting for their leases to run out would only cost time.
    """
    earlier = select(Worker.id).where(Worker.name == name, Worker.kind == kind, Worker.id != worker_id)
    ended = 0
    for table in (Job, WorkItem):
        rows = session.execute(
            update(table)
            .where(table.worker_id.in_(earlier), table.lease_until.is_not(None))
            .values(lease_until=clock.now())
            .returning(table.id)
            .execution_options(synchronize_session=False)
        )
        ended += len(rows.all())
    session.execute(delete(Worker).where(Worker.id.in_(earlier)).execution_options(synchronize_session=False))
    return ended
