"""Rows and objects together: backed up, destroyed, restored, and the model is downloaded again with the same hash."""

import hashlib
from pathlib import Path

import httpx
import pytest

from core.db.session import transaction
from core.db.tables import BaseModel, Table
from core.storage.s3 import S3Store
from core.wiring import Parts
from migrations.backup import backup, restore
from tests.api.made import succeeded
from tests.api.test_jobs import create
from tests.conftest import Account


@pytest.fixture
def own(parts: Parts) -> S3Store:
    store = S3Store(parts.settings)
    store.delete(*store.list(""))
    return store


def destroy(parts: Parts, store: S3Store) -> None:
    store.delete(*store.list(""))
    with transaction(parts.sessions) as session:
        for table in reversed(Table.metadata.sorted_tables):
            session.execute(table.delete())


def downloads(account: Account, job_id: str) -> dict[str, str]:
    job = account.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    found = {}
    for id in job["result_files"]:
        answer = account.http.get(f"/v1/files/{id}/content")
        data = httpx.get(answer.headers["location"]).content if answer.is_redirect else answer.content
        found[id] = hashlib.sha256(data).hexdigest()
    return found


@pytest.mark.usefixtures("base_model")
def test_what_was_destroyed_is_there_again(parts: Parts, account: Account, own: S3Store, tmp_path: Path) -> None:
    from tests.api.made import running

    job_id = create(account).json()["id"]
    running(parts, account, job_id)
    model = succeeded(parts, account, job_id)
    before = downloads(account, job_id)
    assert len(before) == 3
    keys = sorted(own.list(""))
    bound = parts.sessions.kw["bind"]
    rows, objects = backup(bound, own, tmp_path / "b")
    assert objects == len(keys)
    with pytest.raises(SystemExit, match="empty one only"):
        restore(bound, own, tmp_path / "b")
    destroy(parts, own)
    assert account.http.get("/v1/models").status_code == 401
    assert restore(bound, own, tmp_path / "b") == (rows, objects)
    assert sorted(own.list("")) == keys
    # The same key opens it, and every byte is what it was.
    assert downloads(account, job_id) == before
    assert account.http.get(f"/v1/models/{model}").status_code == 200


@pytest.mark.parametrize("where", ["rows", "objects"])
def test_a_damaged_backup_writes_nothing(
    parts: Parts, account: Account, own: S3Store, tmp_path: Path, where: str, base_model: BaseModel
) -> None:
    create(account)
    bound = parts.sessions.kw["bind"]
    backup(bound, own, tmp_path / "b")
    destroy(parts, own)
    path = max((tmp_path / "b" / where).iterdir(), key=lambda path: path.stat().st_size)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(SystemExit, match="damaged"):
        restore(bound, own, tmp_path / "b")
    assert list(own.list("")) == []
    (tmp_path / "b" / "manifest.json").unlink()
    with pytest.raises(SystemExit, match="not finished"):
        restore(bound, own, tmp_path / "b")
