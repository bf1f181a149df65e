"""`attune up` on real servers: being ready, being watched over, ending, and what a hard death leaves behind."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
from openai import AuthenticationError, OpenAI

from cli.stack import postgres
from tests.cli.running import (
    CODE,
    ROOT,
    Up,
    alive,
    attune,
    environment,
    eventually,
    processes_of,
    shared_memory,
    shared_memory_of,
    sockets_of,
)

ROWS = "".join(
    json.dumps({"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]}) + "\n"
    for n in range(12)
)


def client(home: Path) -> OpenAI:
    found = json.loads((home / "connection.json").read_text())
    return OpenAI(base_url=found["base_url"], api_key=found["api_key"])


def test_ready_means_usable_with_the_printed_lines(up: Up) -> None:
    url, key = (line.removeprefix("export ").partition("=")[2] for line in up.exports)
    assert [line.partition("=")[0] for line in up.exports] == ["export OPENAI_BASE_URL", "export OPENAI_API_KEY"]
    assert OpenAI(base_url=url, api_key=key).models.list().object == "list"
    with pytest.raises(AuthenticationError):
        OpenAI(base_url=url, api_key=key[:-1] + ("1" if key[-1] == "0" else "0")).models.list()


def test_the_connection_file_is_private(up: Up) -> None:
    file = up.home / "connection.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert set(json.loads(file.read_text())) == {"base_url", "api_key", "admin_key"}


def test_passwords_are_in_no_command_line_and_in_no_log(up: Up) -> None:
    secrets = [str(s) for s in json.loads((up.home / "secrets.json").read_text()).values()]
    assert len(secrets) >= 5
    seen = "".join(path.read_text(errors="replace") for path in (up.home / "logs").iterdir())
    for pid in up.pids().values():
        seen += Path(f"/proc/{pid}/cmdline").read_text()
    assert [secret[:6] for secret in secrets if secret in seen] == []


def test_the_servers_listen_on_the_loopback_address_alone(up: Up) -> None:
    open_to_all = set()
    for table, anywhere in (("/proc/net/tcp", "00000000"), ("/proc/net/tcp6", "0" * 32)):
        for line in Path(table).read_text().splitlines()[1:]:
            address, _, state = line.split()[1:4]
            host, _, port = address.partition(":")
            if state == "0A" and host == anywhere:
                open_to_all.add(int(port, 16))
    assert up.ports() & open_to_all == set()


def test_the_parts_of_the_object_store_refuse_strangers(up: Up) -> None:
    """Volumes and filer listen beside the S3 gateway: without tokens anybody on the machine could read every file."""
    import urllib.error
    import urllib.request

    client(up.home).files.create(file=("kept.jsonl", ROWS.encode()), purpose="fine-tune")
    ports = json.loads((up.home / "home.json").read_text())["ports"]
    for part in ("filer", "s3"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{ports[part]}/buckets/attune/", timeout=5)
        assert refused.value.code in (401, 403, 404)
    store = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{ports['s3']}",
        aws_access_key_id="attune",
        aws_secret_access_key="guessed",
        region_name="us-east-1",
    )
    with pytest.raises(store.exceptions.ClientError):
        store.list_objects_v2(Bucket="attune")


def test_a_second_up_says_who_holds_the_home(up: Up) -> None:
    done = attune("up", "--home", up.home)
    assert done.returncode == 1
    assert f"process {up.process.pid} runs a stack on it" in done.stderr


@pytest.mark.parametrize("name", ["idle", "redis"])
def test_what_dies_is_started_again_and_the_log_says_so(up: Up, name: str) -> None:
    before = up.pids()[name]
    assert before is not None
    os.kill(before, signal.SIGKILL)
    eventually(lambda: up.pids()[name] not in (None, before), 10, f"a new {name}")
    assert f"process.died name={name} pid={before} why='killed by signal 9'" in up.journal()
    assert f"process.restarted name={name} pid={up.pids()[name]}" in up.journal()
    assert up.process.poll() is None


def test_status_names_every_process(up: Up) -> None:
    done = attune("status", "--home", up.home, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["state"], said["pid"]) == ("ready", up.process.pid)
    assert {p["name"]: p["pid"] for p in said["processes"]} == up.pids()
    assert {p["name"] for p in said["processes"]} == {"seaweedfs", "redis", "postgres", "api", "idle"}
    assert "seaweedfs" in attune("status", "--home", up.home).stdout


def test_env_and_logs(up: Up) -> None:
    assert attune("env", "--home", up.home).stdout.splitlines() == up.exports
    assert "ready to accept connections" in attune("logs", "postgres", "--home", up.home).stdout
    unknown = attune("logs", "nonsense", "--home", up.home)
    assert unknown.returncode == 1
    assert "there are: api, idle, migrate" in unknown.stderr


def test_commands_on_a_stopped_home_say_so(tmp_path: Path) -> None:
    home = tmp_path / "none"
    assert attune("status", "--home", home).returncode == 1
    assert attune("down", "--home", home).returncode == 0
    refused = attune("env", "--home", home)
    assert refused.returncode == 1
    assert f"Start one with `attune up --home {home}`" in refused.stderr
    assert not home.exists()


def test_data_survive_an_orderly_end_and_a_hard_one(own_home: Path, up: Up) -> None:
    """One life of a home, beside another running stack: up, down, up, the supervisor killed, up, down."""
    first = Up(own_home)
    try:
        memory = shared_memory_of(first.pids()["postgres"])
        assert memory
        assert first.ports() & up.ports() == set()
        file = client(own_home).files.create(file=("rows.jsonl", ROWS.encode()), purpose="fine-tune")
        began = time.monotonic()
        assert first.stop() == 0
        assert time.monotonic() - began < 10
    finally:
        first.process.kill()
    order = [line.split("name=")[1].split()[0] for line in first.journal().splitlines() if "process.stopped" in line]
    assert order[:2] == ["api", "idle"]
    assert set(order[2:]) == {"seaweedfs", "redis", "postgres"}
    assert processes_of(own_home) == []
    assert sockets_of(first.ports()) == []
    assert shared_memory() & memory == set()
    assert not (own_home / "connection.json").exists()

    # Ports that others took meanwhile must not cost the data.
    record = json.loads((own_home / "home.json").read_text())
    (own_home / "home.json").write_text(json.dumps({**record, "ports": {}}))
    second = Up(own_home)
    try:
        assert second.exports[1] == first.exports[1]
        assert client(own_home).files.content(file.id).text == ROWS
        pids = second.pids()
        memory = shared_memory_of(pids["postgres"])
        second.process.kill()
        second.process.wait()
        eventually(lambda: not any(map(alive, pids.values())), 10, "the end of the children of a killed supervisor")
    finally:
        second.process.kill()

    third = Up(own_home)
    try:
        memory |= shared_memory_of(third.pids()["postgres"])
        assert client(own_home).files.content(file.id).text == ROWS
        assert attune("down", "--home", own_home).returncode == 0
        assert third.process.wait(5) == 0
    finally:
        third.process.kill()
    assert processes_of(own_home) == []
    assert sockets_of(third.ports() | second.ports()) == []
    assert shared_memory() & memory == set()


def test_as_root_the_database_lies_outside_a_private_folder(up: Up) -> None:
    if os.geteuid() != 0:
        pytest.skip("only as root does PostgreSQL run as another user")
    data = Path(json.loads((up.home / "home.json").read_text())["postgres_data"])
    assert data.parent.parent == postgres.SHARED
    assert (data.parent / "home").read_text().strip() == str(up.home)
    pid = up.pids()["postgres"]
    uid = Path(f"/proc/{pid}").stat().st_uid
    assert uid != 0
    assert data.stat().st_uid == uid
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_an_ordinary_user_needs_nothing_outside_the_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As root, tried as `nobody`, with a home inside a folder only that user may enter."""
    if os.geteuid() != 0:
        pytest.skip("the other tests run as an ordinary user already")
    import shutil
    import tempfile

    packages = next(path for path in sys.path if path.endswith("site-packages"))
    search = os.pathsep.join([str(ROOT), packages])
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    python = None
    for candidate in (sys.executable, sys._base_executable, "/usr/bin/python3"):  # type: ignore[attr-defined]  # CPython has it
        try:
            tried = subprocess.run(
                [
                    candidate,
                    "-c",
                    f"import sys, cli.main, psycopg; assert sys.version_info[:2] == {sys.version_info[:2]}",
                ],
                env=environment(PYTHONPATH=search),
                cwd="/",
                capture_output=True,
                check=False,
                **nobody,  # type: ignore[call-overload]
            )
        except OSError:
            continue
        if tried.returncode == 0:
            python = candidate
            break
    if python is None:
        pytest.skip("no interpreter here that another user can run")
    folder = Path(tempfile.mkdtemp(prefix="attune-nobody-"))
    home = folder / "home"
    try:
        os.chown(folder, 65534, 65534)
        process = subprocess.Popen(
            [python, "-c", CODE, str(home), "servers"],
            env=environment(PYTHONPATH=search),
            cwd="/",
            stderr=subprocess.PIPE,
            text=True,
            **nobody,  # type: ignore[call-overload]
        )
        try:
            eventually(
                lambda: (
                    process.poll() is not None
                    or (
                        (home / "run" / "status.json").exists()
                        and '"ready"' in (home / "run" / "status.json").read_text()
                    )
                ),
                30,
                "the servers being ready",
            )
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert {path.stat().st_uid for path in home.rglob("*")} == {65534}
            assert (home / "postgres" / "PG_VERSION").exists()
        finally:
            process.terminate()
            process.wait(15)
        assert processes_of(home) == []
    finally:
        shutil.rmtree(folder)
