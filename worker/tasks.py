"""The Celery side of a worker: hears the wake message, wakes the slots. The only file here that knows Celery."""

import threading
from collections.abc import Callable

import structlog
from celery.worker import state

from core.config import Settings
from core.queue import celery

log = structlog.get_logger()

_RETRY_SECONDS = 5


class Consumer:
    """A Celery worker in a thread of this process. When it fails, slots find work by themselves until it is back."""

    def __init__(self, settings: Settings, wake: Callable[[], None]) -> None:
        self._settings = settings
        self._wake = wake
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="celery", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        # Celery's own word for a warm shutdown: leave the loop after what is under way, which is next to nothing.
        state.should_stop = 0
        self._thread.join(2)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._consume()
            except Exception as error:  # noqa: BLE001  # whatever ends the consumer, the doorbell must come back
                log.warning("doorbell.deaf", error=type(error).__name__)
            self._ended.wait(_RETRY_SECONDS)

    def _consume(self) -> None:
        app = celery.app(self._settings)

        @app.task(name=celery.WAKE)  # type: ignore[untyped-decorator]  # Celery ships no types
        def wake(kind: str) -> None:
            self._wake()

        app.WorkController(
            pool="threads",
            concurrency=self._settings.worker_slots,
            queues=[celery.queue_name(self._settings.worker_kinds)],
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            loglevel="ERROR",
        ).start()
