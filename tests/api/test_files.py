"""/v1/files, with a real object store."""

import gzip
import hashlib

import httpx
import pytest
from sqlalchemy import select

from core.db.session import transaction
from core.db.tables import WorkItem
from core.storage.s3 import S3Store
from core.wiring import Parts
from tests.conftest import Account, Accounts, chat_rows


def upload(account: Account, content: bytes, purpose: str = "fine-tune", **form: str) -> httpx.Response:
    return account.http.post("/v1/files", data={"purpose": purpose, **form}, files={"file": ("träin.jsonl", content)})


def test_a_good_file_is_processed_and_comes_back_byte_for_byte(account: Account) -> None:
    content = chat_rows(12)
    file = upload(account, content).json()
    assert (file["object"], file["status"], file["bytes"], file["filename"]) == (
        "file",
        "processed",
        len(content),
        "träin.jsonl",
    )
    assert file["ext"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert file["ext"]["report"]["rows"] == 12
    answer = account.http.get(f"/v1/files/{file['id']}/content")
    assert answer.status_code == 302
    # The URL needs no key, and the store's answer names the file.
    direct = httpx.get(answer.headers["location"])
    assert direct.content == content
    assert "tr%C3%A4in.jsonl" in direct.headers["content-disposition"]


def test_a_bad_file_is_kept_with_every_bad_line(account: Account) -> None:
    rows = chat_rows(12).splitlines()
    for line in (2, 5, 11):
        rows[line - 1] = b'{"messages": []}'
    file = upload(account, b"\n".join(rows)).json()
    assert file["status"] == "error"
    assert file["ext"]["report"]["fault_count"] >= 3
    assert {fault["line"] for fault in file["ext"]["report"]["faults"]} == {2, 5, 11}
    for line in (2, 5, 11):
        assert f"line {line}:" in file["status_details"]
    assert account.http.get(f"/v1/files/{file['id']}").json() == file


def test_a_hundred_faults_are_kept_and_all_are_counted(account: Account) -> None:
    file = upload(account, b"{\n" * 250).json()
    assert file["ext"]["report"]["fault_count"] == 250
    assert len(file["ext"]["report"]["faults"]) == 100
    assert "line 100:" in file["status_details"]
    assert "150 more" in file["status_details"]


def test_a_file_in_several_parts_is_whole(account: Account, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.settings, "inline_check_bytes", 1024)
    content = chat_rows(120_000)
    assert len(content) > 9 * 1024 * 1024
    file = upload(account, content).json()
    # Too long to be checked on the way in: a prepare worker has the last word.
    assert file["status"] == "uploaded"
    assert parts.doorbell.kinds == ["prepare"]  # type: ignore[attr-defined]  # the tests' own doorbell
    location = account.http.get(f"/v1/files/{file['id']}/content").headers["location"]
    assert hashlib.sha256(httpx.get(location).content).hexdigest() == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.json", b"[" + chat_rows(12).replace(b"\n", b",")[:-1] + b"]"),
        ("train.csv", b"prompt,completion\n" + b"a,b\n" * 12),
        ("train.jsonl.gz", gzip.compress(chat_rows(12))),
        # The name says one thing and the bytes another: bytes are believed.
        ("train.jsonl", gzip.compress(chat_rows(12))),
        ("train.jsonl", b"PAR1" + bytes(100)),
    ],
)
def test_what_is_no_plain_jsonl_is_left_to_a_prepare_worker(
    account: Account, parts: Parts, name: str, content: bytes
) -> None:
    answer = account.http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": (name, content)}).json()
    assert (answer["status"], answer["ext"]["report"]) == ("uploaded", None)
    assert parts.doorbell.kinds == ["prepare"]  # type: ignore[attr-defined]  # the tests' own doorbell
    with transaction(parts.sessions) as session:
        assert session.scalars(select(WorkItem.subject_id)).all() == [answer["id"]]


def test_jsonl_by_another_name_is_checked_at_once(account: Account) -> None:
    files = {"file": ("train.csv", chat_rows(12))}
    answer = account.http.post("/v1/files", data={"purpose": "fine-tune"}, files=files).json()
    assert (answer["status"], answer["ext"]["report"]["container"]) == ("processed", "jsonl")


def test_foreign_rows_are_named_in_the_report(account: Account) -> None:
    file = upload(account, b'{"instruction": "a", "input": "", "output": "b"}\n' * 12).json()
    assert (file["status"], file["ext"]["format"]) == ("processed", "chat")
    assert file["ext"]["report"]["converted_from"] == "alpaca"
    assert "output became the assistant's" in file["ext"]["report"]["conversion"]


def test_too_many_bytes_are_a_413_and_leave_nothing(
    account: Account, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(parts.store.list("files/"))
    monkeypatch.setattr(parts.settings, "max_file_bytes", 100)
    answer = upload(account, chat_rows(12))
    assert answer.status_code == 413
    assert answer.json()["error"]["param"] == "file"
    assert set(parts.store.list("files/")) == before
    assert account.http.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"purpose": "nonsense"}, "purpose"),
        (
            {"purpose": "fine-tune", "expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
            "expires_after.anchor",
        ),
        (
            {"purpose": "fine-tune", "expires_after[anchor]": "created_at", "expires_after[seconds]": "1"},
            "expires_after.seconds",
        ),
        ({}, "purpose"),
    ],
)
def test_a_wrong_form_names_its_field_and_leaves_nothing(
    account: Account, parts: Parts, form: dict[str, str], param: str
) -> None:
    before = set(parts.store.list("files/"))
    answer = account.http.post("/v1/files", data=form, files={"file": ("a.jsonl", chat_rows(12))})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert set(parts.store.list("files/")) == before


def test_what_is_no_form_is_a_400(account: Account) -> None:
    boundary = {"content-type": "multipart/form-data; boundary=x"}
    for content, headers in (
        (b"{}", {"content-type": "application/json"}),
        (b"", boundary),
        (b"--x\r\nnonsense", boundary),
        (b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nab', boundary),
    ):
        answer = account.http.post("/v1/files", content=content, headers=headers)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"]


def test_the_purpose_may_come_after_the_file(account: Account) -> None:
    body = (
        b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        + chat_rows(12)
        + b'\r\n--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--x--\r\n'
    )
    answer = account.http.post("/v1/files", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.json()["status"] == "processed"


def test_expiry_is_told(account: Account) -> None:
    form = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = upload(account, chat_rows(12), **form).json()
    assert abs(file["expires_at"] - file["created_at"] - 3600) <= 1


def test_deleting_removes_row_and_object(account: Account, parts: Parts) -> None:
    file = upload(account, chat_rows(12)).json()
    assert account.http.delete(f"/v1/files/{file['id']}").json() == {
        "id": file["id"],
        "object": "file",
        "deleted": True,
    }
    assert account.http.get(f"/v1/files/{file['id']}").status_code == 404
    assert parts.store.size(f"files/{file['id']}") is None


def test_a_file_that_a_live_job_needs_stays(account: Account, base_model: object) -> None:
    file = upload(account, chat_rows(12)).json()
    job = account.http.post("/v1/fine_tuning/jobs", json={"model": "attune-tiny", "training_file": file["id"]}).json()
    answer = account.http.delete(f"/v1/files/{file['id']}")
    assert answer.status_code == 409
    assert job["id"] in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    account.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    assert account.http.delete(f"/v1/files/{file['id']}").status_code == 200


def test_lists_filter_order_and_page(account: Account) -> None:
    made = [upload(account, chat_rows(12)).json()["id"] for _ in range(3)]
    upload(account, b"anything", purpose="user_data")
    page = account.http.get("/v1/files", params={"purpose": "fine-tune", "order": "asc", "limit": 2}).json()
    assert [file["id"] for file in page["data"]] == made[:2]
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, made[0], made[1])
    # The cursor's own row may be deleted between two pages.
    account.http.delete(f"/v1/files/{made[1]}")
    rest = account.http.get("/v1/files", params={"purpose": "fine-tune", "order": "asc", "after": made[1]}).json()
    assert [file["id"] for file in rest["data"]] == made[2:]
    assert account.http.get("/v1/files", params={"after": "file-none"}).status_code == 400
    assert account.http.get("/v1/files", params={"limit": 0}).status_code == 400


def test_another_projects_file_is_not_there(accounts: Accounts, account: Account) -> None:
    file = upload(account, chat_rows(12)).json()
    stranger = accounts.make("stranger")
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert stranger.http.request(method, f"/v1/files/{file['id']}{path}").status_code == 404


def test_urls_are_signed_for_the_address_that_clients_reach(parts: Parts) -> None:
    """In a container network the store's own address means nothing to a client."""
    store = S3Store(parts.settings.model_copy(update={"s3_public_url": "https://files.example.org"}))
    inside = parts.store.presigned("files/x", filename="a", seconds=60)
    outside = store.presigned("files/x", filename="a", seconds=60)
    assert outside.startswith(f"https://files.example.org/{parts.settings.s3_bucket}/files/x?")
    assert "X-Amz-SignedHeaders=host" in outside
    # The host is part of what is signed, so a URL can't be made for one address and used at another.
    assert outside.split("X-Amz-Signature=")[1] != inside.split("X-Amz-Signature=")[1]
