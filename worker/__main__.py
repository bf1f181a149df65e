"""``python -m worker``: one worker of one kind. Registers, claims until told to stop, gives back what it holds."""

import signal
import sys
import threading
import time
from types import FrameType

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core import config, telemetry, wiring
from worker import registry, scratch
from worker.registry import Registration
from worker.runner import Runner
from worker.slot import Slot
from worker.tasks import Consumer

log = structlog.get_logger()

_PAUSE = 2.0
"""Seconds between a prepared job and the next idle child, unless somebody rings for it"""


class Bell:
    """Wakes slots: by the doorbell's message, or by the clock."""

    def __init__(self, poll_seconds: float) -> None:
        self._poll_seconds = poll_seconds
        self._condition = threading.Condition()
        self._rings = 0

    def ring(self) -> None:
        with self._condition:
            self._rings += 1
            self._condition.notify_all()

    def wait(self, heard: int, seconds: float | None = None) -> int:
        """Until a ring after the ``heard``-th, or until it is time to look without one; returns the rings so far."""
        with self._condition:
            self._condition.wait_for(lambda: self._rings > heard, self._poll_seconds if seconds is None else seconds)
            return self._rings


def work(runner: Runner, bell: Bell, draining: threading.Event, registration: Registration) -> None:
    """A slot's life: wait, claim until nothing is left, wait again."""
    heard = 0
    while not draining.is_set():
        try:
            runner.slot.prepare()
            while not draining.is_set() and runner.work_once():
                registration.changed()
                if runner.slot.kind == "prepare":
                    # A new child's imports would take a core from the trainer that begins just now.
                    heard = bell.wait(heard, _PAUSE)
                runner.slot.prepare()
        except SQLAlchemyError as error:
            log.warning("database.away", error=type(error).__name__)
        heard = bell.wait(heard)
    runner.slot.close()


def main() -> int:
    settings = config.load()
    wiring.configure_logging(settings)
    draining = threading.Event()
    bell = Bell(settings.poll_seconds)

    def drain(number: int, frame: FrameType | None) -> None:
        draining.set()
        bell.ring()

    signal.signal(signal.SIGTERM, drain)
    signal.signal(signal.SIGINT, drain)
    _name = registry.hold_name(settings)
    parts = wiring.assemble(settings)
    telemetry.serve(settings)
    slots = [Slot(index, settings.worker_kinds, settings) for index in range(settings.worker_slots)]
    registration = Registration(
        parts.sessions,
        settings,
        warm=lambda: all(slot.warm for slot in slots),
        cache=settings.cache_dir,
        measuring=slots[0] if settings.worker_kinds == "train" else None,
    )
    while not draining.is_set():
        try:
            registration.begin()
            scratch.clear(parts)
            break
        except SQLAlchemyError as error:
            log.warning("database.away", error=type(error).__name__)
            time.sleep(1)
    threads = [
        threading.Thread(
            target=work,
            args=(Runner(parts, slot, registration.worker_id, draining), bell, draining, registration),
            name=f"slot-{slot.index}",
        )
        for slot in slots
    ]
    consumer = Consumer(settings, bell.ring)
    consumer.start()
    for thread in threads:
        thread.start()
    log.info("worker.ready", kind=settings.worker_kinds, slots=len(slots), worker_id=registration.worker_id)
    draining.wait()
    registration.draining()
    for thread in threads:
        thread.join()
    consumer.stop()
    registration.end()
    parts.close()
    log.info("worker.stopped", worker_id=registration.worker_id)
    return 0


if __name__ == "__main__":
    sys.exit(main())
