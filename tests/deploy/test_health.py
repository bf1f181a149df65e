"""The containers' health checks against a real database, and their exit status."""

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from urllib.error import HTTPError

import pytest

from core import clock, config
from core.config import Settings
from core.db.session import transaction
from core.db.tables import Worker
from core.wiring import Parts

HEALTH = Path(__file__).resolve().parent.parent.parent / "deploy" / "health.py"


def loaded(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> ModuleType:
    spec = importlib.util.spec_from_file_location("health", HEALTH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(config, "load", lambda: settings)
    return module


def seen(parts: Parts, name: str, seconds_ago: float) -> None:
    with transaction(parts.sessions) as session:
        session.add(
            Worker(
                id=f"worker_{name}_{seconds_ago}",
                name=name,
                kind="train",
                slots=1,
                device="cpu",
                memory_bytes=1,
                version="0",
                last_seen_at=clock.now() - timedelta(seconds=seconds_ago),
            )
        )


def test_a_worker_is_healthy_while_its_own_heartbeat_is_fresh(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    health = loaded(monkeypatch, parts.settings.model_copy(update={"worker_name": "mine", "heartbeat_seconds": 10}))
    assert not health.worker(), "it has not registered yet"
    seen(parts, "another", 0)
    assert not health.worker(), "another worker's life is not its own"
    seen(parts, "mine", 31)
    assert not health.worker(), "three heartbeats have been missed"
    seen(parts, "mine", 20)
    assert health.worker(), "a restarted worker is a new row; the newest one counts"


@pytest.fixture
def answering() -> Iterator[tuple[int, list[int]]]:
    """A port that answers /readyz with the status in the list."""
    status = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0] if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server.server_port, status
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_api_is_healthy_when_it_is_ready(answering: tuple[int, list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    port, status = answering
    health = loaded(monkeypatch, Settings(port=port))
    assert health.api()
    status[0] = 503
    with pytest.raises(HTTPError):
        health.api()


@pytest.mark.parametrize("away", [False, True])
def test_the_exit_status_says_it(parts: Parts, away: bool) -> None:
    url = parts.settings.database_url
    environment = {**os.environ, "ATTUNE_DATABASE_URL": url + "-that-is-not-there" if away else url}
    environment["PYTHONPATH"] = str(HEALTH.parent.parent)
    done = subprocess.run([sys.executable, HEALTH, "database"], env=environment, capture_output=True, timeout=60)
    assert (done.returncode == 0) != away
