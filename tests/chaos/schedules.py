"""``python -m tests.chaos.schedules NAME``: two owners of one row in an order that chance would need long to find.

On a real database, without workers: each schedule says what must hold, and status 1 says that it did not.
"""

import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import text, update

from cli.stack.plan import SERVERS_ONLY
from cli.stack.stack import Stack
from core import clock
from core.config import Settings
from core.db.session import Sessions, engine, sessions, transaction
from core.db.tables import BaseModel, File, Job, Metric
from core.errors import LostAuthority
from core.queue import claims
from core.queue.fence import fenced
from core.services import runs, sweeps, tenants
from core.states import Phase, Status
from migrations.__main__ import migrate

ID = "ftjob-schedule"


def zombie_commits_after_the_next_claim(db: Sessions, settings: Settings) -> None:
    """A late owner's open transaction and the next owner's claim: one of them waits, and step 11 is there once.

    Without the row's lock the claim overtakes it, deletes what is to be done again, and the late step is written after
    that: the new owner's own step 11 finds it there.
    """
    first = claim(db, settings)
    looked = threading.Event()

    def zombie() -> None:
        with fenced(db, Job, ID, first) as (session, job):
            # It has looked and not yet written: from here on only the row's lock stands between it and the next owner.
            # Busy in the database, since a transaction that is idle for as long as a lease is ended by the server.
            looked.set()
            session.execute(text("SELECT pg_sleep(4)"))
            session.add(step(job, 11))

    late = threading.Thread(target=zombie)
    late.start()
    assert looked.wait(10)
    expire(db)
    second = None
    while second is None:
        with transaction(db) as session:
            # Skips the row as long as the late owner has it locked.
            sweeps.expired_jobs(session, settings)
        second = claim(db, settings, must=False)
    with fenced(db, Job, ID, second) as (session, job):
        # The lock goes with the commit: who waited for it sees what the late owner wrote.
        overtaken = session.get(Metric, (ID, 11)) is None
        runs.resume_at(session, job, 10)
    late.join()
    with fenced(db, Job, ID, second) as (session, job):
        assert session.get(Metric, (ID, 11)) is None, "the late owner's step 11 outlived the next owner's resume"
        session.add(step(job, 11))
    assert not overtaken, "the row was claimed while its late owner was writing"


def zombie_writes_between_sweep_and_claim(db: Sessions, settings: Settings) -> None:
    """Once the reconciler has taken a row back, nothing of its owner counts, although nobody has claimed it since."""
    first = claim(db, settings)
    expire(db)
    with transaction(db) as session:
        assert sweeps.expired_jobs(session, settings) == 1
    try:
        with fenced(db, Job, ID, first) as (session, job):
            session.add(step(job, 1))
    except LostAuthority:
        return
    raise AssertionError("an owner wrote to a row that was taken back from it")


def two_claims_of_one_row(db: Sessions, settings: Settings) -> None:
    """A row with an owner is claimed by nobody: one that is being prepared keeps the status it waited in."""
    with transaction(db) as session:
        session.execute(update(Job).values(status=Status.VALIDATING, phase=Phase.CREATED))
    with transaction(db) as session:
        assert claims.next_job(session, Status.VALIDATING, "worker_1", settings) is not None
    with transaction(db) as session:
        again = claims.next_job(session, Status.VALIDATING, "worker_2", settings)
        assert again is None, "a row was claimed twice"


def claim(db: Sessions, settings: Settings, must: bool = True) -> int | None:
    with transaction(db) as session:
        job = claims.next_job(session, Status.QUEUED, "worker_1", settings)
        if job is None:
            assert not must, "nothing to claim"
            return None
        runs.begin_attempt(session, job, "worker_1")
        return job.generation


def expire(db: Sessions) -> None:
    """The lease is over. Not by an update of the row, which would wait for whoever has it locked."""
    with transaction(db) as session:
        session.execute(text("SET LOCAL lock_timeout = '5s'"))
        session.execute(text("SELECT pg_sleep(1.2)"))


def step(job: Job, number: int) -> Metric:
    numbers = dict.fromkeys(("epoch", "train_loss", "learning_rate", "grad_norm", "seconds"), 1.0)
    return Metric(job_id=job.id, step=number, generation=job.generation, tokens=1, trained_tokens=1, **numbers)


SCHEDULES: dict[str, Callable[[Sessions, Settings], None]] = {
    run.__name__: run
    for run in (zombie_commits_after_the_next_claim, zombie_writes_between_sweep_and_claim, two_claims_of_one_row)
}


def main(names: list[str]) -> int:
    failed = 0
    with tempfile.TemporaryDirectory(prefix="attune-schedule-") as folder:
        Path(folder).chmod(0o711)
        with Stack(Path(folder) / "home", plan=SERVERS_ONLY) as stack:
            settings = Settings(
                database_url=stack.env["ATTUNE_DATABASE_URL"],
                lease_seconds=1,
                authority_seconds=0.5,
                heartbeat_seconds=0.2,
                backoff_seconds=0,
                max_attempts=9,
            )
            bound = engine(settings)
            migrate(bound)
            for name in names:
                fill(sessions(bound))
                try:
                    SCHEDULES[name](sessions(bound), settings)
                except Exception as error:  # noqa: BLE001  # whatever it is, it must not have happened
                    failed += 1
                    print(f"FAIL {name}: {type(error).__name__}: {str(error).splitlines()[0]}")
                else:
                    print(f"ok   {name}")
            bound.dispose()
        stack.purge()
    print(f"schedules {len(names)}, failed {failed}")
    return int(failed > 0)


def fill(db: Sessions) -> None:
    with transaction(db) as session:
        session.execute(text("TRUNCATE jobs, files, base_models CASCADE"))
        project = tenants.default(session, "acme")
        session.add(BaseModel(id="base_x", name="x", source="path:/nowhere", status="ready"))
        session.add(
            File(
                id="file-x",
                project_id=project.id,
                purpose="fine-tune",
                filename="x",
                bytes=1,
                sha256="",
                storage_key="files/file-x",
                status="processed",
            )
        )
        session.flush()
        session.add(
            Job(
                id=ID,
                project_id=project.id,
                model="x",
                base_model_id="base_x",
                training_file="file-x",
                seed=1,
                method={},
                options={},
                status=Status.QUEUED,
                phase=Phase.QUEUED,
                event_count=0,
                available_at=clock.now(),
            )
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(SCHEDULES)))
