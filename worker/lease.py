"""Keeping a row while its child works: a heartbeat that ends the child when the authority over the row is gone."""

import threading
import time
from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

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
                    wish = claims.heartbeat(session, self.claim, self._settings)
            except LostAuthority:
                self._lose()
                return
            except SQLAlchemyError as error:
                silent = time.monotonic() - confirmed
                log.warning("heartbeat.failed", id=self.claim.id, silent_s=round(silent, 1), error=type(error).__name__)
                if silent < self._settings.authority_seconds:
                    continue
                self._lose()
                return
            confirmed = asked
            cancelled, self.wish = self.cancelled, wish
            if self.cancelled and not cancelled:
                self._stop()

    @property
    def cancelled(self) -> bool:
        return self.wish == Wish.CANCEL

    def _lose(self) -> None:
        log.warning("lease.lost", id=self.claim.id, generation=self.claim.generation)
        self.lost.set()
        self._stop()
