"""Upload, job, poll, download: the life of a job through the official SDK, in its strict mode."""

import contextlib
import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import chat_rows
from tests.flow.conftest import ROOT, Live

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def done(live: Live) -> Any:
    """A job that succeeded, with a validation file."""
    client = live.client
    train = client.files.create(file=("train.jsonl", chat_rows(24)), purpose="fine-tune")
    valid = client.files.create(file=("valid.jsonl", chat_rows(5)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="attune-tiny",
        training_file=train.id,
        validation_file=valid.id,
        suffix="story",
        metadata={"team": "tests"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}},
        extra_body={"ext": {"lora": {"rank": 4}, "prompt_loss_weight": 0.5, "eval": {"every": "epoch"}}},
    )
    job = live.wait(job.id)
    assert job.status == "succeeded", (job.error, live.logs())
    return job


def test_the_finished_job_says_all_of_it(done: Any) -> None:
    assert done.fine_tuned_model.startswith("ft:attune-tiny:attune:story:")
    assert done.hyperparameters.n_epochs == 2
    assert done.hyperparameters.batch_size == 8
    assert done.trained_tokens > 0
    assert done.finished_at >= done.created_at
    assert done.ext["phase"] == "completed"
    assert done.ext["progress"]["step"] == done.ext["progress"]["total_steps"] == 6
    assert done.ext["resolved"]["lora"]["rank"] == 4
    assert done.ext["resolved"]["prompt_loss_weight"] == 0.5
    assert done.ext["usage"]["tokens"] > 0
    assert done.ext["usage"]["accelerator_seconds"] > 0
    assert done.ext["data"]["train"]["examples"] == 24


def test_every_object_passes_the_sdks_strict_mode(live: Live, done: Any) -> None:
    client = live.client
    assert done.id in [job.id for job in client.fine_tuning.jobs.list()]
    assert done.id in [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "tests"})]
    events = list(client.fine_tuning.jobs.list_events(done.id, limit=5))
    assert len({event.id for event in events}) == len(events) > 10
    assert any(event.message.startswith("New fine-tuned model created: ft:") for event in events)
    assert {"message", "metrics"} == {event.type for event in events}
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(done.id))
    assert [checkpoint.step_number for checkpoint in checkpoints] == [6, 3]
    assert checkpoints[0].metrics.full_valid_loss is not None
    assert checkpoints[0].fine_tuned_model_checkpoint == f"{done.fine_tuned_model}:ckpt-step-6"
    model = client.models.retrieve(done.fine_tuned_model)
    assert model.ext["job_id"] == done.id  # type: ignore[attr-defined]  # ours
    assert {"attune-tiny", done.fine_tuned_model} <= {model.id for model in client.models.list()}
    for file in client.files.list(purpose="fine-tune-results"):
        assert file.status == "processed"


def test_the_first_result_file_is_openais_table(live: Live, done: Any) -> None:
    text = live.client.files.content(done.result_files[0]).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert text.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,")
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [bool(row["valid_loss"]) for row in rows] == [False, False, True, False, False, True]


def test_the_adapter_loads_with_plain_peft_and_changes_the_model(
    live: Live, done: Any, tiny: Path, tmp_path: Path
) -> None:
    names = {}
    for id in done.result_files[1:]:
        file = live.client.files.retrieve(id)
        (tmp_path / file.filename).write_bytes(live.client.files.content(id).read())
        names[file.filename] = file
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= set(names)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for entry in manifest["files"]:
        assert names[entry["path"]].ext["sha256"] == entry["sha256"]
        assert (tmp_path / entry["path"]).stat().st_size == entry["bytes"]
    code = (
        "import sys, torch; from peft import PeftModel; from transformers import AutoModelForCausalLM as M\n"
        "base = M.from_pretrained(sys.argv[1]); ids = torch.tensor([[1, 40, 41, 42]])\n"
        "before = base(ids).logits; tuned = PeftModel.from_pretrained(base, sys.argv[2])\n"
        "print((tuned(ids).logits - before).abs().max().item())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tiny), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) > 1e-4


def test_an_unmodified_openai_script_runs(live: Live, tmp_path: Path) -> None:
    """The script in examples/ was written from OpenAI's documentation; only its base URL is another one."""
    (tmp_path / "train.jsonl").write_bytes(chat_rows(20))
    script = (ROOT / "examples" / "openai_script.py").read_text()
    assert script.count("http://127.0.0.1:8000/v1") == 1
    (tmp_path / "script.py").write_text(script.replace("http://127.0.0.1:8000/v1", live.base_url))
    run = subprocess.run(
        [sys.executable, "script.py", "train.jsonl"],
        cwd=tmp_path,
        env=live.env | {"OPENAI_API_KEY": live.api_key},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "New fine-tuned model created: ft:attune-tiny:" in run.stdout
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "attune-tiny"
    assert (tmp_path / "adapter_model.safetensors").stat().st_size > 1000


def test_a_large_file_with_a_bad_line_fails_its_job_before_any_training(live: Live) -> None:
    rows = chat_rows(2500).splitlines()
    rows[1999] = b'{"messages": [{"role": "user"}]}'
    content = b"\n".join(rows)
    file = live.client.files.create(file=("train.jsonl", content), purpose="fine-tune")
    assert file.status == "uploaded"
    # The check may be quicker than this client; then the file is refused at once, and no job is made.
    with contextlib.suppress(openai.BadRequestError):
        job = live.client.fine_tuning.jobs.create(model="attune-tiny", training_file=file.id)
        ended = live.wait(job.id)
        assert ended.status == "failed"
        assert ended.error.code == "invalid_training_file"
        assert "line 2000:" in ended.error.message
        assert ended.ext["attempts"] == []
    live.until(lambda: live.client.files.retrieve(file.id).status == "error", 30, "the file is settled")
    assert "line 2000:" in (live.client.files.retrieve(file.id).status_details or "")


def test_a_large_good_file_trains(live: Live) -> None:
    file = live.client.files.create(file=("train.jsonl", chat_rows(2500)), purpose="fine-tune")
    job = live.client.fine_tuning.jobs.create(
        model="attune-tiny", training_file=file.id, extra_body={"ext": {"max_steps": 2, "lora": {"rank": 2}}}
    )
    assert live.wait(job.id).status == "succeeded"


def test_deleting_a_tuned_model_takes_its_weights(live: Live) -> None:
    file = live.client.files.create(file=("train.jsonl", chat_rows(12)), purpose="fine-tune")
    job = live.client.fine_tuning.jobs.create(
        model="attune-tiny", training_file=file.id, extra_body={"ext": {"max_steps": 1, "lora": {"rank": 2}}}
    )
    job = live.wait(job.id)
    assert live.client.models.delete(job.fine_tuned_model).deleted
    with pytest.raises(openai.NotFoundError):
        live.client.models.retrieve(job.fine_tuned_model)
    with pytest.raises(openai.NotFoundError):
        live.client.files.retrieve(job.result_files[1])
    # The metrics belong to the job's story and stay.
    assert live.client.files.content(job.result_files[0]).text.startswith("step,")


def test_a_base_model_that_can_not_be_registered_says_why(live: Live) -> None:
    live.admin("POST", "models", json={"name": "broken", "source": "path:/nowhere/at/all"})
    live.until(lambda: live.admin("GET", "models/broken")["status"] == "failed", 30, "it failed")
    assert "/nowhere/at/all" in live.admin("GET", "models/broken")["error"]["message"]


def test_workers_register_and_become_warm(live: Live) -> None:
    live.until(lambda: all(worker["warm"] for worker in live.admin("GET", "workers")["data"]), 60, "all are warm")
    workers = {worker["kind"]: worker for worker in live.admin("GET", "workers")["data"]}
    assert set(workers) == {"prepare", "train"}
    assert workers["train"]["device"]
    assert workers["train"]["memory_bytes"] > 1e9
    assert workers["train"]["status"] == "online"
    live.until(lambda: "attune-tiny" in live.admin("GET", "workers")["data"][0]["base_models"], 15, "it is cached")


def test_a_download_needs_no_key_at_the_store_and_honours_ranges(live: Live, done: Any) -> None:
    answer = httpx.get(
        f"{live.base_url}/files/{done.result_files[1]}/content", headers={"Authorization": f"Bearer {live.api_key}"}
    )
    assert answer.status_code == 302
    part = httpx.get(answer.headers["location"], headers={"Range": "bytes=0-7"})
    assert part.status_code == 206
    assert len(part.content) == 8
