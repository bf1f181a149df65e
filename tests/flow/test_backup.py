"""Back up, destroy, restore: what was tuned can be downloaded again, byte for byte."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from core.config import Settings
from core.db.session import engine
from core.storage.s3 import S3Store
from migrations.__main__ import migrate, prepare
from tests.conftest import chat_rows, fresh_database, plain_environment
from tests.live import ROOT, Live, running

pytestmark = [pytest.mark.flow, pytest.mark.proof]


def contents(live: Live, job: Any) -> dict[str, str]:
    """The hash of each result file as a client downloads it."""
    names = {id: live.client.files.retrieve(id).filename for id in job.result_files}
    return {name: hashlib.sha256(live.client.files.content(id).read()).hexdigest() for id, name in names.items()}


def run(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "migrations", *arguments]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_what_was_destroyed_is_there_again(servers: dict[str, str], tmp_path: Path, tiny: Path) -> None:
    env = plain_environment() | servers | {"PYTHONPATH": str(ROOT)}
    env |= {"ATTUNE_DATABASE_URL": fresh_database(servers, "backed_up"), "ATTUNE_S3_BUCKET": "backed-up"}
    folder = tmp_path / "backup"
    with running(tmp_path / "home", env, tiny) as live:
        file = live.client.files.create(file=("train.jsonl", chat_rows(20)), purpose="fine-tune")
        job = live.wait(live.client.fine_tuning.jobs.create(model="attune-tiny", training_file=file.id).id)
        assert job.status == "succeeded", job.error
        before = contents(live, job)
        done = run(env, "backup", str(folder))
        assert done.returncode == 0, done.stderr
        admin = live.admin_key
        refused = run(env, "restore", str(folder))
        assert refused.returncode == 1
        assert "empty one only" in refused.stderr

    fields = {name.removeprefix("ATTUNE_").lower(): value for name, value in env.items() if name.startswith("ATTUNE_")}
    settings = Settings(**fields)
    store, bound = S3Store(settings), engine(settings)
    keys = list(store.list(""))
    store.delete(*keys)
    assert list(store.list("")) == []
    with bound.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    migrate(bound)
    prepare(settings.model_copy(update={"bootstrap_admin_key": admin}), bound)
    bound.dispose()

    damaged = folder / "objects" / os.listdir(folder / "objects")[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused = run(env, "restore", str(folder))
    assert refused.returncode == 1
    assert "damaged" in refused.stderr
    assert list(store.list("")) == []
    damaged.write_bytes(whole)

    done = run(env, "restore", str(folder))
    assert done.returncode == 0, done.stderr
    assert sorted(store.list("")) == sorted(keys)
    # The same keys open it; the same home, so that the stack knows them.
    with running(tmp_path / "home", env, None) as live:
        again = live.job(job.id)
        assert again.status == "succeeded"
        assert contents(live, again) == before
        assert any("adapter_model" in name for name in before)
