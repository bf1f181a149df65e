"""Delivers the outbox of webhooks: claims what is due, posts it, writes down what came of it.

A thread of the reconciler's process; any number of copies may run, since a row is claimed by one of them. Each receiver
gets one event at a time, so one that hangs delays only its own.
"""

import threading

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.db.session import transaction
from core.services import deliveries
from core.services.deliveries import Due
from core.webhooks.post import post
from core.wiring import Parts

log = structlog.get_logger()


class Deliverer:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._news = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deliverer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No new tries. Those under way may be cut off with the process: they come back when their lease is over, and
        the receiver knows them by their id."""
        self._ended.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._news.clear()
            try:
                self.round()
            except SQLAlchemyError as error:
                log.warning("deliverer.failed", error=type(error).__name__)
            # A try that ends may leave its receiver with a next event, so it wakes this up.
            self._news.wait(self._parts.settings.webhook_poll_seconds)

    def round(self) -> list[threading.Thread]:
        """Start every delivery that is due and has a free place; each is a thread of its own."""
        settings = self._parts.settings
        with self._lock:
            busy = set(self._busy)
        free = settings.webhook_receivers - len(busy)
        if free <= 0:
            return []
        # The lease outlasts a try, with room for the name service, which has times of its own.
        lease = settings.webhook_timeout_seconds + 45
        with transaction(self._parts.sessions) as session:
            claimed = deliveries.claim(session, busy, free, lease)
        with self._lock:
            self._busy |= {due.endpoint_id for due in claimed}
        threads = [threading.Thread(target=self._deliver, args=(due,), daemon=True) for due in claimed]
        for thread in threads:
            thread.start()
        return threads

    def _deliver(self, due: Due) -> None:
        settings = self._parts.settings
        try:
            answer = post(due.url, due.id, due.body, due.secrets, settings)
            with transaction(self._parts.sessions) as session:
                deliveries.settle(session, due, answer, settings)
        except SQLAlchemyError as error:
            # The receiver may have the event and we can't write it down: it is sent again when the lease is over.
            log.warning("delivery.unsettled", delivery_id=due.id, error=type(error).__name__)
        finally:
            with self._lock:
                self._busy.discard(due.endpoint_id)
            self._news.set()
