"""Chat templates from end to end: the default ships with the adapter, a hostile one costs nobody the worker."""

import shutil
from pathlib import Path

import httpx
import pytest

from core.formats import families
from tests.conftest import chat_rows
from tests.flow.conftest import Live

pytestmark = pytest.mark.flow

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ONE_ENDLESS_STEP = "{{ (7 ** 1000000000) % 9 }}"


def test_a_model_without_a_template_ships_its_default_with_the_adapter(live: Live, tiny: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny, tmp_path / "untold"))
    (source / "chat_template.jinja").unlink()
    live.register("untold", f"path:{source}")
    answer = httpx.get(f"{live.base_url}/fine_tuning/models", headers={"Authorization": f"Bearer {live.api_key}"})
    (offer,) = [offer for offer in answer.json()["data"] if offer["id"] == "untold"]
    assert offer["chat_template"] == {"origin": "default:chatml", "text": families.text("chatml")}
    assert live.admin("GET", "models/untold")["facts"]["template_origin"] == "default:chatml"

    file = live.client.files.create(file=("train.jsonl", chat_rows(12)), purpose="fine-tune")
    job = live.client.fine_tuning.jobs.create(
        model="untold", training_file=file.id, extra_body={"ext": {"max_steps": 1, "lora": {"rank": 2}}}
    )
    job = live.wait(job.id)
    assert job.status == "succeeded", (job.error, live.logs())
    files = {live.client.files.retrieve(id).filename: id for id in job.result_files}
    assert live.client.files.content(files["chat_template.jinja"]).text == families.text("chatml")


def test_hostile_templates_end_in_errors_and_the_worker_goes_on(live: Live, tiny: Path) -> None:
    worker = live.pids()["prepare"]
    file = live.client.files.create(file=("train.jsonl", chat_rows(12)), purpose="fine-tune")
    jobs = [
        live.client.fine_tuning.jobs.create(
            model="attune-tiny", training_file=file.id, extra_body={"ext": {"chat_template": template, "max_steps": 1}}
        )
        for template in (ONE_ENDLESS_STEP, "{{ 'a' * 10 ** 10 }}")
    ]
    live.admin("POST", "models", json={"name": "hostile", "source": f"path:{tiny}", "chat_template": ENDLESS})
    live.until(lambda: live.admin("GET", "models/hostile")["status"] == "failed", 60, "it is refused")
    error = live.admin("GET", "models/hostile")["error"]
    assert (error["code"], error["param"]) == ("invalid_chat_template", "chat_template")
    assert "more than 2 seconds" in error["message"]
    for job, what in zip(jobs, ("more than 2 seconds", "more memory"), strict=True):
        ended = live.wait(job.id)
        assert (ended.status, ended.error.code) == ("failed", "limit_exceeded")
        assert what in ended.error.message
        # It was not tried again: a template does the same each time.
        assert ended.ext["attempts"] == []
    good = live.client.fine_tuning.jobs.create(
        model="attune-tiny", training_file=file.id, extra_body={"ext": {"max_steps": 1, "lora": {"rank": 2}}}
    )
    assert live.wait(good.id).status == "succeeded"
    assert live.pids()["prepare"] == worker
