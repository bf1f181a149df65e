"""Large files in parts, through the official SDK in its strict mode."""

import hashlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from sqlalchemy import create_engine, text

from core.config import MIB
from tests.conftest import chat_rows
from tests.flow.conftest import Live

pytestmark = pytest.mark.flow

_PART = 3 * MIB


@pytest.fixture(scope="module")
def large() -> bytes:
    """12 MB of good rows; the last part is shorter than the others."""
    content = chat_rows(115_000)
    assert 4 * _PART < len(content) < 5 * _PART
    return content


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_large_file_goes_up_in_chunks(live: Live, large: bytes, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(large)
    client = live.client
    upload = client.uploads.upload_file_chunked(
        file=tmp_path / "train.jsonl",
        mime_type="text/jsonl",
        purpose="fine-tune",
        part_size=_PART,
        md5=hashlib.md5(large).hexdigest(),
    )
    assert upload.status == "completed"
    assert upload.file is not None
    assert (upload.file.filename, upload.file.bytes, upload.file.status) == ("train.jsonl", len(large), "uploaded")
    file = client.files.wait_for_processing(upload.file.id, poll_interval=0.2, max_wait_seconds=120)
    assert file.status == "processed", (file.status_details, live.logs())
    assert file.ext["sha256"] == sha256(large)  # type: ignore[attr-defined]  # ours
    assert file.ext["report"]["rows"] == 115_000  # type: ignore[attr-defined]  # ours
    assert sha256(client.files.content(file.id).read()) == sha256(large)


def test_parts_in_parallel_out_of_order_and_sent_again(live: Live, large: bytes) -> None:
    client = live.client
    pieces = [large[start : start + _PART] for start in range(0, len(large), _PART)]
    upload = client.uploads.create(
        bytes=len(large), filename="data.bin", mime_type="application/octet-stream", purpose="user_data"
    )
    assert upload.status == "pending"
    wanted = list(reversed(range(len(pieces))))
    # The first goes twice, as after an answer that was lost.
    with ThreadPoolExecutor(3) as pool:
        sent = list(pool.map(lambda n: (n, client.uploads.parts.create(upload.id, data=pieces[n])), [*wanted, 0]))
    ids = {n: part.id for n, part in sent}
    assert len({part.id for _, part in sent}) == len(pieces) + 1
    done = client.uploads.complete(upload.id, part_ids=[ids[n] for n in range(len(pieces))])
    assert done.file is not None
    file = client.files.wait_for_processing(done.file.id, poll_interval=0.2, max_wait_seconds=120)
    assert file.status == "processed", (file.status_details, live.logs())
    assert sha256(client.files.content(file.id).read()) == sha256(large)


def test_a_job_waits_for_its_file_to_be_joined(live: Live) -> None:
    content = chat_rows(24)
    client = live.client
    upload = client.uploads.upload_file_chunked(
        file=content,
        filename="train.jsonl",
        bytes=len(content),
        mime_type="text/jsonl",
        purpose="fine-tune",
        part_size=500,
    )
    assert upload.file is not None
    job = client.fine_tuning.jobs.create(
        model="attune-tiny", training_file=upload.file.id, extra_body={"ext": {"max_steps": 1, "lora": {"rank": 2}}}
    )
    assert live.wait(job.id).status == "succeeded"


def test_a_wrong_md5_ends_the_wait_with_a_sentence(live: Live) -> None:
    upload = live.client.uploads.upload_file_chunked(
        file=b"abc", filename="a.txt", bytes=3, mime_type="text/plain", purpose="user_data", md5="0" * 32
    )
    assert upload.file is not None
    file = live.client.files.wait_for_processing(upload.file.id, poll_interval=0.2, max_wait_seconds=60)
    assert file.status == "error"
    assert hashlib.md5(b"abc").hexdigest() in (file.status_details or "")
    with pytest.raises(openai.ConflictError):
        live.client.files.content(file.id)


def test_a_cancelled_upload_is_over(live: Live) -> None:
    client = live.client
    upload = client.uploads.create(bytes=3, filename="a.txt", mime_type="text/plain", purpose="user_data")
    part = client.uploads.parts.create(upload.id, data=b"abc")
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.ConflictError, match="cancelled"):
        client.uploads.complete(upload.id, part_ids=[part.id])


def test_a_killed_worker_joins_again(live: Live, large: bytes) -> None:
    engine = create_engine(live.env["ATTUNE_DATABASE_URL"], isolation_level="AUTOCOMMIT")
    query = text("SELECT generation, status FROM work_items WHERE subject_id = :upload")
    upload = live.client.uploads.create(
        bytes=len(large), filename="train.jsonl", mime_type="text/jsonl", purpose="fine-tune"
    )
    part = live.client.uploads.parts.create(upload.id, data=large)
    with engine.connect() as connection:

        def item() -> tuple[int, str]:
            generation, status = connection.execute(query, {"upload": upload.id}).one()
            return generation, status

        file = live.client.uploads.complete(upload.id, part_ids=[part.id]).file
        assert file is not None
        live.until(lambda: item()[1] == "running", 30, "a worker joins")
        os.kill(live.pids()["prepare"], signal.SIGKILL)
        found = live.client.files.wait_for_processing(file.id, poll_interval=0.2, max_wait_seconds=60)
        assert found.status == "processed", (found.status_details, live.logs())
        assert item() == (2, "done")
    engine.dispose()
    assert sha256(live.client.files.content(file.id).read()) == sha256(large)
