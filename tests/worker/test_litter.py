"""What nobody needs goes, from the store and from a worker's disk; what somebody may still need or write stays."""

import subprocess
import sys
import time
from datetime import timedelta

import pytest
from sqlalchemy import select

from core import clock
from core.db.session import transaction
from core.db.tables import (
    Answer,
    Attempt,
    BaseModel,
    Checkpoint,
    Job,
    TokenSet,
    Upload,
    UploadPart,
    WorkItem,
)
from core.services import litter
from core.storage import store as layout
from core.wiring import Parts
from tests.conftest import Account
from tests.rows import file_row, job_row
from worker import reconciler, scratch

HOUR = timedelta(hours=1)
JOB = "ftjob-a"


@pytest.fixture
def now(parts: Parts) -> Parts:
    """The same parts, without any grace."""
    # An object's time has whole seconds.
    settings = parts.settings.model_copy(update={"litter_grace_seconds": -2})
    return Parts(settings, parts.sessions, parts.store, parts.doorbell)


@pytest.fixture
def job(parts: Parts, account: Account, base_model: BaseModel) -> str:
    with transaction(parts.sessions) as session:
        file = file_row(account, "file-a")
        session.add(file)
        session.flush()
        session.add(job_row(account, base_model, file, JOB, generation=3))
    # What other tests of this run have left in the bucket.
    parts.store.delete(*parts.store.list(""))
    return JOB


def put(parts: Parts, *keys: str) -> None:
    for key in keys:
        parts.store.put(key, b"x")


def left(parts: Parts) -> set[str]:
    return set(parts.store.list(""))


def checkpoint(step: int, generation: int, **fields: object) -> Checkpoint:
    plain = {
        "id": f"ftckpt_{step}",
        "job_id": JOB,
        "step": step,
        "epoch": 1.0,
        "kind": "epoch",
        "generation": generation,
        "storage_prefix": layout.run(JOB, generation, f"checkpoints/step-{step}/"),
        "manifest": {"files": [{"path": "state.json", "bytes": 1, "sha256": "0"}]},
        "manifest_sha256": "0",
        "metrics": {},
    }
    return Checkpoint(**plain | fields)


def test_what_no_row_names_goes_and_what_one_names_stays(now: Parts, account: Account, job: str) -> None:
    named = {
        "files/file-a",
        "jobs/ftjob-a/gen-1/checkpoints/step-1/state.json",
        "jobs/ftjob-a/gen-1/checkpoints/step-1/manifest.json",
        "jobs/ftjob-a/gen-2/artifact/adapter_model.safetensors",
        "jobs/ftjob-a/gen-2/metrics.csv",
        "jobs/ftjob-a/gen-2/trainer.log",
        "prepared/ftjob-a/gen-1/train.safetensors",
        "uploads/upload_a/part_a",
        "answers/ans_a/result.json",
        f"base-models/{'0' * 64}/config.json",
        # Of somebody who shares the bucket.
        "else/where.txt",
    }
    with transaction(now.sessions) as session:
        session.add(checkpoint(1, 1))
        for n, key in enumerate(sorted(key for key in named if "/gen-2/" in key and "log" not in key)):
            session.add(file_row(account, f"file-result{n}", storage_key=key, job_id=job))
        session.add(Attempt(job_id=job, n=1, generation=2, worker_id="w", ended_at=clock.now()))
        entry = {"key": "prepared/ftjob-a/gen-1/train.safetensors", "bytes": 1, "sha256": "0"}
        owner = {"project_id": account.tenant.project_id}
        session.add(TokenSet(id="t", file_ids=[], found={}, files={"train.safetensors": entry}, **owner))
        fields = {"bytes": 1, "filename": "a", "mime_type": "a", "purpose": "fine-tune"}
        session.add(Upload(id="upload_a", expires_at=clock.now() + HOUR, **fields, **owner))
        session.flush()
        session.add(UploadPart(id="part_a", upload_id="upload_a", storage_key="uploads/upload_a/part_a"))
        session.add(Answer(id="ans_a", kind="report", question={}, data_sha256=[], **owner))
        session.add(file_row(account, "file-gone", deleted_at=clock.now()))
        session.add(checkpoint(2, 1, deleted_at=clock.now()))
    orphans = {
        "files/file-gone",
        "files/file-never",
        "files/file-a/gen-1",
        "jobs/ftjob-a/gen-1/checkpoints/step-2/state.json",
        "jobs/ftjob-a/gen-1/checkpoints/step-10/state.json",
        "jobs/ftjob-a/gen-1/artifact/adapter_model.safetensors",
        "jobs/ftjob-a/gen-1/trainer.log",
        "jobs/ftjob-never/gen-1/metrics.csv",
        "prepared/ftjob-a/gen-1/valid.safetensors",
        "uploads/upload_a/part_b",
        "answers/ans_b/result.json",
        f"base-models/{'1' * 64}/config.json",
    }
    put(now, *named, *orphans)
    assert litter.clear(now.sessions, now.store, now.settings) == len(orphans)
    assert left(now) == named


def test_nothing_goes_before_its_time(parts: Parts, job: str) -> None:
    put(parts, "files/file-never")
    upload = parts.store.multipart("files/file-never2")
    upload.part(b"x")
    assert litter.clear(parts.sessions, parts.store, parts.settings) == 0
    assert left(parts) == {"files/file-never"}
    assert "files/file-never2" in {one.key for one in parts.store.unfinished()}
    upload.abort()


def test_what_a_live_generation_may_write_stays_until_its_lease_is_over(now: Parts, job: str) -> None:
    with transaction(now.sessions) as session:
        session.get_one(Job, job).lease_until = clock.now() + HOUR
    mine, late = ({f"jobs/{job}/gen-{g}/artifact/a", f"prepared/{job}/gen-{g}/b"} for g in (3, 2))
    put(now, *mine, *late)
    uploads = [now.store.multipart(f"jobs/{job}/gen-{g}/artifact/c") for g in (3, 2)]
    for upload in uploads:
        upload.part(b"x")
    litter.clear(now.sessions, now.store, now.settings)
    assert left(now) == mine
    assert [one.key for one in now.store.unfinished()] == [f"jobs/{job}/gen-3/artifact/c"]
    with transaction(now.sessions) as session:
        session.get_one(Job, job).lease_until = None
    litter.clear(now.sessions, now.store, now.settings)
    assert left(now) == set()
    assert list(now.store.unfinished()) == []


def test_parts_that_are_being_joined_stay(now: Parts, account: Account, job: str) -> None:
    with transaction(now.sessions) as session:
        fields = {"bytes": 1, "filename": "a", "mime_type": "a", "purpose": "fine-tune", "file_id": "file-a"}
        owner = {"project_id": account.tenant.project_id}
        session.add(Upload(id="upload_a", expires_at=clock.now(), **fields, **owner))
        later = clock.now() + HOUR
        session.add(
            WorkItem(
                id="item_a",
                kind="join_upload",
                subject_id="upload_a",
                generation=2,
                lease_until=later,
                status="running",
            )
        )
    put(now, "files/file-a/gen-2", "files/file-a/gen-1")
    litter.clear(now.sessions, now.store, now.settings)
    assert left(now) == {"files/file-a/gen-2"}


def test_while_a_model_is_registered_no_models_files_go(now: Parts, job: str) -> None:
    put(now, f"base-models/{'1' * 64}/config.json")
    with transaction(now.sessions) as session:
        session.add(WorkItem(id="item_a", kind="register_model", subject_id="base_b"))
    assert litter.clear(now.sessions, now.store, now.settings) == 0
    with transaction(now.sessions) as session:
        session.get_one(WorkItem, "item_a").status = "done"
    assert litter.clear(now.sessions, now.store, now.settings) == 1


def test_old_logs_go(now: Parts, job: str) -> None:
    days = now.settings.log_days
    with transaction(now.sessions) as session:
        for n, age in ((1, days + 1), (2, days - 1)):
            ended = clock.in_seconds(-age * 86400)
            session.add(Attempt(job_id=job, n=n, generation=n, worker_id="w", ended_at=ended))
    put(now, f"jobs/{job}/gen-1/trainer.log", f"jobs/{job}/gen-2/trainer.log")
    litter.clear(now.sessions, now.store, now.settings)
    assert left(now) == {f"jobs/{job}/gen-2/trainer.log"}


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled", "running"])
def test_recovery_points_go_with_the_end_of_their_job(parts: Parts, job: str, status: str) -> None:
    with transaction(parts.sessions) as session:
        row = session.get_one(Job, job)
        row.status = status
        row.phase = {"succeeded": "completed", "running": "training"}.get(status, status)
        session.add_all([checkpoint(1, 1, kind="recovery"), checkpoint(2, 1)])
    keys = {
        layout.run(JOB, 1, f"checkpoints/step-{n}/{name}") for n in (1, 2) for name in ("state.json", "manifest.json")
    }
    put(parts, *keys)
    reconciler.sweep(parts)
    with transaction(parts.sessions) as session:
        steps = list(session.scalars(select(Checkpoint.step).order_by(Checkpoint.step)))
    if status == "running":
        assert (steps, left(parts)) == ([1, 2], keys)
    else:
        assert (steps, left(parts)) == ([2], {key for key in keys if "step-2/" in key})


def test_folders_of_dead_claims_go_and_those_of_live_ones_stay(parts: Parts, job: str) -> None:
    with transaction(parts.sessions) as session:
        session.get_one(Job, job).lease_until = clock.now() + HOUR
    home = parts.settings.scratch_dir
    names = {f"{job}-gen-3", f"{job}-gen-2", "ftjob-never-gen-1", "item_a-gen-1"}
    for name in names:
        (home / "train-0" / name / "checkpoints").mkdir(parents=True)
        (home / "train-0" / name / "events.jsonl").write_text("x")
    (home / "train-7" / "ftjob-never-gen-2").mkdir(parents=True)
    (home / "train-0" / "slot.lock").touch()
    assert scratch.clear(parts) == 4
    assert {path.name for path in (home / "train-0").iterdir() if path.is_dir()} == {f"{job}-gen-3"}
    assert list((home / "train-7").iterdir()) == []
    assert (home / "train-0" / "slot.lock").exists()
    with transaction(parts.sessions) as session:
        session.get_one(Job, job).lease_until = None
    scratch.clear(parts)


def test_a_folder_goes_although_somebody_who_dies_still_writes_into_it(parts: Parts, job: str) -> None:
    folder = parts.settings.scratch_dir / "train-0" / "ftjob-never-gen-1"
    code = (
        "import sys, time; from pathlib import Path; end = time.monotonic() + 1.2\n"
        "while time.monotonic() < end:\n"
        "    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)\n"
        "    try: (Path(sys.argv[1]) / str(time.monotonic())).touch()\n"
        "    except OSError: pass\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    while not folder.exists():
        time.sleep(0.01)
    scratch.clear(parts)
    writer.wait()
    scratch.clear(parts)
    assert not folder.exists()
