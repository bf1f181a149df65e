"""What the reconciler tells Prometheus of the database, and what happens while there is none."""

import socket

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import update

from core import clock, telemetry
from core.db.session import engine, sessions, transaction
from core.db.tables import BaseModel, Job, Worker
from core.states import Phase, Status
from core.wiring import Parts
from tests.conftest import Account
from tests.rows import file_row, job_row
from worker.standing import NAMES, Standing


def told(parts: Parts) -> str:
    registry = CollectorRegistry()
    registry.register(Standing(parts))
    return generate_latest(registry).decode()


def test_depth_age_and_workers_are_told(parts: Parts, account: Account, base_model: BaseModel) -> None:
    with transaction(parts.sessions) as session:
        file = file_row(account, "file-a")
        session.add(file)
        session.flush()
        session.add_all(job_row(account, base_model, file, f"ftjob-{n}") for n in range(4))
        session.add_all(
            Worker(id=name, name=name, kind="train", slots=1, device="cpu", memory_bytes=1, version="0")
            for name in ("online", "draining", "offline")
        )
    with transaction(parts.sessions) as session:
        session.execute(
            update(Job)
            .where(Job.id == "ftjob-0")
            .values(status=Status.RUNNING, phase=Phase.TRAINING, lease_until=clock.in_seconds(60))
        )
        # One that prepare has taken waits no more.
        taken = {"status": Status.VALIDATING, "phase": Phase.PREPARING, "lease_until": clock.in_seconds(60)}
        session.execute(update(Job).where(Job.id == "ftjob-3").values(**taken))
        session.execute(update(Worker).where(Worker.id == "draining").values(draining=True))
        session.execute(update(Worker).where(Worker.id == "offline").values(last_seen_at=clock.in_seconds(-3600)))
        session.execute(update(Job).where(Job.id == "ftjob-1").values(phase_since=clock.in_seconds(-100)))
    lines = told(parts).splitlines()
    assert "attune_database_up 1.0" in lines
    assert 'attune_queue_jobs{phase="queued",queue="queued"} 2.0' in lines
    assert 'attune_running_jobs{phase="training"} 1.0' in lines
    assert not any(line.startswith('attune_queue_jobs{phase="preparing') for line in lines)
    for state in ("online", "draining", "offline"):
        assert f'attune_workers{{kind="train",state="{state}"}} 1.0' in lines
    (age,) = [line for line in lines if line.startswith('attune_queue_oldest_seconds{phase="queued"')]
    assert 100 <= float(age.split()[-1]) < 200
    assert {line.split()[2] for line in lines if line.startswith("# TYPE")} == NAMES


def test_without_a_database_it_says_so(parts: Parts) -> None:
    away = parts.settings.model_copy(update={"database_url": "postgresql+psycopg://x@127.0.0.1:9/x"})
    lines = told(Parts(away, sessions(engine(away)), parts.store, parts.doorbell)).splitlines()
    assert "attune_database_up 0.0" in lines
    assert not any(line.startswith("attune_queue") for line in lines)


def test_numbers_are_served_where_a_port_is_set_and_a_taken_one_costs_only_them(parts: Parts) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = parts.settings.model_copy(update={"metrics_port": port})
    telemetry.serve(served)
    telemetry.claims.labels("queued").inc()
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10)
    assert answer.status_code == 200
    assert 'attune_claims_total{queue="queued"}' in answer.text
    telemetry.serve(served)
