"""/v1/models/{model}/artifacts"""

import httpx
import pytest

from core.db.session import transaction
from core.db.tables import BaseModel
from core.wiring import Parts
from tests.api import made
from tests.api.test_jobs import create, refused
from tests.conftest import Account, Accounts


@pytest.fixture
def job_id(parts: Parts, account: Account, base_model: BaseModel) -> str:
    found: str = create(account).json()["id"]
    made.running(parts, account, found)
    return found


def test_every_file_can_be_downloaded_without_a_key(parts: Parts, account: Account, job_id: str) -> None:
    model = made.succeeded(parts, account, job_id)
    answer = account.http.get(f"/v1/models/{model}/artifacts").json()
    assert (answer["object"], answer["model"], answer["base_model"]) == ("model.artifacts", model, "attune-tiny")
    assert answer["expires_in"] == parts.settings.presigned_url_seconds
    assert [entry["path"] for entry in answer["files"]] == list(made.WEIGHTS)
    for entry in answer["files"]:
        got = httpx.get(entry["url"])
        assert got.text == entry["path"]
        assert int(got.headers["content-length"]) == entry["bytes"]
        assert entry["sha256"] == "c" * 64
        # A download that was cut off goes on.
        assert httpx.get(entry["url"], headers={"Range": "bytes=3-"}).text == entry["path"][3:]


def test_checkpoints_have_artifacts_before_there_is_a_model(parts: Parts, account: Account, job_id: str) -> None:
    name = made.checkpointed(parts, account, job_id, 4)
    answer = account.http.get(f"/v1/models/{name}/artifacts").json()
    assert httpx.get(answer["files"][0]["url"]).content == b"abc"
    made.succeeded(parts, account, job_id)
    assert account.http.get(f"/v1/models/{name}/artifacts").json()["files"][0]["path"] == "adapter_model.safetensors"


def test_a_name_with_a_slash_is_found_raw_and_encoded(parts: Parts, account: Account, base_model: BaseModel) -> None:
    with transaction(parts.sessions) as session:
        session.get_one(BaseModel, base_model.id).name = "acme/tiny"
    for name in ("acme/tiny", "acme%2Ftiny"):
        error = refused(account.http.get(f"/v1/models/{name}/artifacts"), "model", "'acme/tiny'", "base", status=404)
        assert error["code"] == "no_artifacts"
    model = create(account, model="acme/tiny").json()["id"]
    made.running(parts, account, model)
    name = made.succeeded(parts, account, model)
    assert "acme--tiny" in name
    assert len(account.http.get(f"/v1/models/{name.replace(':', '%3A')}/artifacts").json()["files"]) == 2


def test_a_file_that_was_deleted_is_not_offered(parts: Parts, account: Account, job_id: str) -> None:
    model = made.succeeded(parts, account, job_id)
    weights = account.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["result_files"][1]
    account.http.delete(f"/v1/files/{weights}")
    files = account.http.get(f"/v1/models/{model}/artifacts").json()["files"]
    assert [entry["path"] for entry in files] == ["manifest.json"]


def test_another_projects_weights_are_not_there(
    parts: Parts, accounts: Accounts, account: Account, job_id: str
) -> None:
    names = [made.checkpointed(parts, account, job_id, 4), made.succeeded(parts, account, job_id)]
    stranger = accounts.make("stranger")
    for name in (*names, "ft:none", "ft:attune-tiny:acme::12345678:ckpt-step-4"):
        error = refused(stranger.http.get(f"/v1/models/{name}/artifacts"), "model", name, status=404)
        assert error["code"] == "model_not_found"
