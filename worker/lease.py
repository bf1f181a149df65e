"""Keeping a row while its child works: a heartbeat that ends the child when the authority over the row is gone."""

import threading
import time
from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core import telemetry
from core.config import Settings
from core.db.session import Sessions, transaction
from core.errors import LostAuthority
from core.queue import claims
from core.queue.claims import Claim
from core.states import Wish

log = structlog.get_logger()


class Lease:
    """A thread that heartbeats from entry to exit.

    ``stop`` is called, from that thread, as soon as the row is no longer ours or cancelling is asked for: waiting for
    anybody else to notice could outlast the lease. Other wishes wait in ``wish`` for whoever runs the child.
    """

    def __init__(self, sessions: Sessions, claim: Claim, settings: Settings, stop: Callable[[], None]) -> None:
        self.claim = claim
        self.lost = threading.Event()
        self.wish: Wish | None = None
        self._sessions = sessions
        self._settings = settings
        self._stop = stop
        self._ended = threading.Event()
        self._confirmed = time.monotonic()
        self._threads = [
            threading.Thread(target=run, name=f"{name}-{claim.id}", daemon=True)
            for name, run in (("lease", self._run), ("authority", self._watch))
        ]

    def __enter__(self) -> "Lease":
        self._confirmed = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _watch(self) -> None:
        """Ends the child in time even while a heartbeat waits for a database that doesn't answer."""
        while (left := self._confirmed + self._settings.authority_seconds - time.monotonic()) > 0:
            if self._ended.wait(left):
                return
        self._lose()

    def _run(self) -> None:
        while not self._ended.wait(self._settings.heartbeat_seconds) and not self.lost.is_set():
            # The lease counts from before the query: an answer that took long must not lengthen it.
            asked = time.monotonic()
            try:
                with transaction(self._sessions) as session:
                    wish = claims.heartbeat(session, self.claim, self._settings)
            except LostAuthority:
                self._lose()
                return
            except SQLAlchemyError as error:
                silent = time.monotonic() - self._confirmed
                log.warning("heartbeat.failed", id=self.claim.id, silent_s=round(silent, 1), error=type(error).__name__)
                continue
            self._confirmed = asked
            cancelled, self.wish = self.cancelled, wish
            if self.cancelled and not cancelled:
                self._stop()

    @property
    def cancelled(self) -> bool:
        return self.wish == Wish.CANCEL

    def _lose(self) -> None:
        if self.lost.is_set():
            return
        telemetry.leases_lost.inc()
        log.warning("lease.lost", id=self.claim.id, generation=self.claim.generation)
        self.lost.set()
        self._stop()
