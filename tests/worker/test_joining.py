"""Joining an upload's parts: whole, in order, checked on the way; and nothing left behind however it ends."""

import gzip
import hashlib
import random
import threading
import tracemalloc
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from core import clock
from core.config import MIB
from core.db.session import transaction
from core.db.tables import UploadPart, WorkItem
from core.queue import claims
from core.services import joins
from core.storage import s3
from core.storage.writer import Writer
from core.wiring import Parts
from tests.conftest import Account, chat_rows
from worker import joining, reconciler
from worker.lease import Lease
from worker.runner import Runner
from worker.slot import Slot


class Bench:
    """An account that uploads, and a prepare worker's slot that joins."""

    def __init__(self, parts: Parts, account: Account, folder: Path) -> None:
        self.parts = parts
        self.http = account.http
        self.draining = threading.Event()
        settings = parts.settings.model_copy(update={"home": folder})
        self.slot = Slot(0, "prepare", settings)
        self.runner = Runner(parts, self.slot, "w1", self.draining)

    def completed(self, pieces: list[bytes], order: list[int] | None = None, **more: Any) -> tuple[str, str]:
        """The ids of an upload of these pieces, completed in this order, and of its file."""
        order = order or list(range(len(pieces)))
        body = {
            "bytes": sum(len(pieces[n]) for n in order),
            "filename": more.pop("filename", "train.jsonl"),
            "mime_type": "text/jsonl",
            "purpose": more.pop("purpose", "user_data"),
        }
        upload = self.http.post("/v1/uploads", json=body).json()["id"]
        sent = [
            self.http.post(f"/v1/uploads/{upload}/parts", files={"data": ("upload", p)}).json()["id"] for p in pieces
        ]
        answer = self.http.post(
            f"/v1/uploads/{upload}/complete", json={"part_ids": [sent[n] for n in order], **more}
        ).json()
        assert answer["status"] == "completed", answer
        return upload, answer["file"]["id"]

    def file(self, id: str) -> Any:  # Any: JSON
        return self.http.get(f"/v1/files/{id}").json()

    def content(self, id: str) -> bytes:
        return httpx.get(self.http.get(f"/v1/files/{id}/content").headers["location"]).content

    def item(self) -> WorkItem:
        with transaction(self.parts.sessions) as session:
            return session.scalars(select(WorkItem)).one()

    def left(self, upload: str, file: str) -> list[str]:
        """Whatever lies in the store of the two, begun uploads included."""
        store = self.parts.store
        assert isinstance(store, s3.S3Store)
        begun = store._client.list_multipart_uploads(Bucket=store._bucket, Prefix=f"files/{file}").get("Uploads", [])
        keys = [*store.list(f"uploads/{upload}/"), *store.list(f"files/{file}"), *(entry["Key"] for entry in begun)]
        with transaction(self.parts.sessions) as session:
            rows = session.scalars(select(UploadPart.id).where(UploadPart.upload_id == upload)).all()
        return [*keys, *rows]

    def lose(self) -> None:
        """Whoever has the item is gone; the reconciler takes it back, and it may be claimed at once."""
        with transaction(self.parts.sessions) as session:
            session.scalars(select(WorkItem)).one().lease_until = clock.now() - timedelta(seconds=1)
        reconciler.sweep(self.parts)
        with transaction(self.parts.sessions) as session:
            session.scalars(select(WorkItem)).one().available_at = clock.now()


@pytest.fixture
def bench(parts: Parts, account: Account, tmp_path: Path) -> Bench:
    return Bench(parts, account, tmp_path)


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the parts that the store copied by itself."""
    sizes: list[int] = []
    copy = s3.S3Multipart.copy

    def seen(self: s3.S3Multipart, key: str, start: int, size: int) -> None:
        sizes.append(size)
        copy(self, key, start, size)

    monkeypatch.setattr(s3.S3Multipart, "copy", seen)
    return sizes


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize(
    ("sizes", "copies"),
    [
        ([7], []),
        ([3, 1, 2], []),
        ([6 * MIB], [6 * MIB]),
        # The last part may be as small as it likes; inner ones may not.
        ([5 * MIB, 5 * MIB, 1], [5 * MIB, 5 * MIB]),
        ([5 * MIB - 1, 5 * MIB - 1, 5 * MIB - 1], []),
        # Three bytes can't stand alone: the next part fills them up, and the rest of it is copied.
        ([3, 11 * MIB, 2], [6 * MIB + 3]),
        # What is left of the next part would be too small to stand alone as well.
        ([3, 9 * MIB, 10 * MIB], [6 * MIB + 3]),
        ([3 * MIB] * 4, []),
    ],
)
def test_parts_of_any_sizes_become_their_bytes(
    bench: Bench, copied: list[int], sizes: list[int], copies: list[int]
) -> None:
    pieces = [noise(size) for size in sizes]
    upload, file = bench.completed(pieces, purpose="user_data", filename="a.bin")
    assert bench.runner.work_once()
    whole = b"".join(pieces)
    found = bench.file(file)
    assert (found["status"], found["bytes"]) == ("processed", len(whole))
    assert found["ext"]["sha256"] == hashlib.sha256(whole).hexdigest()
    assert bench.content(file) == whole
    assert copied == copies
    assert bench.left(upload, file) == [f"files/{file}/gen-1"]
    assert bench.item().status == "done"


def test_the_order_is_the_one_given_at_completion(bench: Bench) -> None:
    pieces = [noise(6 * MIB), noise(3), noise(5 * MIB), b"sent, and not wanted"]
    upload, file = bench.completed(pieces, [2, 0, 1])
    bench.runner.work_once()
    assert bench.content(file) == pieces[2] + pieces[0] + pieces[1]
    assert bench.left(upload, file) == [f"files/{file}/gen-1"]


def test_memory_stays_flat(bench: Bench) -> None:
    # Copied, and written: neither may gather in memory.
    pieces = [noise(20 * MIB), *[noise(4 * MIB)] * 6]
    _, file = bench.completed(pieces)
    tracemalloc.start()
    bench.runner.work_once()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert bench.file(file)["ext"]["sha256"] == hashlib.sha256(b"".join(pieces)).hexdigest()
    # A piece, a part that grows, and its copy on the way out.
    assert peak < 20 * MIB


def test_the_rows_are_checked_across_parts(bench: Bench) -> None:
    content = chat_rows(12)
    _, good = bench.completed([content[:100], content[100:]], purpose="fine-tune")
    bench.runner.work_once()
    assert bench.file(good)["status"] == "processed"
    assert bench.file(good)["ext"]["report"]["rows"] == 12
    rows = content.splitlines()
    rows[6] = b'{"messages": []}'
    broken = b"\n".join(rows)
    upload, bad = bench.completed([broken[:100], broken[100:]], purpose="fine-tune")
    bench.runner.work_once()
    assert bench.file(bad)["status"] == "error"
    assert "line 7:" in bench.file(bad)["status_details"]
    # As with every file that is refused for its rows, the bytes can be looked at.
    assert bench.content(bad) == broken
    assert bench.left(upload, bad) == [f"files/{bad}/gen-1"]


def test_a_file_of_another_purpose_is_not_read_as_rows(bench: Bench) -> None:
    _, file = bench.completed([b"no rows"], purpose="user_data", filename="a.jsonl")
    bench.runner.work_once()
    assert bench.file(file)["status"] == "processed"
    assert bench.file(file)["ext"]["report"] is None


def test_a_packed_file_is_left_to_its_own_check(bench: Bench) -> None:
    _, file = bench.completed([gzip.compress(chat_rows(12))], purpose="fine-tune", filename="train.jsonl.gz")
    bench.runner.work_once()
    assert bench.file(file)["status"] == "uploaded"
    with transaction(bench.parts.sessions) as session:
        item = session.scalars(select(WorkItem).where(WorkItem.kind == "check_file")).one()
    assert (item.subject_id, item.status) == (file, "waiting")


def test_the_md5_is_compared(bench: Bench) -> None:
    pieces = [noise(6 * MIB), b"end"]
    md5 = hashlib.md5(b"".join(pieces)).hexdigest()
    _, good = bench.completed(pieces, md5=md5.upper())
    bench.runner.work_once()
    assert bench.file(good)["status"] == "processed"
    upload, bad = bench.completed(pieces, [1, 0], md5=md5)
    bench.runner.work_once()
    found = bench.file(bad)
    assert found["status"] == "error"
    assert md5 in found["status_details"]
    assert hashlib.md5(b"end" + pieces[0]).hexdigest() in found["status_details"]
    assert bench.left(upload, bad) == []
    answer = bench.http.get(f"/v1/files/{bad}/content")
    assert answer.status_code == 409
    assert md5 in answer.json()["error"]["message"]
    # It can't train, and it can be removed.
    assert bench.http.delete(f"/v1/files/{bad}").status_code == 200


def test_a_killed_worker_is_repeated(bench: Bench) -> None:
    """Killed in the middle of a copy, and once more between the last byte and the row."""
    pieces = [noise(6 * MIB), b"end"]
    upload, file = bench.completed(pieces)
    store = bench.parts.store
    for generation in (1, 2):
        with transaction(bench.parts.sessions) as session:
            assert claims.next_item(session, "w0", bench.parts.settings) is not None
        begun = store.multipart(f"files/{file}/gen-{generation}")
        begun.part(pieces[0])
        if generation == 2:
            begun.complete()
        bench.lose()
    assert bench.runner.work_once()
    assert bench.content(file) == b"".join(pieces)
    assert bench.left(upload, file) == [f"files/{file}/gen-3"]


def test_only_the_tries_that_are_named_are_forgotten(bench: Bench) -> None:
    """``gen-1`` is how ``gen-10`` begins."""
    begun = bench.parts.store.multipart("files/file-ten/gen-10")
    begun.part(noise(5 * MIB))
    joins.forget_tries(bench.parts.store, "file-ten", 9)
    begun.part(b"end")
    begun.complete()
    assert bench.parts.store.size("files/file-ten/gen-10") == 5 * MIB + 3


def _interrupted(bench: Bench, monkeypatch: pytest.MonkeyPatch, at: str, meanwhile: Callable[[], None]) -> None:
    """Join once; ``meanwhile`` happens just before this point of it is reached for the first time."""
    happened = threading.Event()
    owner, name = {
        "the beginning": (joins, "forget_tries"),
        "the first piece": (joining._Pass, "feed"),
        "the last byte": (Writer, "finish"),
        "the end": (joining, "_settle"),
    }[at]
    reached = getattr(owner, name)

    def interrupted(*arguments: Any) -> None:
        if not happened.is_set():
            happened.set()
            meanwhile()
        reached(*arguments)

    monkeypatch.setattr(owner, name, interrupted)
    assert bench.runner.work_once()
    assert happened.is_set()


@pytest.mark.parametrize("at", ["the beginning", "the first piece", "the last byte", "the end"])
@pytest.mark.parametrize("sizes", [(6 * MIB, 2 * MIB, 3), (200, 3)], ids=["copied", "written"])
def test_a_late_worker_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, at: str, sizes: tuple[int, ...]
) -> None:
    """It slept for longer than its lease; its successor has joined the parts and removed them."""
    pieces = [noise(size) for size in sizes]
    upload, file = bench.completed(pieces)

    def meanwhile() -> None:
        bench.lose()
        assert Runner(bench.parts, bench.slot, "w2", threading.Event()).work_once()

    _interrupted(bench, monkeypatch, at, meanwhile)
    assert bench.content(file) == b"".join(pieces)
    assert bench.left(upload, file) == [f"files/{file}/gen-2"]
    assert bench.item().status == "done"


@pytest.mark.parametrize("at", ["the first piece", "the end"])
def test_a_file_that_is_deleted_meanwhile_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    upload, file = bench.completed([noise(6 * MIB), b"end"])
    _interrupted(bench, monkeypatch, at, lambda: bench.http.delete(f"/v1/files/{file}").raise_for_status() and None)
    assert bench.left(upload, file) == []
    assert bench.item().status == "done"


def test_a_draining_worker_hands_it_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    upload, file = bench.completed([noise(6 * MIB), b"end"])
    _interrupted(bench, monkeypatch, "the first piece", bench.draining.set)
    item = bench.item()
    assert (item.status, item.losses, item.lease_until) == ("waiting", 0, None)
    assert not any(key.startswith("files/") for key in bench.left(upload, file))
    bench.draining.clear()
    assert bench.runner.work_once()
    assert bench.file(file)["status"] == "processed"


def test_a_worker_that_lost_its_lease_stops_reading(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [noise(3 * MIB)]
    upload, file = bench.completed(pieces)
    seen = 0
    lease: list[Lease] = []
    entered = joining.join

    def joined(parts: Parts, item: WorkItem, claim: Any, held: Lease, draining: threading.Event) -> None:
        lease.append(held)
        entered(parts, item, claim, held, draining)

    feed = joining._Pass.feed

    def fed(self: joining._Pass, piece: bytes) -> None:
        nonlocal seen
        seen += len(piece)
        lease[0].lost.set()
        feed(self, piece)

    monkeypatch.setattr(joining, "join", joined)
    monkeypatch.setattr(joining._Pass, "feed", fed)
    bench.runner.work_once()
    assert 0 < seen < 3 * MIB
    assert not any(key.startswith("files/") for key in bench.left(upload, file))
    # Nothing was written in the name of the one who may have it now.
    assert bench.item().status == "running"


def test_a_part_that_is_gone_ends_it_with_a_sentence(bench: Bench) -> None:
    upload, file = bench.completed([noise(6 * MIB), b"end"])
    with transaction(bench.parts.sessions) as session:
        last = session.scalars(select(UploadPart).where(UploadPart.bytes == 3)).one()
    bench.parts.store.delete(last.storage_key)
    bench.runner.work_once()
    assert bench.file(file)["status"] == "error"
    assert "Part 2 of the upload" in bench.file(file)["status_details"]
    assert bench.item().status == "failed"
    # The first part was copied by then; only the parts themselves wait for the sweep.
    assert not any(key.startswith("files/") for key in bench.left(upload, file))
    reconciler.sweep(bench.parts)
    assert bench.left(upload, file) == []


def test_a_part_that_is_cut_ends_it_with_a_sentence(bench: Bench) -> None:
    _, file = bench.completed([b"abcde", b"end"])
    with transaction(bench.parts.sessions) as session:
        first = session.scalars(select(UploadPart).where(UploadPart.bytes == 5)).one()
    bench.parts.store.put(first.storage_key, b"abcd")
    bench.runner.work_once()
    assert bench.file(file)["status_details"] == "Part 1 of the upload has 4 bytes, not 5."


def test_joining_that_is_given_up_leaves_nothing(bench: Bench) -> None:
    """Every worker that took it was killed in the middle."""
    upload, file = bench.completed([noise(6 * MIB), b"end"])
    for generation in range(1, bench.parts.settings.max_attempts + 1):
        with transaction(bench.parts.sessions) as session:
            assert claims.next_item(session, "w0", bench.parts.settings) is not None
        begun = bench.parts.store.multipart(f"files/{file}/gen-{generation}")
        begun.part(noise(6 * MIB))
        bench.lose()
    found = bench.file(file)
    assert found["status"] == "error"
    assert "lost" in found["status_details"]
    assert bench.left(upload, file) == []


def test_parts_that_nobody_cleared_are_swept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker was killed between the row and the parts."""
    upload, file = bench.completed([noise(6 * MIB), b"end"])
    with monkeypatch.context() as patch:
        patch.setattr(joins, "clear", lambda *_: 0)
        bench.runner.work_once()
    assert len(bench.left(upload, file)) == 5
    reconciler.sweep(bench.parts)
    assert bench.left(upload, file) == [f"files/{file}/gen-1"]
    assert bench.file(file)["status"] == "processed"


def test_parts_that_wait_to_be_joined_are_not_swept(bench: Bench) -> None:
    upload, file = bench.completed([noise(6 * MIB), b"end"])
    with transaction(bench.parts.sessions) as session:
        for part in session.scalars(select(UploadPart)):
            part.created_at = clock.in_seconds(-1e6)
    reconciler.sweep(bench.parts)
    assert len(bench.left(upload, file)) == 4


def test_the_idle_child_stays_warm(bench: Bench) -> None:
    bench.completed([b"abc"])
    child = bench.slot.prepare()
    try:
        bench.runner.work_once()
        assert bench.slot.prepare() is child
    finally:
        bench.slot.close()
