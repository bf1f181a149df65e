"""PATCH and DELETE of a job."""

from typing import Any

import httpx
import pytest

from core.db.session import transaction
from core.db.tables import Attempt, BaseModel, Checkpoint, Event, Job, Metric, Permission
from core.storage import store as layout
from core.wiring import Parts
from tests.api import made
from tests.api.test_jobs import create, refused, upload
from tests.conftest import Account, Accounts


@pytest.fixture
def job_id(account: Account, base_model: BaseModel) -> str:
    found: str = create(account, metadata={"team": "a"}, ext={"lora": {"rank": 4}}).json()["id"]
    return found


def url(job_id: str) -> str:
    return f"/v1/fine_tuning/jobs/{job_id}"


def test_metadata_is_replaced_removed_or_left_alone(account: Account, job_id: str) -> None:
    changed = account.http.patch(url(job_id), json={"metadata": {"n": "1"}})
    assert changed.json()["metadata"] == {"n": "1"}
    assert account.http.get(url(job_id)).json() == changed.json()
    for body, metadata in (({}, {"n": "1"}), ({"metadata": None}, None), ({"metadata": {}}, {})):
        assert account.http.patch(url(job_id), json=body).json()["metadata"] == metadata


def test_priority_is_changed_and_told(parts: Parts, account: Account, job_id: str) -> None:
    job = account.http.patch(url(job_id), json={"ext": {"resources": {"priority": "high"}}}).json()
    assert job["ext"]["options"] == {"lora": {"rank": 4}, "resources": {"priority": "high"}}
    events = account.http.get(f"{url(job_id)}/events").json()["data"]
    assert events[0]["message"] == "The priority is high now."
    with transaction(parts.sessions) as session:
        assert session.get_one(Job, job_id).priority == 1
    again = account.http.patch(url(job_id), json={}, headers={"X-Attune-Ext": '{"resources": {"priority": "low"}}'})
    assert again.json()["ext"]["options"]["resources"] == {"priority": "low"}
    with transaction(parts.sessions) as session:
        assert session.get_one(Job, job_id).priority == -1


def test_limits_are_changed_one_by_one_and_told(account: Account, job_id: str) -> None:
    account.http.patch(url(job_id), json={"ext": {"limits": {"max_seconds": 60, "on_limit": "fail"}}})
    job = account.http.patch(url(job_id), json={"ext": {"limits": {"max_seconds": 90}}}).json()
    assert job["ext"]["options"]["limits"] == {"max_seconds": 90, "on_limit": "fail"}
    events = account.http.get(f"{url(job_id)}/events").json()["data"]
    assert events[0]["message"] == "The limits are max_seconds 90.0, on_limit fail now."
    answer = account.http.patch(url(job_id), json={"ext": {"limits": {"max_cost": 5}}})
    refused(answer, "ext.limits.max_cost", "no prices")
    account.http.post(f"{url(job_id)}/cancel")
    refused(account.http.patch(url(job_id), json={"ext": {"limits": {"max_seconds": 9}}}), "ext.limits", status=409)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"model": "x"}, "model", ("metadata",)),
        ({"seed": 3, "metadata": {}}, "seed", ()),
        ({"metadata": {"a": 1}}, "metadata.a", ()),
        ({"metadata": {"a" * 65: "b"}}, "metadata." + "a" * 64, ("64",)),
        ({"ext": {"lora": {"rank": 8}}}, "ext.lora", ("can't be changed",)),
        ({"ext": {"resources": {"devices": 1}}}, "ext.resources.devices", ("can't be changed",)),
        ({"ext": {"resources": {"priorty": "low"}}}, "ext.resources.priorty", ("ext.resources.priority?",)),
        ({"ext": {"resources": {"priority": "urgent"}}}, "ext.resources.priority", ("low, normal, high",)),
        ({"ext": {"resources": {"priority": None}}}, "ext.resources.priority", ("low, normal, high",)),
        ({"ext": {"resources": 5}}, "ext.resources", ()),
        ({"ext": 5}, "ext", ()),
    ],
)
def test_everything_else_is_a_400_that_names_it(
    account: Account, job_id: str, body: dict[str, Any], param: str, words: tuple[str, ...]
) -> None:
    before = account.http.get(url(job_id)).json()
    refused(account.http.patch(url(job_id), json=body), param, *words)
    assert account.http.get(url(job_id)).json() == before


def test_an_ended_job_keeps_its_priority_and_takes_metadata(account: Account, job_id: str) -> None:
    account.http.post(f"{url(job_id)}/cancel")
    answer = account.http.patch(url(job_id), json={"ext": {"resources": {"priority": "high"}}})
    refused(answer, "ext.resources.priority", "cancelled", status=409)
    assert answer.headers["x-should-retry"] == "false"
    assert account.http.patch(url(job_id), json={"metadata": {"kept": "1"}}).json()["metadata"] == {"kept": "1"}


def test_another_projects_job_can_be_neither_changed_nor_deleted(
    accounts: Accounts, account: Account, job_id: str
) -> None:
    stranger = accounts.make("stranger")
    account.http.post(f"{url(job_id)}/cancel")
    assert stranger.http.patch(url(job_id), json={"metadata": {}}).status_code == 404
    assert stranger.http.delete(url(job_id)).status_code == 404
    assert account.http.get(url(job_id)).status_code == 200
    reader = accounts.make("default", ["read"])
    assert reader.http.delete(url(job_id)).status_code == 403
    assert reader.http.patch(url(job_id), json={"metadata": {}}).status_code == 403


def test_only_an_ended_job_can_be_deleted(parts: Parts, account: Account, job_id: str) -> None:
    refused(account.http.delete(url(job_id)), None, "validating_files", "cancel it before", status=409)
    made.running(parts, account, job_id)
    refused(account.http.delete(url(job_id)), None, "running", status=409)
    assert account.http.get(url(job_id)).status_code == 200


def test_deleting_a_job_leaves_its_model_and_nothing_else(parts: Parts, account: Account, job_id: str) -> None:
    made.running(parts, account, job_id)
    made.measured(parts, account, job_id, [2.0, 1.0])
    checkpoint = made.checkpointed(parts, account, job_id, 2)
    model = made.succeeded(parts, account, job_id)
    sharing = {"project_ids": [account.tenant.project_id]}
    for name in (model, checkpoint):
        account.http.post(f"/v1/fine_tuning/checkpoints/{name}/permissions", json=sharing)
    job = account.http.get(url(job_id)).json()
    kept = {layout.run(job_id, 1, "metrics.csv"), *(layout.run(job_id, 1, f"artifact/{path}") for path in made.WEIGHTS)}
    assert kept < set(parts.store.list(f"jobs/{job_id}/"))

    answer = account.http.delete(url(job_id)).json()
    assert answer == {"id": job_id, "object": "fine_tuning.job", "deleted": True}
    assert [made.count(parts, table, job_id) for table in (Event, Metric, Checkpoint)] == [0, 0, 0]
    assert set(parts.store.list(f"jobs/{job_id}/")) == kept
    assert list(parts.store.list(f"prepared/{job_id}/")) == []
    for path in ("", "/events", "/events?stream=true", "/checkpoints", "/metrics", "/logs"):
        assert account.http.get(f"{url(job_id)}{path}").status_code == 404
    assert account.http.get("/v1/fine_tuning/jobs").json()["data"] == []
    assert account.http.delete(url(job_id)).status_code == 404

    assert account.http.get(f"/v1/models/{model}").json()["ext"]["result_files"] == job["result_files"]
    assert model in [entry["id"] for entry in account.http.get("/v1/models").json()["data"]]
    for entry in account.http.get(f"/v1/models/{model}/artifacts").json()["files"]:
        assert httpx.get(entry["url"]).status_code == 200
    for file_id in job["result_files"]:
        assert httpx.get(account.http.get(f"/v1/files/{file_id}/content").headers["location"]).status_code == 200
    with transaction(parts.sessions) as session:
        assert [row.checkpoint for row in session.query(Permission)] == [model]
    # The data can go now, and the model after it.
    assert account.http.delete(f"/v1/files/{job['training_file']}").status_code == 200
    assert account.http.delete(f"/v1/models/{model}").status_code == 200
    assert set(parts.store.list(f"jobs/{job_id}/")) == {layout.run(job_id, 1, "metrics.csv")}
    assert made.count(parts, Attempt, job_id) == 1


def test_a_deleted_job_is_still_a_place_to_go_on_from(account: Account, base_model: BaseModel) -> None:
    file_id = upload(account)
    first, second, third = [create(account, training_file=file_id, seed=n).json()["id"] for n in range(3)]
    account.http.post(f"{url(second)}/cancel")
    account.http.delete(url(second))
    page = account.http.get("/v1/fine_tuning/jobs", params={"after": second}).json()
    assert [job["id"] for job in page["data"]] == [first]
    assert account.http.get(url(third)).status_code == 200


def test_the_request_that_made_a_deleted_job_makes_a_new_one(account: Account, base_model: BaseModel) -> None:
    file_id, key = upload(account), {"Idempotency-Key": "k"}
    first = create(account, training_file=file_id, headers=key).json()["id"]
    account.http.post(f"{url(first)}/cancel")
    account.http.delete(url(first))
    second = create(account, training_file=file_id, headers=key)
    assert second.status_code == 200
    assert second.json()["id"] != first
    assert create(account, training_file=file_id, headers=key).json()["id"] == second.json()["id"]
