"""A job that kills its worker ends after its attempts, and takes nobody down with it."""

import os
import subprocess
import sys
import time
from pathlib import Path

from sqlalchemy import select

from core.db.session import transaction
from core.db.tables import Attempt, BaseModel, Job
from core.states import TERMINAL
from core.wiring import Parts
from tests.conftest import Account
from tests.worker.test_runner import queued
from worker import reconciler

ROOT = Path(__file__).parents[2]
_CODE = (
    "from worker import slot; slot.MODULES['train'] = 'tests.worker.trivial_engine'; "
    "import sys; from worker.__main__ import main; sys.exit(main())"
)


def test_a_job_that_kills_its_worker_stops_after_its_attempts(
    parts: Parts, account: Account, base_model: BaseModel, tmp_path: Path
) -> None:
    poison = queued(parts, account, base_model, seed=66)
    # Of no other test: what one leaves in the store is another one's as long as they share an id.
    others = [queued(parts, account, base_model, seed=seed) for seed in (67, 68)]
    with transaction(parts.sessions) as session:
        # It comes first, again and again.
        session.get_one(Job, poison).priority = 1
    settings = parts.settings
    names = ("database_url", "redis_url", "s3_endpoint_url", "s3_access_key", "s3_secret_key", "s3_bucket")
    env = os.environ | {f"ATTUNE_{name.upper()}": str(getattr(settings, name)) for name in names}
    env |= {
        "ATTUNE_HOME": str(tmp_path),
        "ATTUNE_WORKER_NAME": "poisoned",
        "ATTUNE_BACKOFF_SECONDS": "0.1",
        "ATTUNE_POLL_SECONDS": "0.2",
        "PYTHONPATH": str(ROOT),
    }

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / "worker.log").open("ab") as log:
            return subprocess.Popen([sys.executable, "-c", _CODE], env=env, stderr=log, cwd=tmp_path)

    def ended() -> bool:
        with transaction(parts.sessions) as session:
            return all(session.get_one(Job, id).status in TERMINAL for id in (poison, *others))

    worker, deaths = start(), 0
    try:
        deadline = time.monotonic() + 90
        while not ended():
            assert time.monotonic() < deadline, (tmp_path / "worker.log").read_text()[-3000:]
            if worker.poll() is not None:
                # As its supervisor does.
                worker, deaths = start(), deaths + 1
            reconciler.sweep(parts)
            time.sleep(0.1)
    finally:
        worker.terminate()
        worker.wait(20)
    with transaction(parts.sessions) as session:
        job = session.get_one(Job, poison)
        whys = session.scalars(select(Attempt.why).where(Attempt.job_id == poison).order_by(Attempt.n)).all()
        rest = [(row.status, row.error) for row in (session.get_one(Job, id) for id in others)]
    assert (job.status, job.error and job.error["code"]) == ("failed", "worker_lost")
    assert len(whys) == settings.max_attempts == deaths
    assert rest == [("succeeded", None), ("succeeded", None)]
    # Nothing of the three tries is left on the disk.
    assert list((tmp_path / "scratch" / "train-0").glob("*-gen-*")) == []
