"""From a trainer's events.jsonl to rows: read what was appended, write it through the fence, in order."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import structlog
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from core import telemetry
from core.db.tables import Job
from core.queue.claims import Claim
from core.queue.fence import fenced
from core.services import diagnoses, events, limits, progress, runs
from core.services.limits import Reached
from core.states import Phase
from core.storage import store as layout
from core.wiring import Parts
from worker import publish
from worker.uploader import Uploader

log = structlog.get_logger()

_PHASES = {"training": Phase.TRAINING, "evaluating": Phase.EVALUATING, "saving": Phase.SAVING}


class Reporter:
    """Tails one run's events. ``done`` and ``error`` hold the child's last word, ``limit`` the one the job came to."""

    def __init__(self, parts: Parts, claim: Claim, folder: Path, total_steps: int) -> None:
        self.done: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self.limit: Reached | None = None
        self._sessions = parts.sessions
        self._store = parts.store
        self._settings = parts.settings
        self._claim = claim
        self._folder = folder
        self._path = folder / "events.jsonl"
        self._total = total_steps
        self._read = 0
        self._waiting: list[dict[str, Any]] = []
        self._uploader = Uploader(self._publish, self._remove)

    def finish(self, give_up: Callable[[], bool]) -> None:
        """After the child's end: until all it said is written and all it saved is stored, or nobody wants it any more.

        Raises what the uploads have ended with.
        """
        try:
            while not give_up():
                self.pump()
                if not self._waiting and self._uploader.idle:
                    return
                time.sleep(0.05)
        finally:
            self._uploader.abandon()

    def abandon(self) -> None:
        """Nobody wants anything of this run any more."""
        self._uploader.abandon()

    def pump(self) -> None:
        """Write what is new. While the database is away, lines wait here and in the file, and nothing is lost."""
        self._uploader.check()
        self._waiting += self._new_lines()
        while self._waiting:
            batch = self._next_batch()
            try:
                self._write(batch)
            except OperationalError as error:
                log.warning("report.postponed", job_id=self._claim.id, error=type(error).__name__)
                return
            del self._waiting[: len(batch)]

    def _new_lines(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        # A line without its end is still being written, or was cut by the child's death: it waits or never counts.
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        return [orjson.loads(line) for line in whole.splitlines()]

    def _next_batch(self) -> list[dict[str, Any]]:
        """A run of steps, or one event of another type."""
        first = self._waiting[0]
        if first["type"] != "step":
            return [first]
        count = 0
        while count < len(self._waiting) and self._waiting[count]["type"] == "step" and count < 200:
            count += 1
        return self._waiting[:count]

    def _write(self, batch: list[dict[str, Any]]) -> None:
        line = batch[0]
        match line["type"]:
            case "step":
                with self._fenced() as (session, job):
                    progress.steps(session, job, batch, self._total)
                    diagnoses.step(session, job)
                    self._keep_to_limits(session, job)
                telemetry.steps.inc(len(batch))
                telemetry.tokens.inc(sum(step["tokens"] for step in batch))
                telemetry.step_seconds.inc(sum(step["seconds"] for step in batch))
                telemetry.tokens_per_second.set(batch[-1]["tokens_per_second"])
            case "started":
                with self._fenced() as (session, job):
                    diagnoses.begin(session, job, line)
            case "eval":
                with self._fenced() as (session, job):
                    progress.evaluated(session, job, line, self._total)
                    diagnoses.look(session, job)
                    self._keep_to_limits(session, job)
            case "found":
                with self._fenced() as (session, job):
                    progress.rate_found(session, job, line)
            case "answers":
                with self._fenced() as (session, job):
                    progress.answered(session, job, line)
            case "phase":
                with self._fenced() as (_, job):
                    runs.phase(job, _PHASES[line["phase"]])
            case "message":
                with self._fenced() as (session, job):
                    events.append(session, job, line["message"], level=line["level"], data=line.get("data"))
            case "checkpoint":
                self._uploader.add(line)
            case "done":
                self.done = line
            case "error":
                self.error = line

    def _keep_to_limits(self, session: Session, job: Job) -> None:
        if self.limit is None and (found := limits.reached(session, job, self._settings)) is not None:
            self.limit = found
            if found.save:
                events.append(session, job, f"{found.message} It ends here, with a model.", level="warn")

    def _publish(self, line: dict[str, Any], look: Callable[[], None]) -> None:
        """In the uploader's thread: files, the manifest, then the row under the fence. No transaction is open during
        the upload, and training goes on meanwhile."""
        prefix = layout.run(self._claim.id, self._claim.generation, f"checkpoints/step-{line['step']}/")
        try:
            manifest, sha256 = publish.folder(self._store, self._folder / line["path"], prefix, look)
        except publish.Damaged as error:
            log.warning("checkpoint.damaged", job_id=self._claim.id, step=line["step"], error=str(error))
            with self._fenced() as (session, job):
                message = f"The checkpoint of step {line['step']} was damaged on the worker's disk and is not kept."
                events.append(session, job, message, level="warn", data={"step": line["step"]})
            return
        with self._fenced() as (session, job):
            gone = progress.checkpointed(session, job, line, prefix, manifest, sha256)
            diagnoses.look(session, job)
        # It is in the store now: a long run must not fill this machine's disk with what nobody reads.
        self._remove(line)
        try:
            self._store.delete(*gone)
        except (BotoCoreError, ClientError) as error:
            # No row names them any more: the collector finds them.
            log.warning("checkpoints.not_deleted", job_id=self._claim.id, error=type(error).__name__)

    def _remove(self, line: dict[str, Any]) -> None:
        shutil.rmtree(self._folder / line["path"], ignore_errors=True)

    def _fenced(self) -> Any:  # Any: the context manager of fenced(), whose type has no short name
        return fenced(self._sessions, Job, self._claim.id, self._claim.generation)
