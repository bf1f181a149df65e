"""What tests of questions about data share: a prepare worker in this process, and requests that wait for nobody."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.wiring import Parts
from worker.runner import Runner
from worker.slot import Slot


@pytest.fixture
def no_wait(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that nobody works for come back at once."""
    monkeypatch.setattr(parts.settings, "answer_wait_seconds", 0)


@pytest.fixture
def runner(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    own = Slot(0, "prepare", parts.settings)
    yield Runner(parts, own, "worker_here", threading.Event())
    own.close()
