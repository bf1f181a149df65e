"""``make bench-queue``: claims from a long queue, how fair they are, and 200 workers on one database.

``python -m bench.queue JOBS…`` measures other lengths of the queue than 1,000, 10,000 and 100,000. Workers are threads
of this process with the service's own SQL; what they do between claim and end is to heartbeat.
"""

import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from sqlalchemy import select, text

from bench.figure import Figure, closed
from cli.stack.plan import SERVERS_ONLY
from cli.stack.stack import Stack
from core.config import Settings
from core.db.session import Sessions, engine, sessions, transaction
from core.db.tables import Job
from core.queue import claims, shares
from core.queue.claims import Claim
from core.queue.fence import fenced
from core.services import runs
from core.states import Status
from migrations.__main__ import migrate

PROJECTS, WORKERS, CLAIMS, SECONDS = 50, 200, 300, 120.0
_CONNECTIONS = 60
"""Of all simulated workers together: the embedded server takes a hundred."""


def fill(made: Sessions, jobs: int) -> None:
    """A queue of so many jobs, of 50 projects in turn."""
    with transaction(made) as session:
        for table in ("events", "attempts", "shares", "jobs", "files", "base_models", "projects", "organizations"):
            session.execute(text(f"DELETE FROM {table}"))
        for statement in (
            "INSERT INTO organizations (id, name) VALUES ('org', 'bench')",
            "INSERT INTO base_models (id, name, source, status) VALUES ('base', 'm', 'path:/nowhere', 'ready')",
            f"INSERT INTO projects (id, organization_id, name) SELECT 'p' || n, 'org', 'p' || n "
            f"FROM generate_series(0, {PROJECTS - 1}) n",
            "INSERT INTO files (id, project_id, purpose, filename, bytes, sha256, storage_key, status) "
            "SELECT 'f' || id, id, 'fine-tune', 'f', 1, '0', 'k', 'processed' FROM projects",
        ):
            session.execute(text(statement))
        session.execute(
            text(
                "INSERT INTO jobs (id, project_id, model, base_model_id, training_file, seed, method, options, status, "
                "phase, created_at) SELECT 'job' || n, 'p' || n % :projects, 'm', 'base', 'fp' || n % :projects, 0, "
                "'{}', '{}', 'queued', 'queued', now() - make_interval(secs => :jobs - n) "
                "FROM generate_series(1, :jobs) n"
            ),
            {"jobs": jobs, "projects": PROJECTS},
        )
    with made.kw["bind"].connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE jobs"))


def claim(made: Sessions, worker: str, settings: Settings) -> Claim | None:
    with transaction(made) as session:
        job = claims.next_job(session, Status.QUEUED, worker, settings)
        if job is None:
            return None
        runs.begin_attempt(session, job, worker)
        return Claim(Job, job.id, job.generation)


def finish(made: Sessions, mine: Claim) -> None:
    with fenced(made, Job, mine.id, mine.generation) as (session, job):
        runs.failed(session, job, "bench", "It was only a bench.")


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def alone(made: Sessions, settings: Settings, jobs: int) -> list[Figure]:
    fill(made, jobs)
    took, taken = [], []
    for _ in range(CLAIMS):
        began = time.perf_counter()
        mine = claim(made, "w", settings)
        took.append(time.perf_counter() - began)
        assert mine is not None
        taken.append(mine)
    with transaction(made) as session:
        began = time.perf_counter()
        shares.order(session, Status.QUEUED, 1000)
        order = time.perf_counter() - began
    bound = 20.0 if jobs == 10_000 else None
    return [
        Figure(f"{jobs:,} jobs: claim, p50", 1000 * quantile(took, 0.5), "ms", None),
        Figure(f"{jobs:,} jobs: claim, p99", 1000 * quantile(took, 0.99), "ms", bound),
        Figure(f"{jobs:,} jobs: the first thousand places", 1000 * order, "ms", None),
    ]


def crowd(made: Sessions, settings: Settings) -> list[Figure]:
    """200 workers: claim, heartbeat as workers do, end after some seconds, claim again."""
    fill(made, 10_000)
    end = time.monotonic() + SECONDS
    took: list[float] = []
    beats: list[float] = []
    counted: Counter[str] = Counter()
    faults: list[str] = []

    def work(number: int) -> None:
        rng = random.Random(number)
        try:
            time.sleep(rng.uniform(0, 8))
            while time.monotonic() < end:
                began = time.perf_counter()
                mine = claim(made, f"w{number}", settings)
                took.append(time.perf_counter() - began)
                assert mine is not None
                counted[mine.id] += 1
                left = rng.uniform(2, 14)
                while left > settings.heartbeat_seconds:
                    time.sleep(settings.heartbeat_seconds)
                    left -= settings.heartbeat_seconds
                    began = time.perf_counter()
                    with transaction(made) as session:
                        claims.heartbeat(session, mine, settings)
                    beats.append(time.perf_counter() - began)
                time.sleep(left)
                finish(made, mine)
        except Exception as error:  # noqa: BLE001  # whatever it was, the bench must tell of it
            faults.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.writelines(f"{fault}\n" for fault in faults[:3])
    with transaction(made) as session:
        owners = session.scalars(select(Job.project_id).where(Job.id.in_(list(counted)))).all()
    had = Counter(owners).values()
    fair = len(owners) / PROJECTS
    unfair = max(abs(count - fair) for count in had) / fair
    return [
        Figure("200 workers: claims", len(took), "", None),
        Figure("200 workers: claim, p50", 1000 * quantile(took, 0.5), "ms", None),
        Figure("200 workers: claim, p99", 1000 * quantile(took, 0.99), "ms", 20.0),
        Figure("200 workers: heartbeat, p99", 1000 * quantile(beats, 0.99), "ms", None),
        Figure("200 workers: jobs claimed twice, or faults", len(took) - len(counted) + len(faults), "", 0.0),
        Figure("200 workers: the share furthest from its due", 100 * unfair, "%", 5.0),
    ]


def said(figures: list[Figure]) -> list[Figure]:
    sys.stdout.writelines(f"{figure}\n" for figure in figures)
    sys.stdout.flush()
    return figures


def main() -> int:
    lengths = [int(word) for word in sys.argv[1:]] or [1_000, 10_000, 100_000]
    env = {name: value for name, value in os.environ.items() if not name.startswith("ATTUNE_")}
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="attune-queue-") as scratch:
        stack = Stack(Path(scratch) / "home", plan=SERVERS_ONLY, env=env)
        stack.start()
        try:
            settings = Settings(database_url=stack.env["ATTUNE_DATABASE_URL"])
            bound = engine(settings, pool_size=_CONNECTIONS)
            migrate(bound)
            made = sessions(bound)
            for jobs in lengths:
                figures += said(alone(made, settings, jobs))
            figures += said(crowd(made, settings))
            bound.dispose()
        finally:
            stack.stop()
            stack.purge()
    return closed(figures)


if __name__ == "__main__":
    sys.exit(main())
