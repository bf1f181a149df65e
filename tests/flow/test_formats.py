"""Data through the whole service: what users have goes in; one bad row never reaches an accelerator."""

import gzip
import json
from typing import Any

import pytest

from tests.conftest import chat_rows
from tests.flow.conftest import Live
from tests.kept import parquet

pytestmark = pytest.mark.flow

BAD = b'{"messages": [{"role": "bot", "content": "x"}]}\n'


def phases(live: Live, job_id: str) -> list[str]:
    return [event.message for event in live.client.fine_tuning.jobs.list_events(job_id, limit=100)]


def test_a_job_on_data_with_one_bad_row_never_reaches_the_train_queue(live: Live) -> None:
    # Too large to be checked on the way in, and the job is made before the check has ended.
    content = chat_rows(3000) + BAD
    file = live.client.files.create(file=("big.jsonl", content), purpose="fine-tune")
    assert file.status == "uploaded"
    job = live.client.fine_tuning.jobs.create(model="attune-tiny", training_file=file.id)
    job = live.wait(job.id)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.code == "invalid_training_file"
    assert 'line 3001: messages[0].role: "bot"' in job.error.message
    # No train worker ever saw it: nothing was prepared for one, none began, and no accelerator second was used.
    ext: Any = job.ext  # type: ignore[attr-defined]  # ours
    assert (ext["resolved"], ext["data"]) == (None, None)
    assert not (ext["usage"] or {}).get("accelerator_seconds")
    assert live.client.files.retrieve(file.id).status == "error"


def test_a_compressed_table_of_foreign_rows_is_trained_on(live: Live) -> None:
    rows = [{"instruction": f"What comes after {n}?", "input": "", "output": str(n + 1)} for n in range(40)]
    file = live.client.files.create(file=("alpaca.parquet.gz", gzip.compress(parquet(rows))), purpose="fine-tune")
    mixed = live.client.files.create(
        file=("some.json", b"[" + json.dumps(rows[0]).encode() + b"]"), purpose="fine-tune"
    )
    job = live.client.fine_tuning.jobs.create(
        model="attune-tiny",
        training_file=file.id,
        extra_body={
            "ext": {
                "max_steps": 2,
                "data": {"mix": [{"file_id": mixed.id, "weight": 0.25}], "validation_fraction": 0.2},
            }
        },
    )
    job = live.wait(job.id)
    assert job.status == "succeeded", (job.error, live.logs())
    ext: Any = job.ext  # type: ignore[attr-defined]  # ours
    report: Any = live.client.files.retrieve(file.id).ext["report"]  # type: ignore[attr-defined]  # ours
    assert (report["container"], report["compression"], report["converted_from"]) == ("parquet", "gzip", "alpaca")
    assert ext["data"]["train"]["examples"] + ext["data"]["valid"]["examples"] >= 40
    assert ext["resolved"]["data"]["validation_fraction"] == 0.2
    assert any("alpaca" in message for message in phases(live, job.id))
