"""Checkpoints on their way into the store while training and reporting go on: a queue and its thread.

A store or database that is away for a while costs nothing but time: the upload is tried again until it is there, and of
recovery points that pile up meanwhile only the newest counts, and the last that is known to be good.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import structlog
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.exc import OperationalError

log = structlog.get_logger()

Line = dict[str, Any]  # Any: a checkpoint event of worker/folder.py

_AGAIN_SECONDS = 1.0


class Abandoned(Exception):
    """Nobody wants this upload any more."""


class Uploader:
    """``publish`` uploads one checkpoint and writes its row; it calls what it is given now and then, which may raise.

    ``skip`` is told of a recovery point that is left out for a newer one.
    """

    def __init__(self, publish: Callable[[Line, Callable[[], None]], None], skip: Callable[[Line], None]) -> None:
        self._publish = publish
        self._skip = skip
        self._waiting: list[Line] = []
        self._busy = False
        self._error: BaseException | None = None
        self._abandoned = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="uploader", daemon=True)

    def add(self, line: Line) -> None:
        with self._changed:
            # The last good one stays: it is what the user gets if the run diverges.
            passed = [o for o in self._waiting if o["kind"] == "recovery" and o["step"] != line.get("good_step")]
            self._waiting = [*(old for old in self._waiting if old not in passed), line]
            self._changed.notify_all()
        for old in passed:
            log.info("checkpoint.skipped", step=old["step"])
            self._skip(old)
        if self._thread.ident is None:
            self._thread.start()

    def check(self) -> None:
        """Raise what an upload has failed with for good."""
        if self._error is not None:
            raise self._error

    @property
    def idle(self) -> bool:
        """Whether all is uploaded. Raises as :meth:`check` does."""
        self.check()
        with self._changed:
            return not self._waiting and not self._busy

    def abandon(self) -> None:
        self._abandoned.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.ident is not None:
            # It looks up at every piece; one that waits for a store that is away ends by itself a little later.
            self._thread.join(_AGAIN_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._abandoned.is_set())
                if self._abandoned.is_set():
                    return
                line = self._waiting.pop(0)
                self._busy = True
            try:
                self._until_done(line)
            except Abandoned:
                return
            except BaseException as error:  # noqa: BLE001  # it is raised again where the job's end is decided
                self._error = error
                return
            with self._changed:
                self._busy = False

    def _until_done(self, line: Line) -> None:
        began = time.monotonic()
        while True:
            try:
                self._publish(line, self._look)
                return
            except (BotoCoreError, ClientError, OperationalError) as error:
                self._look()
                waited = round(time.monotonic() - began, 1)
                log.warning("checkpoint.postponed", step=line["step"], waited_s=waited, error=type(error).__name__)
            self._abandoned.wait(_AGAIN_SECONDS)

    def _look(self) -> None:
        if self._abandoned.is_set():
            raise Abandoned
