"""Limits: a 429 that says when to come back, a 403 that names the quota, places that two claims can't both take."""

import threading
from typing import Any

import pytest

from api.main import install
from core.db.session import transaction
from core.db.tables import Job
from core.queue import claims
from core.services import runs
from core.states import Phase, Status
from core.wiring import Parts
from tests.conftest import Account, Accounts, chat_rows


def limited(parts: Parts, account: Account, **values: Any) -> Parts:
    """The same application under a limit."""
    changed = Parts(parts.settings.model_copy(update=values), parts.sessions, parts.store, parts.doorbell)
    install(account.http.app, changed)  # type: ignore[arg-type]  # TestClient keeps the application untyped
    return changed


def upload(account: Account) -> Any:
    return account.http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", chat_rows(12))})


def create(account: Account, file_id: str, **body: Any) -> Any:
    return account.http.post("/v1/fine_tuning/jobs", json={"model": "attune-tiny", "training_file": file_id, **body})


@pytest.mark.parametrize("redis", ["shared", "away"])
def test_too_many_requests_are_told_when_to_come_back(
    parts: Parts, accounts: Accounts, account: Account, redis: str
) -> None:
    more = {} if redis == "shared" else {"redis_url": "redis://127.0.0.1:9/0"}
    limited(parts, account, requests_per_minute=3, **more)
    assert [account.http.get("/v1/files").status_code for _ in range(4)] == [200, 200, 200, 429]
    answer = account.http.get("/v1/files")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    # Another key has a count of its own.
    assert accounts.make("others").http.get("/v1/files").status_code == 200


def test_open_jobs_are_limited_and_ended_ones_make_room(parts: Parts, account: Account, base_model: object) -> None:
    limited(parts, account, max_open_jobs=2)
    file_id = upload(account).json()["id"]
    made = [create(account, file_id, seed=n) for n in range(3)]
    assert [answer.status_code for answer in made] == [200, 200, 403]
    error = made[2].json()["error"]
    assert error["code"] == "exceeded_quota"
    assert "ATTUNE_MAX_OPEN_JOBS" in error["message"]
    account.http.post(f"/v1/fine_tuning/jobs/{made[0].json()['id']}/cancel")
    assert create(account, file_id, seed=3).status_code == 200


def test_stored_bytes_are_limited_and_nothing_is_kept_of_what_is_refused(parts: Parts, account: Account) -> None:
    size = len(chat_rows(12))
    limited(parts, account, max_stored_bytes=2 * size + 1)
    before = set(parts.store.list("files/"))
    assert [upload(account).status_code for _ in range(3)] == [200, 200, 403]
    assert len(set(parts.store.list("files/")) - before) == 2
    assert len(account.http.get("/v1/files").json()["data"]) == 2


def test_an_open_upload_has_a_claim_to_its_bytes(parts: Parts, account: Account) -> None:
    rows = chat_rows(12)
    limited(parts, account, max_stored_bytes=2 * len(rows))
    body = {"filename": "a.jsonl", "purpose": "fine-tune", "mime_type": "text/plain", "bytes": len(rows) + 1}
    opened = account.http.post("/v1/uploads", json=body)
    assert opened.status_code == 200
    refused = account.http.post("/v1/uploads", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "bytes")
    assert upload(account).status_code == 403
    account.http.post(f"/v1/uploads/{opened.json()['id']}/cancel")
    assert upload(account).status_code == 200


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_running_jobs_are_limited_under_concurrent_claims(
    parts: Parts, accounts: Accounts, account: Account, base_model: object
) -> None:
    changed = limited(parts, account, max_running_jobs=2)
    other = accounts.make("others")
    jobs: dict[str, list[str]] = {}
    for owner in (account, other):
        file_id = upload(owner).json()["id"]
        jobs[owner.tenant.project_id] = [create(owner, file_id, seed=n).json()["id"] for n in range(6)]
    with transaction(parts.sessions) as session:
        for ids in jobs.values():
            for id in ids:
                job = session.get_one(Job, id)
                job.status, job.phase = Status.QUEUED, Phase.QUEUED
    taken: list[str] = []

    def claim(worker: str) -> None:
        for _ in range(4):
            with transaction(changed.sessions) as session:
                job = claims.next_job(session, Status.QUEUED, worker, changed.settings)
                if job is not None:
                    runs.begin_attempt(session, job, worker)
                    taken.append(job.project_id)

    threads = [threading.Thread(target=claim, args=(f"w{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {project: taken.count(project) for project in jobs} == dict.fromkeys(jobs, 2)
    with transaction(parts.sessions) as session:
        waiting = [session.get_one(Job, id).phase for ids in jobs.values() for id in ids]
    assert Phase.WAITING_FOR_QUOTA in waiting
