"""Waits for the moment of a blow and strikes. What it did, and when, is its history."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tests.chaos.generator import Blow, Moment, Work
from tests.chaos.site import TRAIN, Site, signal_to

TERMINAL = ("succeeded", "failed", "cancelled")
PATIENCE = 30.0
"""Seconds a moment is waited for: a job that never comes there is struck all the same."""


@dataclass(frozen=True)
class Strike:
    target: str
    at: float
    """Unix seconds."""
    owner: bool
    """Whether it took a running job's own supervisor."""
    orphans: frozenset[int] = frozenset()


@dataclass
class Nemesis:
    site: Site
    random: Random
    history: list[Strike] = field(default_factory=list)

    def strike(self, blow: Blow, trial: str, work: Work, look: Callable[[], None]) -> bool:
        """Wait for the blow's moment and deal it; ``look`` is called right after, before anything recovers.

        False when the job had ended before.
        """
        held = self.arrive(blow.moment, trial, work)
        ended = self._ended(trial)
        self._hit(blow, trial)
        if held:
            # Nobody else writes now, and the request is in flight: what rows name must be whole in this very moment.
            look()
            self.site.gate.release(drop=not blow.late)
        return not ended

    def arrive(self, moment: Moment, trial: str, work: Work) -> bool:
        """True when a request is held at the gate."""
        site = self.site
        if moment.where == "seconds":
            site.pause(moment.number)
            return False
        if not site.until(lambda: self._job(trial) is not None, PATIENCE):
            return False
        job = self._job(trial)
        assert job is not None
        if moment.where in ("checkpoint", "artifact"):
            # S3's path style: the bucket comes first.
            site.gate.hold(rf"(PUT|POST) /[^/ ]+/jobs/{job['id']}/gen-\d+/{moment.where}", int(moment.number))
            there = site.until(lambda: site.gate.held.is_set() or self._ended(trial), PATIENCE, every=0.01)
            if not site.gate.held.is_set():
                site.gate.release()
            return there and site.gate.held.is_set()
        site.until(lambda: self._is_there(moment, trial, work) or self._ended(trial), PATIENCE, every=0.01)
        return False

    def _is_there(self, moment: Moment, trial: str, work: Work) -> bool:
        job = self._job(trial)
        if job is None:
            return False
        match moment.where:
            case "preparing":
                return job["phase"] == "preparing" or job["status"] != "validating_files"
            case "starting":
                return job["phase"] in ("starting", "training")
            case "step":
                return (job["progress"] or {}).get("step", 0) >= moment.number * work.steps
            case "saving":
                folders = self.site.home.glob(f"worker*/scratch/*/{job['id']}-gen-*/**/tmp-*")
                # A folder may go while it is looked through.
                with contextlib.suppress(FileNotFoundError):
                    return any(True for _ in folders)
                return False
            case _:
                return bool(job["phase"] in ("uploading", "saving"))

    def _job(self, trial: str) -> dict[str, object] | None:
        return self.site.one(
            "SELECT id, status, phase, progress, worker_id FROM jobs WHERE metadata->>'trial' = %s", trial
        )

    def _ended(self, trial: str) -> bool:
        job = self._job(trial)
        return job is not None and job["status"] in TERMINAL

    def _hit(self, blow: Blow, trial: str) -> None:
        site = self.site
        match blow.target:
            case "supervisor":
                name = self.owner(trial) or self.random.choice((*TRAIN, "prepare"))
                orphans = frozenset(t.pid for t in site.trainers() if self._parent(t.pid) == site.pids().get(name))
                self._note("supervisor", self.owner(trial) == name, orphans)
                site.kill(name, blow.down)
            case "trainer":
                found = site.trainers()
                pids = [t.pid for t in found] or self._idle()
                if pids:
                    self._note("trainer")
                    signal_to(self.random.choice(pids), signal.SIGKILL)
            case "postgres" if self.random.random() < 0.5:
                # A server process that dies takes all others with it, and the postmaster recovers from the log.
                self._note("postgres")
                pid = site.stack.supervisor.pid("postgres")
                backends = [] if pid is None else children(pid)
                if backends:
                    signal_to(self.random.choice(backends), signal.SIGKILL)
            case target:
                self._note(target)
                site.kill(target, blow.down)

    def owner(self, trial: str) -> str | None:
        """The process that has the job now, by its worker's name."""
        row = self.site.one(
            "SELECT w.name, w.kind FROM jobs j JOIN workers w ON w.id = j.worker_id "
            "WHERE j.metadata->>'trial' = %s AND j.lease_until > now()",
            trial,
        )
        if row is None:
            return None
        return "prepare" if row["kind"] == "prepare" else "train-b" if row["name"] == "machine-b" else "train"

    def _note(self, target: str, owner: bool = False, orphans: frozenset[int] = frozenset()) -> None:
        self.history.append(Strike(target, time.time(), owner, orphans))

    def _idle(self) -> list[int]:
        return [pid for worker in self.site.workers() for pid in children(worker)]

    @staticmethod
    def _parent(pid: int) -> int | None:
        try:
            with open(f"/proc/{pid}/stat") as file:
                return int(file.read().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            return None


def children(pid: int) -> list[int]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        return [int(child) for task in tasks for child in open(f"/proc/{pid}/task/{task}/children").read().split()]
    except OSError:
        return []
