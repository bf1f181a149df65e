"""The client commands against a running service: what they print, and their exit statuses.

No worker runs here: where a job has to move, the test moves it as a worker would.
"""

import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core import wiring
from core.config import Settings
from core.db.session import transaction
from core.db.tables import BaseModel, Job
from core.services import base_models, events, progress, runs
from core.wiring import Parts
from tests.cli.running import Up, attune, environment, eventually

GOOD = "".join(
    json.dumps({"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]}) + "\n"
    for n in range(12)
)
BASE = "attune-tiny"


@pytest.fixture(scope="module")
def parts(up: Up) -> Iterator[Parts]:
    """The service's own database and store, as a worker has them."""
    secrets = json.loads((up.home / "secrets.json").read_text())
    ports = json.loads((up.home / "home.json").read_text())["ports"]
    parts = wiring.assemble(
        Settings(
            database_url=f"postgresql+psycopg://attune:{secrets['postgres_password']}@127.0.0.1:{ports['postgres']}/attune",
            redis_url=f"redis://:{secrets['redis_password']}@127.0.0.1:{ports['redis']}/0",
            s3_endpoint_url=f"http://127.0.0.1:{ports['s3']}",
            s3_access_key="attune",
            s3_secret_key=secrets["s3_secret_key"],
        ),
        pool_size=2,
    )
    yield parts
    parts.close()


@pytest.fixture(scope="module")
def base(up: Up, parts: Parts) -> str:
    """A base model on offer."""
    done = attune("models", "add", BASE, "--source", "path:/nowhere", "--no-wait", "--home", up.home)
    assert done.returncode == 0, done.stderr
    with transaction(parts.sessions) as session:
        base_models.get(session, BASE).status = "ready"
    return BASE


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text(GOOD)
    return file


def made_job(up: Up, base: str, rows: Path, *more: str) -> str:
    done = attune("jobs", "create", "--model", base, "--training-file", rows, *more, "--home", up.home)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def begin(parts: Parts, job_id: str) -> None:
    with transaction(parts.sessions) as session:
        job = session.get_one(Job, job_id)
        job.generation = 1
        runs.begin_prepare(job)
        runs.prepared(session, job, resolved={}, hyperparameters={}, data={}, prepared={}, notes=[])
        runs.begin_attempt(session, job, "worker_test")


def step(parts: Parts, job_id: str, number: int, total: int) -> None:
    line = {
        "step": number,
        "epoch": number / total,
        "train_loss": 2.5 / number,
        "learning_rate": 1e-4,
        "grad_norm": 1.0,
        "tokens": 300,
        "trained_tokens": 100,
        "seconds": 2.0,
        "tokens_per_second": 150.0,
    }
    with transaction(parts.sessions) as session:
        progress.steps(session, session.get_one(Job, job_id), [line], total)


def succeed(parts: Parts, job_id: str, damage: str | None = None) -> dict[str, bytes]:
    """End a job with a small artifact; ``damage`` names a file whose bytes are not what the manifest says."""
    content = {"adapter_model.safetensors": os.urandom(3_000_000), "adapter_config.json": b"{}\n"}
    entries = [{"path": p, "bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for p, b in content.items()]
    manifest = {"version": 1, "files": entries}
    stored = {"metrics.csv": b"step,train_loss\n", **content, "manifest.json": json.dumps(manifest).encode()}
    results = []
    for name, data in stored.items():
        key = f"jobs/{job_id}/gen-1/{name}"
        parts.store.put(key, data[:-1] + b"?" if name == damage else data)
        results.append({"filename": name, "key": key, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    with transaction(parts.sessions) as session:
        job = session.get_one(Job, job_id)
        runs.succeeded(
            session, job, prefix=f"jobs/{job_id}/gen-1/", manifest=manifest, results=results, line={"trained_tokens": 9}
        )
    return stored


# Keys.


def test_a_key_lives_from_create_to_revoke(up: Up) -> None:
    made = attune("keys", "create", "ci", "--home", up.home)
    key = made.stdout.strip()
    assert (made.returncode, len(key.split())) == (0, 1)
    with_it = environment(OPENAI_BASE_URL=f"{up.exports[0].partition('=')[2]}", OPENAI_API_KEY=key)
    assert attune("files", "list", "--json", env=with_it).returncode == 0
    refused = attune("keys", "list", env=with_it)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr

    listed = json.loads(attune("keys", "list", "--home", up.home, "--json").stdout)
    (entry,) = [entry for entry in listed if entry["name"] == "ci"]
    assert entry["scopes"] == ["read", "train"]
    assert key not in json.dumps(listed)
    assert attune("keys", "revoke", entry["id"], "--home", up.home).returncode == 0
    after = attune("files", "list", env=with_it)
    assert (after.returncode, after.stdout) == (1, "")
    assert "Incorrect API key" in after.stderr


# Files.


def test_upload_prints_the_id_alone(up: Up, rows: Path) -> None:
    done = attune("files", "upload", rows, "--home", up.home)
    assert done.returncode == 0, done.stderr
    listed = json.loads(attune("files", "list", "--home", up.home, "--json").stdout)
    assert {"id": done.stdout.strip(), "bytes": len(GOOD), "status": "processed"}.items() <= listed[0].items()


def test_a_bad_file_is_refused_with_every_line_at_fault(up: Up, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(GOOD + "nonsense\n" + '{"messages": [{"role": "bot", "content": "x"}]}\n')
    done = attune("files", "upload", bad, "--home", up.home)
    assert (done.returncode, done.stdout) == (1, "")
    assert "line 13: " in done.stderr
    assert "line 14: messages[0].role" in done.stderr


# Models.


def test_a_model_is_waited_for_with_its_progress(up: Up, parts: Parts) -> None:
    """The registration is moved by the test, from another thread, while the command waits."""

    def work() -> None:
        def registered() -> BaseModel | None:
            with transaction(parts.sessions) as session:
                return next((m for m in base_models.list_all(session) if m.name == "slow"), None)

        eventually(registered, 20, "the registration")
        with transaction(parts.sessions) as session:
            base_models.get(session, "slow").progress = {"percent": 40.0, "message": "downloading"}
        time.sleep(1.5)
        with transaction(parts.sessions) as session:
            base_models.get(session, "slow").status = "ready"

    worker = threading.Thread(target=work)
    worker.start()
    done = attune("models", "add", "slow", "--source", "hf:someone/model", "--alias", "gpt-slow", "--home", up.home)
    worker.join()
    assert done.returncode == 0, done.stderr
    assert "slow is ready" in done.stdout
    assert "gpt-slow" in attune("models", "list", "--home", up.home).stdout


def test_a_failed_registration_has_an_exit_status_of_its_own(up: Up, parts: Parts) -> None:
    assert attune("models", "add", "broken", "--source", "gguf:x.gguf", "--no-wait", "--home", up.home).returncode == 0
    with transaction(parts.sessions) as session:
        row = base_models.get(session, "broken")
        # The worker runs in another folder than whoever typed the path.
        assert row.source == f"gguf:{Path('x.gguf').absolute()}"
        row.status, row.error = "registering", None

    def fail() -> None:
        def registering() -> bool:
            with transaction(parts.sessions) as session:
                return any(model.name == "other" for model in base_models.list_all(session))

        eventually(registering, 20, "the registration")
        with transaction(parts.sessions) as session:
            base_models.failed(base_models.get(session, "other"), "no_such_file", "x.gguf does not exist", "source")

    worker = threading.Thread(target=fail)
    worker.start()
    done = attune("models", "add", "other", "--source", "gguf:x.gguf", "--home", up.home)
    worker.join()
    assert done.returncode == 3
    assert "other could not be registered: x.gguf does not exist" in done.stderr
    listed = attune("models", "list", "--home", up.home)
    assert "broken: registering" in listed.stderr
    assert "broken" not in listed.stdout


# Jobs.


def test_create_sends_what_was_asked(up: Up, base: str, rows: Path) -> None:
    job_id = made_job(
        up, base, rows, "--suffix", "mine", "--seed", "7", "--epochs", "2", "--batch-size", "4",
        "--ext", '{"lora": {"rank": 4, "alpha": 8}}', "--set", "lora.rank=8", "--set", "prompt_loss_weight=0",
    )  # fmt: skip
    job = json.loads(attune("jobs", "get", job_id, "--home", up.home, "--json").stdout)
    assert (job["seed"], job["user_provided_suffix"], job["status"]) == (7, "mine", "validating_files")
    assert job["method"]["supervised"]["hyperparameters"] == {
        "n_epochs": 2,
        "batch_size": 4,
        "learning_rate_multiplier": "auto",
    }
    assert job["ext"]["options"] == {"lora": {"rank": 8, "alpha": 8}, "prompt_loss_weight": 0}
    assert job_id in attune("jobs", "list", "--home", up.home).stdout


def test_a_refused_job_says_why_in_the_servers_words(up: Up, base: str, rows: Path) -> None:
    unknown = attune(
        "jobs", "create", "--model", base, "--training-file", rows, "--set", "lora.rnk=8", "--home", up.home
    )
    assert unknown.returncode == 1
    assert "lora.rnk" in unknown.stderr
    assert "Traceback" not in unknown.stderr


@pytest.mark.parametrize("wrong", [["--set", "lora.rank"], ["--ext", "{"], ["--set", "a=1", "--set", "a.b=2"]])
def test_wrong_usage_has_status_2(up: Up, wrong: list[str]) -> None:
    done = attune("jobs", "create", "--model", "m", "--training-file", "file-x", *wrong, "--home", up.home)
    assert done.returncode == 2, done.stderr
    assert wrong[0] in done.stderr


def test_watch_follows_a_job_to_success_and_its_files_can_be_had(
    up: Up, base: str, rows: Path, parts: Parts, tmp_path: Path
) -> None:
    job_id = made_job(up, base, rows)

    def work() -> None:
        begin(parts, job_id)
        for number in (1, 2, 3):
            step(parts, job_id, number, 4)
            time.sleep(0.8)
        stored.update(succeed(parts, job_id))

    stored: dict[str, bytes] = {}
    worker = threading.Thread(target=work)
    worker.start()
    code, screen = on_a_terminal("jobs", "watch", job_id, "--home", str(up.home))
    worker.join()
    assert code == 0, screen
    assert "step 3/4" in screen
    assert "150 tokens/s" in screen
    assert "left" in screen
    assert "loss 0.8333" in screen
    assert screen.count("Fine-tuning job started") == 1
    # After the bar the cursor is shown again, and then comes the name of the model.
    model = screen.rpartition("\x1b[?25h")[2].strip()
    assert model.startswith(f"ft:{base}:")

    for what in (model, job_id):
        done = attune(
            "models", "download", what, "--to", tmp_path / what.replace(":", "-"), "--home", up.home, "--json"
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["checked"] == 2
        there = {path.name: path.read_bytes() for path in (tmp_path / what.replace(":", "-")).iterdir()}
        assert there == stored


def on_a_terminal(*arguments: str) -> tuple[int, str]:
    """Run the command on a pseudo-terminal: its status and all it drew."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", *arguments],
        env=environment(TERM="xterm", COLUMNS="120"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    drawn = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                drawn += os.read(ours, 65536)
            except OSError:
                break
    os.close(ours)
    return process.wait(5), drawn.decode()


def test_a_damaged_download_is_refused(up: Up, base: str, rows: Path, parts: Parts, tmp_path: Path) -> None:
    job_id = made_job(up, base, rows)
    begin(parts, job_id)
    succeed(parts, job_id, damage="adapter_model.safetensors")
    done = attune("models", "download", job_id, "--to", tmp_path / "to", "--home", up.home)
    assert done.returncode == 1
    assert "adapter_model.safetensors is damaged" in done.stderr


def test_watch_tells_failed_from_cancelled(up: Up, base: str, rows: Path, parts: Parts) -> None:
    failed, cancelled = made_job(up, base, rows), made_job(up, base, rows)
    begin(parts, failed)
    with transaction(parts.sessions) as session:
        runs.failed(session, session.get_one(Job, failed), "out_of_memory", "the batch does not fit")
    assert attune("jobs", "cancel", cancelled, "--home", up.home).returncode == 0
    said = attune("jobs", "watch", failed, "--home", up.home)
    assert said.returncode == 3
    assert "the batch does not fit" in said.stderr
    said = attune("jobs", "watch", cancelled, "--home", up.home)
    assert said.returncode == 4


def test_watch_as_json_has_each_event_once_and_then_the_job(up: Up, base: str, rows: Path, parts: Parts) -> None:
    """More events than a page holds, some from before the watch and some during it."""
    job_id = made_job(up, base, rows)

    def say(numbers: range) -> None:
        with transaction(parts.sessions) as session:
            job = session.get_one(Job, job_id)
            for number in numbers:
                events.append(session, job, f"said {number}")

    say(range(150))
    begin(parts, job_id)
    watching = subprocess.Popen(
        [sys.executable, "-m", "cli", "jobs", "watch", job_id, "--home", str(up.home), "--json"],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    first = watching.stdout.readline()
    say(range(150, 300))
    succeed(parts, job_id)
    lines: list[dict[str, Any]] = [json.loads(line) for line in [first, *watching.stdout]]
    assert watching.wait(5) == 0
    said = [line["message"] for line in lines[:-1] if line["message"].startswith("said ")]
    assert said == [f"said {number}" for number in range(300)]
    assert (lines[-1]["object"], lines[-1]["status"]) == ("fine_tuning.job", "succeeded")


def test_an_interrupt_leaves_the_job_running(up: Up, base: str, rows: Path) -> None:
    job_id = made_job(up, base, rows)
    watching = subprocess.Popen(
        [sys.executable, "-m", "cli", "jobs", "watch", job_id, "--home", str(up.home), "--json"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, a shell has had interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert watching.stdout is not None
    watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=10)
    assert watching.returncode == 130
    assert "Traceback" not in errors
    assert json.loads(attune("jobs", "get", job_id, "--home", up.home, "--json").stdout)["status"] == "validating_files"


def test_a_service_that_is_away_is_said_in_a_sentence(tmp_path: Path) -> None:
    env = environment(OPENAI_BASE_URL="http://127.0.0.1:9/v1", OPENAI_API_KEY="sk-attune-x")
    done = attune("models", "list", env=env)
    assert done.returncode == 1
    assert "http://127.0.0.1:9 does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_documents_the_exit_statuses() -> None:
    for command in ([], ["up"], ["jobs"], ["models"]):
        assert "4 the job was cancelled" in " ".join(attune(*command, "--help").stdout.split())
