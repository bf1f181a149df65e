"""The data files a new job names: mixed ones, faulty ones, ones read in another way; without workers."""

import json
from typing import Any

import pytest
from sqlalchemy import select, update

from core.db.session import transaction
from core.db.tables import BaseModel, File, Job
from core.wiring import Parts
from tests.api.test_jobs import create, refused, upload
from tests.conftest import Account, Accounts, chat_rows

BAD = b'{"messages": [{"role": "bot", "content": "x"}]}\n'


@pytest.fixture(autouse=True)
def _base(base_model: BaseModel) -> None:
    """Every test here has a base model to name."""


def mixing(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"data": {"mix": list(entries)}}


def test_mixed_files_are_checked_like_the_training_file(account: Account, accounts: Accounts) -> None:
    good, bad = upload(account), upload(account, chat_rows(12) + BAD)
    preference = {"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}
    message = {"role": "assistant", "content": "a"}
    preference |= {"input": {"messages": [message | {"role": "user"}]}}
    preference |= {"preferred_output": [message], "non_preferred_output": [message]}
    other = upload(account, (json.dumps(preference) + "\n").encode() * 12)
    foreign = upload(accounts.make("stranger"))
    for id, words in (("file-none", "no file"), (bad, "line 13"), (other, "preference"), (foreign, "no file")):
        answer = create(account, ext=mixing({"file_id": good}, {"file_id": id}))
        error = refused(answer, "ext.data.mix[1].file_id", words)
        assert error["code"] == "invalid_training_file"
    # Few rows are enough for a file that is mixed in.
    few = upload(account, chat_rows(2))
    assert create(account, ext=mixing({"file_id": good}, {"file_id": few, "weight": 0.1})).status_code == 200


def test_a_file_is_mixed_in_once(account: Account) -> None:
    train, other = upload(account), upload(account)
    refused(create(account, training_file=train, ext=mixing({"file_id": train})), "ext.data.mix[0].file_id", "twice")
    twice = mixing({"file_id": other}, {"file_id": other})
    refused(create(account, training_file=train, ext=twice), "ext.data.mix[1].file_id", "twice")


def test_a_file_that_a_live_job_mixes_in_stays(account: Account) -> None:
    file_id = upload(account)
    job = create(account, ext=mixing({"file_id": file_id, "weight": 0.5})).json()
    answer = account.http.delete(f"/v1/files/{file_id}")
    assert answer.status_code == 409
    assert job["id"] in answer.json()["error"]["message"]
    account.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    assert account.http.delete(f"/v1/files/{file_id}").status_code == 200


def test_a_split_and_a_validation_file_exclude_each_other(account: Account) -> None:
    split = {"data": {"validation_fraction": 0.1}}
    path = "ext.data.validation_fraction"
    refused(create(account, validation_file=upload(account), ext=split), path, "exclude")
    assert create(account, ext=split).status_code == 200


def test_a_faulty_file_is_for_jobs_that_allow_as_many_bad_rows(account: Account) -> None:
    file_id = upload(account, chat_rows(12) + BAD)
    refused(create(account, training_file=file_id), "training_file", "line 13")
    few = {"data": {"max_invalid_fraction": 0.05}}
    refused(create(account, training_file=file_id, ext=few), "training_file", "1 of its 13 rows", "0.05", "line 13")
    assert create(account, training_file=file_id, ext={"data": {"max_invalid_fraction": 0.1}}).status_code == 200
    # Nothing was recognised in this one, so that no share of it is good.
    hopeless = upload(account, b"{\n" * 20)
    refused(create(account, training_file=hopeless, ext={"data": {"max_invalid_fraction": 1}}), "training_file")


def test_a_form_that_is_asked_for_overrides_the_files_verdict(account: Account) -> None:
    both = upload(account, b'{"messages": [], "text": "a"}\n' * 12)
    refused(create(account, training_file=both), "training_file", "has no messages")
    assert create(account, training_file=both, ext={"format": "text"}).status_code == 200
    refused(create(account, training_file=both, ext={"format": "chat"}), "training_file", "has no messages")
    refused(create(account, training_file=both, ext={"format": "hf_preference"}), "training_file", "preference rows")
    refused(create(account, ext={"format": "alpacca"}), "ext.format", "alpaca", "sharegpt", "hf_preference")


def test_labelled_rows_are_kept_but_fit_no_method_yet(account: Account) -> None:
    file_id = upload(account, b'{"prompt": "a", "completion": "b", "label": true}\n' * 12)
    assert account.http.get(f"/v1/files/{file_id}").json()["ext"]["format"] == "labelled"
    refused(create(account, training_file=file_id), "training_file", "labelled rows don't fit")


def test_a_live_job_of_another_project_keeps_no_file(account: Account, accounts: Accounts, parts: Parts) -> None:
    """Options are the user's own words: naming a stranger's file in them must not pin it."""
    file_id = upload(account)
    stranger = accounts.make("stranger")
    job = create(stranger).json()["id"]
    with transaction(parts.sessions) as session:
        session.execute(update(Job).where(Job.id == job).values(options=mixing({"file_id": file_id})))
        assert session.scalars(select(File.id).where(File.id == file_id)).one()
    assert account.http.delete(f"/v1/files/{file_id}").status_code == 200
