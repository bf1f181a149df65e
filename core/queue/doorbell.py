"""Ringing a worker awake. A ring is a hint: workers look for work by themselves, so a lost ring costs seconds."""

import queue
import threading
from typing import Protocol

import structlog

log = structlog.get_logger()


class Doorbell(Protocol):
    def ring(self, kind: str) -> None:
        """There may be work of this kind (``prepare`` or ``train``). Never blocks, never raises."""


class BackgroundDoorbell:
    """Rings from a thread of its own, so that a broker that is slow or gone delays no request."""

    def __init__(self, send: "Send") -> None:
        self._send = send
        self._kinds: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._thread: threading.Thread | None = None

    def ring(self, kind: str) -> None:
        with self._lock:
            # Rings of one kind that wait for the broker say nothing that one of them does not say.
            if kind in self._waiting:
                return
            self._waiting.add(kind)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="doorbell", daemon=True)
                self._thread.start()
        self._kinds.put(kind)

    def _run(self) -> None:
        while True:
            kind = self._kinds.get()
            with self._lock:
                self._waiting.discard(kind)
            try:
                self._send(kind)
            except Exception as error:  # noqa: BLE001  # whatever the broker's client raises, workers find the row anyway
                log.warning("doorbell.failed", kind=kind, error=type(error).__name__)


class Send(Protocol):
    def __call__(self, kind: str) -> None: ...
