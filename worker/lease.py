"""Keeping a row while its child works: a heartbeat that ends the child when the authority over the row is gone."""

import threading
import time
from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.config import Settings
from core.db.session import Sessions, transaction
from core.queue import claims
from core.queue.claims import Claim

log = structlog.get_logger()


class Lease:
    """A thread that heartbeats from entry to exit.

    ``stop`` is called, from that thread, as soon as the row is no longer ours or cancelling is asked for: waiting for
    anybody else to notice could outlast the lease.
    """

    def __init__(self, sessions: Sessions, claim: Claim, settings: Settings, stop: Callable[[], None]) -> None:
        self.claim = claim
        self.lost = threading.Event()
        self.cancelled = threading.Event()
        self._sessions = sessions
        self._settings = settings
        self._stop = stop
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease-{claim.id}", daemon=True)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        confirmed = time.monotonic()
        while not self._ended.wait(self._settings.heartbeat_seconds):
            # The lease counts from before the query: an answer that took long must not lengthen it.
            asked = time.monotonic()
            try:
                with transaction(self._sessions) as session:
                    cancel = claims.heartbeat(session, self.claim, self._settings)
            except SQLAlchemyError as error:
                silent = time.monotonic() - confirmed
                log.warning("heartbeat.failed", id=self.claim.id, silent_s=round(silent, 1), error=type(error).__name__)
                if silent < self._settings.authority_seconds:
                    continue
                cancel = None
            if cancel is None:
                log.warning("lease.lost", id=self.claim.id, generation=self.claim.generation)
                self.lost.set()
                self._stop()
                return
            confirmed = asked
            if cancel and not self.cancelled.is_set():
                self.cancelled.set()
                self._stop()
