"""A slot's child: what it may know, and that it ends when it must."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.config import Settings
from worker import slot
from worker.slot import Child, Slot


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def environment(pid: int) -> dict[str, str]:
    raw = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(entry.decode().split("=", 1) for entry in raw if b"=" in entry)


def test_a_child_knows_no_credential_and_no_address(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ATTUNE_DATABASE_URL", "ATTUNE_S3_SECRET_KEY", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "canary")
    own = Slot(0, "prepare", settings)
    child = own.prepare()
    try:
        assert "canary" not in environment(child.pid).values()
        assert environment(child.pid)["HF_HUB_OFFLINE"] == "1"
    finally:
        own.close()


def test_an_idle_child_becomes_warm_and_is_replaced_when_it_dies(settings: Settings) -> None:
    own = Slot(0, "prepare", settings)
    try:
        first = own.prepare()
        assert own.prepare() is first
        deadline = time.monotonic() + 60
        while not own.warm:
            assert time.monotonic() < deadline, first.log.read_text()
            time.sleep(0.05)
        os.kill(first.pid, signal.SIGKILL)
        first.wait(5)
        assert not own.warm
        assert own.prepare().pid != first.pid
    finally:
        own.close()


def test_a_child_ends_when_its_pipe_closes(settings: Settings) -> None:
    child = Child("prepare", settings.scratch_dir, 1)
    try:
        deadline = time.monotonic() + 60
        while not child.warm:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert child._process.stdin is not None
        child._process.stdin.close()
        assert child.wait(5) == 0
    finally:
        child.kill()
        child._process.wait()


def test_a_child_ends_with_the_thread_that_spawned_it(tmp_path: Path) -> None:
    """The supervisor is killed while the child is stuck in native code and can't read its pipe."""
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'from worker.child import die_with_parent; die_with_parent();"
        " import time; print(1, flush=True); time.sleep(600)'], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(600)"
    )
    root = str(Path(slot.__file__).parents[1])
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_trainers_never_share_a_slot(tmp_path: Path) -> None:
    """A successor waits for a predecessor that is still dying, however its supervisor ended."""
    code = (
        "import sys, time; from pathlib import Path; from worker.child import hold_slot\n"
        "hold_slot(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "slot.lock")]
    env = {**os.environ, "PYTHONPATH": str(Path(slot.__file__).parents[1])}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    second = subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True)
    assert second.stdout is not None
    try:
        assert select.select([second.stdout], [], [], 1.5)[0] == []
        first.kill()
        assert select.select([second.stdout], [], [], 10)[0] == [second.stdout]
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]  # both have a pipe
