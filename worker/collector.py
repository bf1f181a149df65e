"""The round through the whole store for what nobody needs (``core/services/litter.py``), every hour or so.

A thread of its own: a full bucket takes minutes to list, and lost jobs must not wait for that.
"""

import threading

import structlog
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.exc import SQLAlchemyError

from core.services import litter
from core.wiring import Parts

log = structlog.get_logger()


class Collector:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        settings = self._parts.settings
        while not self._ended.wait(settings.litter_sweep_seconds):
            try:
                removed = litter.clear(self._parts.sessions, self._parts.store, settings, self._ended.is_set)
            except (SQLAlchemyError, BotoCoreError, ClientError) as error:
                log.warning("litter.failed", error=type(error).__name__)
                continue
            if removed:
                log.info("litter.removed", count=removed)
