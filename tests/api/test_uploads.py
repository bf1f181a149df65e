"""/v1/uploads, with a real object store."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from core import clock
from core.config import MIB
from core.db.session import transaction
from core.db.tables import Upload, UploadPart, WorkItem
from core.services import joins
from core.wiring import Parts
from tests.conftest import Account, Accounts
from worker import reconciler


def create(account: Account, size: int, **more: Any) -> httpx.Response:
    body = {"bytes": size, "filename": "träin.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"} | more
    return account.http.post("/v1/uploads", json=body)


def send(account: Account, upload: str, data: bytes) -> httpx.Response:
    return account.http.post(f"/v1/uploads/{upload}/parts", files={"data": ("upload", data)})


def filled(account: Account, pieces: list[bytes], **more: Any) -> tuple[str, list[str]]:
    """An upload with these parts."""
    upload = create(account, sum(map(len, pieces)), **more).json()["id"]
    return upload, [send(account, upload, piece).json()["id"] for piece in pieces]


def complete(account: Account, upload: str, part_ids: list[str], **more: Any) -> httpx.Response:
    return account.http.post(f"/v1/uploads/{upload}/complete", json={"part_ids": part_ids} | more)


def cancel(account: Account, upload: str) -> httpx.Response:
    return account.http.post(f"/v1/uploads/{upload}/cancel")


def stored(parts: Parts, upload: str) -> list[str]:
    return list(parts.store.list(f"uploads/{upload}/"))


def fault(answer: httpx.Response) -> tuple[int, str | None, str]:
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["message"]


def outlive(parts: Parts, upload: str) -> None:
    """The upload's time is over."""
    with transaction(parts.sessions) as session:
        session.get_one(Upload, upload).expires_at = clock.in_seconds(-1)


def test_an_upload_is_openais_object(account: Account) -> None:
    upload = create(account, 1000).json()
    assert upload == {
        "id": upload["id"],
        "object": "upload",
        "bytes": 1000,
        "created_at": upload["created_at"],
        "expires_at": upload["expires_at"],
        "filename": "träin.jsonl",
        "purpose": "fine-tune",
        "status": "pending",
        "file": None,
    }
    assert upload["id"].startswith("upload_")
    assert abs(upload["expires_at"] - upload["created_at"] - 3600) <= 1
    part = send(account, upload["id"], b"x" * 1000).json()
    assert part == {
        "id": part["id"],
        "object": "upload.part",
        "created_at": part["created_at"],
        "upload_id": upload["id"],
    }
    assert part["id"].startswith("part_")


def test_completing_gives_a_file_whose_content_is_not_there_yet(account: Account, parts: Parts) -> None:
    upload, ids = filled(account, [b"ab", b"cde"], filename="a/b.txt", purpose="user_data")
    done = complete(account, upload, ids).json()
    assert done["status"] == "completed"
    file = done["file"]
    assert (file["object"], file["status"], file["bytes"], file["filename"]) == ("file", "uploaded", 5, "b.txt")
    assert file["ext"]["sha256"] is None
    assert account.http.get(f"/v1/files/{file['id']}").json() == file
    status, _, message = fault(account.http.get(f"/v1/files/{file['id']}/content"))
    assert status == 409
    assert "being joined" in message
    assert parts.doorbell.kinds == ["prepare"]  # type: ignore[attr-defined]  # the tests' own doorbell
    with transaction(parts.sessions) as session:
        item = session.scalars(select(WorkItem)).one()
    assert (item.kind, item.subject_id, item.status) == ("join_upload", upload, "waiting")


def test_completing_twice_makes_one_file(account: Account, parts: Parts) -> None:
    upload, ids = filled(account, [b"ab", b"cde"])
    first = complete(account, upload, ids, md5="AB" * 16).json()
    assert complete(account, upload, ids, md5="ab" * 16).json() == first
    assert len(account.http.get("/v1/files").json()["data"]) == 1
    with transaction(parts.sessions) as session:
        assert len(session.scalars(select(WorkItem)).all()) == 1
    # Another order, or another md5, is another wish.
    assert fault(complete(account, upload, ids[::-1], md5="ab" * 16))[0] == 409
    status, _, message = fault(complete(account, upload, ids))
    assert status == 409
    assert first["file"]["id"] in message


def test_the_files_time_begins_with_the_file(account: Account) -> None:
    upload, ids = filled(account, [b"ab"], expires_after={"anchor": "created_at", "seconds": 7200})
    file = complete(account, upload, ids).json()["file"]
    assert abs(file["expires_at"] - file["created_at"] - 7200) <= 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": "12"}, "bytes"),
        ({"bytes": True}, "bytes"),
        ({"bytes": None}, "bytes"),
        ({"filename": ""}, "filename"),
        ({"mime_type": ""}, "mime_type"),
        ({"mime_type": 3}, "mime_type"),
        ({"purpose": "nonsense"}, "purpose"),
        ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3599}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "created_at"}}, "expires_after.seconds"),
    ],
)
def test_a_wrong_create_names_its_field(account: Account, body: dict[str, Any], param: str) -> None:
    answer = create(account, 5, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("field", ["bytes", "filename", "mime_type", "purpose"])
def test_a_missing_field_is_named(account: Account, field: str) -> None:
    body = {"bytes": 5, "filename": "a", "mime_type": "text/plain", "purpose": "user_data"}
    del body[field]
    assert fault(account.http.post("/v1/uploads", json=body))[:2] == (400, field)


def test_a_file_over_the_limit_is_a_413_before_any_byte(account: Account, parts: Parts) -> None:
    limit = parts.settings.max_file_bytes
    assert create(account, limit).status_code == 200
    assert fault(create(account, limit + 1))[:2] == (413, "bytes")


def test_a_part_over_the_limit_is_a_413_and_leaves_nothing(
    account: Account, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.settings, "max_part_bytes", 9 * MIB)
    upload = create(account, 64 * MIB).json()["id"]
    # More than a piece has gone to the store by then.
    assert fault(send(account, upload, bytes(9 * MIB + 1)))[:2] == (413, "data")
    assert stored(parts, upload) == []
    assert send(account, upload, bytes(9 * MIB)).status_code == 200
    assert len(stored(parts, upload)) == 1
    # And a part can't be larger than the whole.
    small = create(account, 5).json()["id"]
    assert fault(send(account, small, b"123456"))[:2] == (413, "data")
    assert rows(parts, small) == []


def rows(parts: Parts, upload: str) -> list[UploadPart]:
    with transaction(parts.sessions) as session:
        return list(session.scalars(select(UploadPart).where(UploadPart.upload_id == upload)))


def test_what_is_no_part_is_a_400_and_leaves_nothing(account: Account, parts: Parts) -> None:
    upload = create(account, 5).json()["id"]
    boundary = {"content-type": "multipart/form-data; boundary=x"}
    head = b'--x\r\ncontent-disposition: form-data; name="data"'
    other = b'--x\r\ncontent-disposition: form-data; name="other"\r\n\r\nab\r\n--x--\r\n'
    for content, headers, param, said in (
        (b"{}", {"content-type": "application/json"}, None, "multipart/form-data"),
        (b"", boundary, None, "ended before"),
        (head + b'; filename="upload"\r\n\r\nab', boundary, None, "ended before"),
        (head + b"\r\n\r\nab\r\n--x--\r\n", boundary, "data", "must be a file"),
        (head + b'; filename="upload"\r\n\r\n\r\n--x--\r\n', boundary, "data", "empty"),
        (other, boundary, "data", "missing"),
    ):
        answer = account.http.post(f"/v1/uploads/{upload}/parts", content=content, headers=headers)
        assert fault(answer)[:2] == (400, param), answer.text
        assert said in answer.json()["error"]["message"]
    assert stored(parts, upload) == []
    assert rows(parts, upload) == []


def test_parts_may_be_sent_again_but_not_for_ever(
    account: Account, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.services.uploads._SPARE", 0)
    upload = create(account, 5).json()["id"]
    assert len({send(account, upload, b"abcde").json()["id"] for _ in range(2)}) == 2
    assert fault(send(account, upload, b"a"))[:2] == (413, "data")
    monkeypatch.setattr("core.services.uploads.MAX_PARTS", 2)
    assert fault(send(account, upload, b"a"))[0] == 409
    assert len(stored(parts, upload)) == 2


def test_unknown_and_repeated_parts_are_named_by_their_place(account: Account) -> None:
    upload, ids = filled(account, [b"ab", b"cd", b"ef"])
    _, others = filled(account, [b"ef"])
    for wrong, place in (
        (["part_none", *ids[1:]], 0),
        ([*ids[:2], others[0]], 2),
        ([ids[0], ids[1], ids[0]], 2),
        ([ids[0], ids[0], ids[1]], 1),
    ):
        status, param, message = fault(complete(account, upload, wrong))
        assert (status, param) == (400, f"part_ids[{place}]")
        assert wrong[place] in message
    # Nothing of it has ended the upload.
    assert complete(account, upload, ids).status_code == 200


def test_a_part_that_did_not_come_in_whole_does_not_count(account: Account, parts: Parts) -> None:
    """The API was killed while the part came in: its row is there, and nobody was told its id."""
    upload, ids = filled(account, [b"ab", b"cd"])
    with transaction(parts.sessions) as session:
        session.get_one(UploadPart, ids[1]).bytes = None
    assert fault(complete(account, upload, ids))[:2] == (400, "part_ids[1]")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "part_ids"),
        ({"part_ids": []}, "part_ids"),
        ({"part_ids": [3]}, "part_ids[0]"),
        ({"part_ids": ["part_a"], "md5": "abc"}, "md5"),
        ({"part_ids": ["part_a"], "md5": "g" * 32}, "md5"),
        ({"part_ids": ["part_a"] * 10_001}, "part_ids"),
    ],
)
def test_a_wrong_completion_names_its_field(account: Account, body: dict[str, Any], param: str) -> None:
    upload = create(account, 5).json()["id"]
    assert fault(account.http.post(f"/v1/uploads/{upload}/complete", json=body))[:2] == (400, param)


def test_the_total_must_be_what_was_announced(account: Account) -> None:
    upload = create(account, 5).json()["id"]
    ids = [send(account, upload, piece).json()["id"] for piece in (b"ab", b"cd", b"ef", b"e")]
    for chosen, total in ((ids[:2], "4"), (ids[:3], "6")):
        status, param, message = fault(complete(account, upload, chosen))
        assert (status, param) == (400, "part_ids")
        assert f"{total} bytes" in message
        assert "5." in message
    assert complete(account, upload, [ids[0], ids[1], ids[3]]).json()["file"]["bytes"] == 5


def test_cancelling_removes_the_parts(account: Account, parts: Parts) -> None:
    upload, ids = filled(account, [b"ab", b"cde"])
    assert len(stored(parts, upload)) == 2
    answer = cancel(account, upload).json()
    assert (answer["status"], answer["file"]) == ("cancelled", None)
    assert stored(parts, upload) == []
    assert rows(parts, upload) == []
    # A retry of it finds what it wanted.
    assert cancel(account, upload).json() == answer
    for refused in (send(account, upload, b"ab"), complete(account, upload, ids)):
        status, _, message = fault(refused)
        assert status == 409
        assert "cancelled" in message
        assert refused.headers["x-should-retry"] == "false"
    assert stored(parts, upload) == []
    assert account.http.get("/v1/files").json()["data"] == []


def test_a_completed_upload_takes_nothing_more(account: Account, parts: Parts) -> None:
    upload, ids = filled(account, [b"ab", b"cde"])
    complete(account, upload, ids)
    for refused in (send(account, upload, b"ab"), cancel(account, upload)):
        status, _, message = fault(refused)
        assert status == 409
        assert "completed" in message
    assert len(stored(parts, upload)) == 2


def test_an_expired_upload_takes_nothing_more_and_is_swept(account: Account, parts: Parts) -> None:
    upload, ids = filled(account, [b"ab", b"cde"])
    other, _ = filled(account, [b"ab"])
    outlive(parts, upload)
    for _ in range(2):  # before the sweep, and after it
        for refused in (send(account, upload, b"ab"), complete(account, upload, ids), cancel(account, upload)):
            status, _, message = fault(refused)
            assert status == 409
            assert "expired" in message
        reconciler.sweep(parts)
        with transaction(parts.sessions) as session:
            assert session.get_one(Upload, upload).status == "expired"
            assert session.get_one(Upload, other).status == "pending"
    assert stored(parts, upload) == []
    assert rows(parts, upload) == []
    assert len(stored(parts, other)) == 1


def test_a_part_whose_upload_ends_meanwhile_is_refused_and_leaves_nothing(
    account: Account, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = create(account, 5).json()["id"]
    put = parts.store.put

    def put_then_cancel(key: str, data: bytes, **more: Any) -> None:
        put(key, data, **more)
        assert cancel(account, upload).status_code == 200

    monkeypatch.setattr(parts.store, "put", put_then_cancel)
    assert fault(send(account, upload, b"abcde"))[0] == 409
    assert stored(parts, upload) == []
    assert rows(parts, upload) == []


def test_a_part_that_was_cut_off_with_its_server_is_swept(account: Account, parts: Parts) -> None:
    """Killed between the part's bytes and their row's last word, and once in the middle of a large part."""
    upload, ids = filled(account, [b"ab", b"cde"])
    begun = parts.store.multipart(f"uploads/{upload}/{ids[1]}")
    begun.part(bytes(5 * MIB))
    with transaction(parts.sessions) as session:
        for id in ids:
            session.get_one(UploadPart, id).bytes = None
        session.get_one(UploadPart, ids[1]).created_at = clock.in_seconds(-2 * parts.settings.upload_seconds)
    cancel(account, upload)
    # The first is young: its request may still be under way, and then removes it itself.
    assert [row.id for row in rows(parts, upload)] == [ids[0]]
    assert stored(parts, upload) == [f"uploads/{upload}/{ids[0]}"]
    with pytest.raises(Exception, match="NoSuchUpload"):
        begun.part(bytes(5 * MIB))
    with transaction(parts.sessions) as session:
        session.get_one(UploadPart, ids[0]).created_at = clock.in_seconds(-2 * parts.settings.upload_seconds)
    joins.clear(parts.sessions, parts.store, parts.settings)
    assert stored(parts, upload) == []


def test_parts_come_in_parallel(account: Account, parts: Parts) -> None:
    pieces = [bytes([n]) * 1000 for n in range(16)]
    upload = create(account, 16_000).json()["id"]
    with ThreadPoolExecutor(8) as pool:
        ids = [answer.json()["id"] for answer in pool.map(lambda piece: send(account, upload, piece), pieces)]
    assert len(set(ids)) == 16
    found = [hashlib.sha256(parts.store.get(f"uploads/{upload}/{id}")).digest() for id in ids]
    assert found == [hashlib.sha256(piece).digest() for piece in pieces]
    assert complete(account, upload, ids[::-1]).status_code == 200


def test_another_projects_upload_is_not_there(accounts: Accounts, account: Account, parts: Parts) -> None:
    upload, ids = filled(account, [b"ab", b"cde"])
    stranger = accounts.make("stranger")
    own = create(stranger, 5).json()["id"]
    for id in (upload, "upload_none"):
        for answer in (send(stranger, id, b"ab"), complete(stranger, id, ids), cancel(stranger, id)):
            status, _, message = fault(answer)
            assert status == 404
            assert message == f"No such upload: '{id}'."
    # Nor can its parts be taken into one's own.
    assert fault(complete(stranger, own, ids))[:2] == (400, "part_ids[0]")
    assert complete(account, upload, ids).status_code == 200


def test_uploads_can_not_be_looked_up_and_say_so(account: Account) -> None:
    upload = create(account, 5).json()["id"]
    answer = account.http.get(f"/v1/uploads/{upload}")
    assert answer.status_code == 404
    assert "can't be looked up" in answer.json()["error"]["message"]


def test_no_byte_touches_the_disk(account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    upload, ids = filled(account, [bytes(9 * MIB), b"ab"])
    assert complete(account, upload, ids).status_code == 200
