"""A live stack for whole stories: the real commands under `attune up`, with leases short enough to wait for.

The fixture ``live`` is in ``tests/conftest.py``: flows and SDKs share one stack in a run.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import httpx
import pytest
from openai import OpenAI

ROOT = Path(__file__).resolve().parents[1]

# One that unchanged scripts name, and one with a slash, which SDKs write in two ways.
ALIASES = ["gpt-4o-mini-2024-07-18", "attune/tiny"]

# A tenth of the defaults, so that a story with a lost worker takes seconds.
_SHORT = {
    "ATTUNE_LEASE_SECONDS": "6",
    "ATTUNE_HEARTBEAT_SECONDS": "1",
    "ATTUNE_AUTHORITY_SECONDS": "4",
    "ATTUNE_SWEEP_SECONDS": "1",
    "ATTUNE_POLL_SECONDS": "1",
    "ATTUNE_BACKOFF_SECONDS": "0.5",
    "ATTUNE_STOP_GRACE_SECONDS": "5",
    # Its steps take milliseconds: a point to go on from may cost what it wants.
    "ATTUNE_RECOVERY_OVERHEAD": "1",
    "ATTUNE_WORKER_THREADS": "1",
    "ATTUNE_INLINE_CHECK_BYTES": "200000",
    # Where the tests' own receivers listen.
    "ATTUNE_WEBHOOK_ALLOW": "127.0.0.1",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for first in range(21000, 32000, count):
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(contextlib.closing(socket.socket())).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


def short_leases() -> dict[str, str]:
    return dict(_SHORT)


@dataclass
class Live:
    home: Path
    env: dict[str, str]
    base_url: str
    api_key: str
    admin_key: str

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=self.base_url, api_key=self.api_key, _strict_response_validation=True)

    def admin(self, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.admin_key}"}
        return httpx.request(method, f"{self.base_url}/admin/{path}", headers=headers, timeout=30, **options).json()

    def pids(self) -> dict[str, int]:
        record = json.loads((self.home / "run" / "status.json").read_text())
        return {process["name"]: process["pid"] for process in record["processes"]}

    def register(self, name: str, source: str, seconds: float = 180, **more: Any) -> None:
        answer = self.admin("POST", "models", json={"name": name, "source": source, **more})
        assert answer.get("status") == "registering", answer
        self.until(lambda: self.admin("GET", f"models/{name}")["status"] != "registering", seconds, f"{name} is ready")
        model = self.admin("GET", f"models/{name}")
        assert model["status"] == "ready", model["error"]

    def until(self, true: Callable[[], object], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{self.logs()}"
            time.sleep(0.1)

    def wait(self, job_id: str, seconds: float = 120) -> Any:
        """The job, once it has ended."""
        self.until(lambda: self.job(job_id).status in ("succeeded", "failed", "cancelled"), seconds, f"{job_id} ends")
        return self.job(job_id)

    def job(self, job_id: str) -> Any:  # Any: the SDK's class does not know `ext`
        return self.client.fine_tuning.jobs.retrieve(job_id)

    def logs(self) -> str:
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted((self.home / "logs").glob("*.log"))
            if path.stem in ("up", "api", "prepare", "train", "reconciler")
        )

    def trainers(self) -> set[int]:
        """Processes that are training: those that hold a job's events.jsonl open."""
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                opened = [os.readlink(entry) for entry in (folder / "fd").iterdir()]
            except OSError:
                continue
            if any(path.startswith(str(self.home)) and path.endswith("/events.jsonl") for path in opened):
                found.add(int(folder.name))
        return found


class Beside:
    """Does something again and again in a thread, for as long as it is entered."""

    every = 0.05
    """Seconds between two looks"""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self.every):
            self.look()

    def look(self) -> None:
        raise NotImplementedError


class Watch(Beside):
    """Counts trainers, and keeps the largest number seen."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self.most = 0
        self._live = live

    def look(self) -> None:
        self.most = max(self.most, len(self._live.trainers()))


def start(home: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    """`attune up`, ready."""
    with (home.parent / f"{home.name}.err").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "up", "--home", str(home)],
            env=env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    if not process.stdout.readline():
        pytest.fail((home.parent / f"{home.name}.err").read_text())
    return process


@contextmanager
def running(
    home: Path, env: dict[str, str], tiny: Path | None, periods: Mapping[str, str] = MappingProxyType(_SHORT)
) -> Iterator[Live]:
    """The whole stack, with the tiny model on offer if it is given, for as long as this is entered; ``periods``: its
    settings."""
    env = env | periods
    env |= {
        # Converting the real model takes half a minute: once for each clone is enough.
        "ATTUNE_CONVERSIONS": str(ROOT / ".cache" / "conversions"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    process = start(home, env)
    try:
        connection = json.loads((home / "connection.json").read_text())
        live = Live(home, env, connection["base_url"], connection["api_key"], connection["admin_key"])
        if tiny is not None:
            live.register("attune-tiny", f"path:{tiny}", aliases=ALIASES)
        yield live
    finally:
        process.terminate()
        process.wait(30)
