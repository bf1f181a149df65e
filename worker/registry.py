"""What this worker is and has: the row it writes about itself, and its last sign of life."""

import fcntl
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core import ids
from core.config import Settings
from core.cost import Machine
from core.db.session import Sessions, transaction
from core.db.tables import Worker
from core.services import base_models, sweeps, workers
from worker.slot import Slot

log = structlog.get_logger()


def name_of(settings: Settings) -> str:
    return settings.worker_name or f"{socket.gethostname()}-{settings.worker_kinds}"


def hold_name(settings: Settings) -> int:
    """Take the lock of this worker's name, which the kernel frees when its holder is dead; waits for it."""
    settings.scratch_dir.mkdir(parents=True, exist_ok=True)
    lock = os.open(settings.scratch_dir / f".{name_of(settings)}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


MEASUREMENTS = 5
"""A worker has its machine measured so often and keeps the best: when it starts, others start beside it."""


class Registration:
    """The worker's row, kept fresh by a thread."""

    def __init__(
        self,
        sessions: Sessions,
        settings: Settings,
        warm: Callable[[], bool],
        cache: Path,
        measuring: Slot | None = None,
    ) -> None:
        """``measuring``: the slot whose idle child tells what the machine can do; None where nothing is trained."""
        self.worker_id = ids.worker()
        self._sessions = sessions
        self._settings = settings
        self._warm = warm
        self._cache = cache
        self._measuring = measuring
        self._measured = 0
        self._machine: Machine | None = None
        self._draining = False
        self._changed = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registration", daemon=True)

    def begin(self) -> None:
        """Register, and take back at once what a dead predecessor of this name owned."""
        device, memory = _device()
        name = name_of(self._settings)
        with transaction(self._sessions) as session:
            workers.register(
                session,
                Worker(
                    id=self.worker_id,
                    name=name,
                    kind=self._settings.worker_kinds,
                    slots=self._settings.worker_slots,
                    device=device,
                    memory_bytes=memory,
                    version=metadata.version("attune") if _installed() else "source",
                ),
            )
            session.flush()
            ended = workers.expire_leases_of_predecessors(session, name, self._settings.worker_kinds, self.worker_id)
        if ended:
            log.warning("predecessor.dead", name=name, leases=ended)
            with transaction(self._sessions) as session:
                sweeps.expired_jobs(session, self._settings)
                sweeps.expired_items(session, self._settings)
        self._thread.start()

    def draining(self) -> None:
        self._draining = True
        self.changed()

    def changed(self) -> None:
        """Something worth telling happened: write now instead of at the next beat."""
        self._changed.set()

    def end(self) -> None:
        self._ended.set()
        self._changed.set()
        self._thread.join()
        try:
            with transaction(self._sessions) as session:
                workers.gone(session, self.worker_id)
        except SQLAlchemyError as error:
            log.warning("registration.not_removed", error=type(error).__name__)

    def _run(self) -> None:
        warm = False
        # Until it is warm it looks often, so that people who wait for that learn of it soon.
        while not self._ended.is_set():
            self._changed.wait(self._settings.heartbeat_seconds if warm else min(1, self._settings.heartbeat_seconds))
            self._changed.clear()
            warm = self._warm()
            self._measure()
            try:
                with transaction(self._sessions) as session:
                    workers.seen(
                        session,
                        self.worker_id,
                        warm=warm,
                        draining=self._draining,
                        machine=self._machine.model_dump(mode="json") if self._machine else None,
                        base_models=[
                            row.name
                            for row in base_models.list_ready(session)
                            if row.content_sha256 and (self._cache / "base" / row.content_sha256).exists()
                        ],
                    )
            except SQLAlchemyError as error:
                log.warning("registration.failed", error=type(error).__name__)

    def _measure(self) -> None:
        """At most one measurement between two signs of life, as long as the slot has nothing to do."""
        slot = self._measuring
        if slot is None:
            return
        if (found := slot.measured) is not None:
            self._machine = found.better(self._machine)
            self._measured += 1
        # Answers are counted and not questions: a child that is given a job takes its answer with it.
        if self._measured < MEASUREMENTS and slot.warm:
            slot.measure()


def _installed() -> bool:
    try:
        metadata.version("attune")
    except metadata.PackageNotFoundError:
        return False
    return True


def _device() -> tuple[str, int]:
    """What this worker computes on, and that device's memory in bytes. Asks nvidia-smi, since torch takes seconds."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return f"cpu ({os.cpu_count()} cores)", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name, _, mebibytes = answer.stdout.splitlines()[0].rpartition(",")
    return f"cuda ({name.strip()})", int(mebibytes) * 1024 * 1024
