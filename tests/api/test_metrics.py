"""/v1/fine_tuning/jobs/{id}/metrics and …/logs"""

import httpx
import pytest

from core.db.session import transaction
from core.db.tables import BaseModel
from core.services import attempts
from core.storage import store as layout
from core.wiring import Parts
from tests.api import made
from tests.api.test_jobs import create, refused
from tests.conftest import Account, Accounts


@pytest.fixture
def job_id(account: Account, base_model: BaseModel) -> str:
    found: str = create(account).json()["id"]
    return found


def url(job_id: str) -> str:
    return f"/v1/fine_tuning/jobs/{job_id}/metrics"


def test_every_step_is_told_where_there_is_room(parts: Parts, account: Account, job_id: str) -> None:
    made.measured(parts, account, job_id, [3.0, 2.0, 1.0], valid_loss=[None, 2.5, None])
    answer = account.http.get(url(job_id)).json()
    assert answer["object"] == "fine_tuning.job.metrics"
    assert answer["steps"] == 3
    assert [point["step"] for point in answer["data"]] == [1, 2, 3]
    assert [point["values"]["train_loss"] for point in answer["data"]] == [3.0, 2.0, 1.0]
    assert [point["values"]["valid_loss"] for point in answer["data"]] == [None, 2.5, None]
    assert all(point["range"] is None for point in answer["data"])


def test_keys_and_steps_are_chosen(parts: Parts, account: Account, job_id: str) -> None:
    made.measured(parts, account, job_id, [5.0, 4.0, 3.0, 2.0, 1.0])
    for keys in ({"keys": "train_loss,grad_norm"}, {"keys": ["train_loss", "grad_norm"]}):
        answer = account.http.get(url(job_id), params={**keys, "from": 2, "to": 4}).json()
        assert answer["keys"] == ["train_loss", "grad_norm"]
        assert [point["step"] for point in answer["data"]] == [2, 3, 4]
        assert answer["data"][0]["values"] == {"train_loss": 4.0, "grad_norm": 1.0}


def test_a_long_series_becomes_few_points_that_lose_no_peak(parts: Parts, account: Account, job_id: str) -> None:
    losses = [1.0] * 100
    losses[41], losses[42] = 99.0, -99.0
    valid: list[float | None] = [None] * 100
    valid[12], valid[15] = 7.0, 6.0
    made.measured(parts, account, job_id, losses, valid_loss=valid)
    answer = account.http.get(url(job_id), params={"resolution": 10, "keys": "train_loss,valid_loss"}).json()
    assert answer["steps"] == 100
    assert [point["step"] for point in answer["data"]] == list(range(10, 101, 10))
    assert answer["data"][4]["values"]["train_loss"] == 1.0
    assert answer["data"][4]["range"]["train_loss"] == [-99.0, 99.0]
    assert answer["data"][1]["values"]["valid_loss"] == 6.0
    assert answer["data"][1]["range"]["valid_loss"] == [6.0, 7.0]
    assert answer["data"][2]["values"]["valid_loss"] is None
    assert "valid_loss" not in answer["data"][2]["range"]


def test_the_last_step_is_always_there(parts: Parts, account: Account, job_id: str) -> None:
    made.measured(parts, account, job_id, [float(n) for n in range(101)])
    for resolution in (1, 7, 100):
        points = account.http.get(url(job_id), params={"resolution": resolution}).json()["data"]
        assert len(points) == resolution
        assert (points[-1]["step"], points[-1]["values"]["train_loss"]) == (101, 100.0)


def test_what_is_wrong_in_the_query_is_named(accounts: Accounts, account: Account, job_id: str) -> None:
    refused(account.http.get(url(job_id), params={"keys": "train_los"}), "keys", "train_loss?")
    refused(account.http.get(url(job_id), params={"from": 5, "to": 4}), "to", "5")
    for name, value in (("resolution", 0), ("resolution", 10_001), ("from", -1), ("to", 2**60)):
        refused(account.http.get(url(job_id), params={name: value}), name)
    assert accounts.make("stranger").http.get(url(job_id)).status_code == 404


def log(account: Account, job_id: str, **params: int) -> httpx.Response:
    answer: httpx.Response = account.http.get(f"/v1/fine_tuning/jobs/{job_id}/logs", params=params)
    return answer


def test_the_log_of_each_attempt_is_kept_after_failure(parts: Parts, account: Account, job_id: str) -> None:
    refused(log(account, job_id), "attempt", "no attempt at training", status=404)
    made.running(parts, account, job_id, generation=2)
    refused(log(account, job_id), "attempt", "until then", status=404)
    parts.store.put(layout.run(job_id, 2, "trainer.log"), b"out of memory\n")
    made.lost(parts, account, job_id)
    made.running(parts, account, job_id, generation=5)
    parts.store.put(layout.run(job_id, 5, "trainer.log"), b"again\n")
    made.failed(parts, account, job_id)
    for params, text in (({"attempt": 1}, "out of memory\n"), ({"attempt": 2}, "again\n"), ({}, "again\n")):
        answer = log(account, job_id, **params)
        assert answer.status_code == 302
        assert httpx.get(answer.headers["location"]).text == text
    refused(log(account, job_id, attempt=3), "attempt", "no attempt 3", status=404)


def test_a_log_that_nobody_could_keep_is_said_to_be_lost(parts: Parts, account: Account, job_id: str) -> None:
    made.running(parts, account, job_id)
    made.failed(parts, account, job_id)
    refused(log(account, job_id), "attempt", "lost before it could", status=404)


def test_another_projects_log_is_not_there(parts: Parts, accounts: Accounts, account: Account, job_id: str) -> None:
    made.running(parts, account, job_id)
    parts.store.put(layout.run(job_id, 1, "trainer.log"), b"secret\n")
    assert log(accounts.make("stranger"), job_id).status_code == 404
    with transaction(parts.sessions) as session:
        assert attempts.log_of(session, account.tenant, job_id, None).filename == f"{job_id}-attempt-1.log"
