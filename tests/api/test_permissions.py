"""/v1/fine_tuning/checkpoints/{checkpoint}/permissions, and what a permission permits."""

import httpx
import pytest
from openai import OpenAI

from core.db.session import transaction
from core.db.tables import BaseModel, Organization, Project
from core.wiring import Parts
from tests.api import made
from tests.api.test_jobs import create, refused
from tests.api.test_live import served
from tests.conftest import Account, Accounts


@pytest.fixture
def job_id(parts: Parts, account: Account, base_model: BaseModel) -> str:
    found: str = create(account).json()["id"]
    made.running(parts, account, found)
    return found


@pytest.fixture
def checkpoint(parts: Parts, account: Account, job_id: str) -> str:
    return made.checkpointed(parts, account, job_id, 4)


def url(checkpoint: str) -> str:
    return f"/v1/fine_tuning/checkpoints/{checkpoint}/permissions"


def test_the_sdk_in_strict_mode_shares_lists_and_withdraws(
    parts: Parts, accounts: Accounts, account: Account, checkpoint: str
) -> None:
    friends = [accounts.make(name).tenant.project_id for name in ("friend", "second", "third")]
    with served(parts) as (base, _):
        client = OpenAI(base_url=f"{base}/v1", api_key=account.key, _strict_response_validation=True)
        permissions = client.fine_tuning.checkpoints.permissions
        shared = list(permissions.create(checkpoint, project_ids=friends))
        assert [entry.project_id for entry in shared] == friends
        assert all(entry.id.startswith("cp_") for entry in shared)
        # Page by page, both ways.
        assert [entry.project_id for entry in permissions.list(checkpoint, limit=1)] == sorted_newest_first(shared)
        forward = permissions.list(checkpoint, limit=2, order="ascending")
        assert [entry.project_id for entry in forward] == sorted_newest_first(shared)[::-1]
        assert [entry.id for entry in permissions.list(checkpoint, project_id=friends[1])] == [shared[1].id]
        with pytest.deprecated_call():
            page = permissions.retrieve(checkpoint)
        assert (page.first_id, page.last_id) == (page.data[0].id, page.data[-1].id)
        gone = permissions.delete(shared[0].id, fine_tuned_model_checkpoint=checkpoint)
        assert (gone.id, gone.deleted, gone.object) == (shared[0].id, True, "checkpoint.permission")
        assert {entry.id for entry in permissions.list(checkpoint)} == {shared[1].id, shared[2].id}


def sorted_newest_first(shared: list) -> list[str]:  # type: ignore[type-arg]  # the SDK's permissions
    """Those of one request were made at one time, so their ids decide."""
    return [entry.project_id for entry in sorted(shared, key=lambda entry: entry.id, reverse=True)]


def test_sharing_twice_gives_the_first_permission_again(accounts: Accounts, account: Account, checkpoint: str) -> None:
    friend = accounts.make("friend").tenant.project_id
    first = account.http.post(url(checkpoint), json={"project_ids": [friend]}).json()
    again = account.http.post(url(checkpoint), json={"project_ids": [friend, friend]}).json()
    assert again["data"] == first["data"]
    assert len(account.http.get(url(checkpoint)).json()["data"]) == 1


def test_only_projects_of_the_organization_can_be_named(parts: Parts, account: Account, checkpoint: str) -> None:
    with transaction(parts.sessions) as session:
        session.add(Organization(id="org-else", name="else"))
        session.flush()
        session.add(Project(id="proj_else", organization_id="org-else", name="default"))
    for project_id in ("proj_else", "proj_none"):
        answer = account.http.post(url(checkpoint), json={"project_ids": [account.tenant.project_id, project_id]})
        refused(answer, "project_ids[1]", project_id)
    assert account.http.get(url(checkpoint)).json()["data"] == []
    refused(account.http.post(url(checkpoint), json={"project_ids": []}), "project_ids")
    refused(account.http.post(url(checkpoint), json={"project_ids": "proj_else"}), "project_ids")


def test_what_is_not_ones_own_can_neither_be_shared_nor_looked_at(
    accounts: Accounts, account: Account, checkpoint: str
) -> None:
    stranger = accounts.make("stranger")
    body = {"project_ids": [stranger.tenant.project_id]}
    made_one = account.http.post(url(checkpoint), json=body).json()["data"][0]["id"]
    for name in (checkpoint, "ft:none", checkpoint.replace("step-4", "step-5")):
        refused(stranger.http.post(url(name), json=body), "model", status=404)
        refused(stranger.http.get(url(name)), "model", status=404)
        assert stranger.http.delete(f"{url(name)}/{made_one}").status_code == 404
    assert len(account.http.get(url(checkpoint)).json()["data"]) == 1
    refused(account.http.get(url(checkpoint), params={"after": "cp_none"}), "after")


def test_a_permission_lets_a_project_see_and_download_until_it_is_withdrawn(
    parts: Parts, accounts: Accounts, account: Account, job_id: str, checkpoint: str
) -> None:
    model = made.succeeded(parts, account, job_id)
    friend, bystander = accounts.make("friend"), accounts.make("bystander")
    for name in (model, checkpoint):
        paths = [f"/v1/models/{name}/artifacts"] + [f"/v1/models/{name}"] * (name == model)
        assert [friend.http.get(path).status_code for path in paths] == [404] * len(paths)
        body = {"project_ids": [friend.tenant.project_id]}
        permission = account.http.post(url(name), json=body).json()["data"][0]["id"]
        assert [friend.http.get(path).status_code for path in paths] == [200] * len(paths)
        assert [bystander.http.get(path).status_code for path in paths] == [404] * len(paths)
        entry = friend.http.get(paths[0]).json()["files"][0]
        assert httpx.get(entry["url"]).status_code == 200
        # To use is not to own.
        assert friend.http.delete(f"/v1/models/{name}").status_code in (403, 404)
        account.http.delete(f"{url(name)}/{permission}")
        assert [friend.http.get(path).status_code for path in paths] == [404] * len(paths)
    assert account.http.get(f"/v1/models/{model}").status_code == 200
