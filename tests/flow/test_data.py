"""Data known before a job: through the unmodified SDK and the command line, on the whole stack."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.running import attune
from tests.conftest import chat_rows
from tests.flow.conftest import Live

pytestmark = pytest.mark.flow


def asked(live: Live, path: str) -> Any:
    """As any user of the SDK would: until it is no 202 any more."""
    client = live.client
    answer = client.get(path, cast_to=httpx.Response)
    while answer.status_code == 202:
        answer = client.get(path, cast_to=httpx.Response)
    return answer.json()


@pytest.fixture
def file_id(live: Live) -> str:
    bad = b'{"messages": [{"role": "bot", "content": "x"}]}\n'
    # Too large to be checked while it is uploaded.
    content = chat_rows(2500) + bad + chat_rows(10)
    made = live.client.files.create(file=("rows.jsonl", content), purpose="fine-tune")
    return made.id


def test_a_report_is_there_for_sdk_and_command_line(live: Live, file_id: str, tmp_path: Path) -> None:
    report = asked(live, f"/files/{file_id}/report?model=attune-tiny")
    assert report["faults"][0]["line"] == 2501
    assert report["duplicates"]["count"] == 10
    assert report["models"][0]["lengths"]["longest"] > 0
    every = httpx.get(report["findings"]["url"]).text.splitlines()
    assert len(every) >= 11
    env = live.env | {"OPENAI_BASE_URL": live.base_url, "OPENAI_API_KEY": live.api_key}
    found = tmp_path / "found.jsonl"
    done = attune("files", "report", file_id, "--model", "attune-tiny", "--findings", found, env=env)
    assert done.returncode == 1
    assert "line 2501: messages[0].role" in done.stdout
    assert "█" in done.stdout
    assert len(found.read_text().splitlines()) == len(every)


def test_a_preview_is_there_for_files_and_for_rows_that_are_not_uploaded(
    live: Live, file_id: str, tmp_path: Path
) -> None:
    env = live.env | {"OPENAI_BASE_URL": live.base_url, "OPENAI_API_KEY": live.api_key}
    local = tmp_path / "rows.jsonl"
    local.write_bytes(chat_rows(3))
    for source in (file_id, local):
        done = attune("files", "preview", source, "--model", "attune-tiny", "--limit", "1", "--json", env=env)
        assert done.returncode == 0, done.stderr
        preview = json.loads(done.stdout)
        assert "".join(token["text"] for token in preview["rows"][0]["tokens"] if token["trained"]) == "1<|im_end|>"
        assert preview["more"]
