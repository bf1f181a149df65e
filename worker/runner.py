"""One job, told in five verbs: claim, stage, train, publish, finish. And its sisters of the prepare queue.

The only place of the worker that catches everything: whatever ends a child becomes a status, a code and a sentence
that the user can act on; the child's own words are kept as the job's log.
"""

import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import structlog
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.exc import DataError, SQLAlchemyError

from core import telemetry
from core.db.session import transaction
from core.db.tables import BaseModel, Job, WorkItem
from core.errors import JobError, LostAuthority
from core.queue import claims
from core.queue.claims import Claim
from core.queue.fence import fenced
from core.services import checkpoints, diagnoses, runs
from core.states import ItemKind, Phase, Status, Wish
from core.storage import store as layout
from core.wiring import Parts
from worker import answering, disk, joining, memory, preparation, publish, scratch, stage, tokens
from worker.cache import ModelCache
from worker.folder import EXIT_CHECKPOINT_REFUSED, EXIT_DISK_FULL, EXIT_DRAINED, STOP
from worker.lease import Lease
from worker.reporter import Reporter
from worker.slot import Child, Slot

log = structlog.get_logger()

_TICK = 0.2
_STOPS = {Wish.STOP_NOW: "now", Wish.STOP_AT_CHECKPOINT: "checkpoint", Wish.STOP_AT_EPOCH: "epoch"}


class Runner:
    """Works for one slot, in the slot's thread."""

    def __init__(self, parts: Parts, slot: Slot, worker_id: str, draining: threading.Event) -> None:
        self.parts = parts
        self.slot = slot
        self.worker_id = worker_id
        self.draining = draining
        self.cache = ModelCache(parts.settings.cache_dir, parts.store)

    def work_once(self) -> bool:
        """Claim one row and see it through; False when nothing waits."""
        if disk.crowded(self.slot.folder, self.parts.settings.disk_most):
            return False
        if self.slot.kind == "train":
            job = self._claim_job(Status.QUEUED)
            if job is not None:
                self._guarded(job, self._train)
            return job is not None
        item = self._claim_item()
        if item is not None:
            self._guarded(item, self._join_upload if item.kind == ItemKind.JOIN_UPLOAD else self._settle_item)
            return True
        job = self._claim_job(Status.VALIDATING)
        if job is not None:
            self._guarded(job, self._prepare_job)
        return job is not None

    # -- claim

    def _claim_job(self, status: Status) -> Job | None:
        began = time.monotonic()
        job = self._next_job(status)
        if job is not None:
            telemetry.claims.labels(status).inc()
            telemetry.claim_seconds.labels(status).observe(time.monotonic() - began)
        return job

    def _next_job(self, status: Status) -> Job | None:
        with transaction(self.parts.sessions) as session:
            job = claims.next_job(session, status, self.worker_id, self.parts.settings)
            if job is None:
                return None
            if status == Status.QUEUED:
                runs.begin_attempt(session, job, self.worker_id)
            else:
                runs.begin_prepare(job)
            log.info("job.claimed", job_id=job.id, generation=job.generation, status=str(status))
            return job

    def _claim_item(self) -> WorkItem | None:
        with transaction(self.parts.sessions) as session:
            item = claims.next_item(session, self.worker_id, self.parts.settings)
            if item is not None:
                telemetry.claims.labels("items").inc()
                log.info("item.claimed", item_id=item.id, kind=item.kind, generation=item.generation)
            return item

    def _guarded(self, row: Any, work: Any) -> None:  # Any: a Job or WorkItem and the method that takes it
        """Run ``work(row, claim)``; whatever it raises ends the row in good order, or leaves it to the lease."""
        claim = Claim(type(row), row.id, row.generation)
        try:
            work(row, claim)
        except LostAuthority as error:
            log.warning("authority.lost", id=claim.id, generation=claim.generation, error=str(error))
        except JobError as error:
            self._fail(claim, error.error_code or "server_error", error.message, error.param)
        except publish.Damaged as error:
            log.warning("artifact.damaged", id=claim.id, error=str(error))
            self._lose(claim, f"a file was damaged on the worker's disk ({error})")
        except DataError as error:
            # A value that the database won't take is a defect of ours, which would come again at each try.
            self._defect(claim, error)
        except (SQLAlchemyError, BotoCoreError, ClientError) as error:
            # A server behind the service is away: a loss, not the user's fault.
            log.warning("servers.away", id=claim.id, error=type(error).__name__, exc_info=error)
            self._lose(claim, f"a server was away ({type(error).__name__})")
        except Exception as error:  # the slot must outlive any defect of ours
            if disk.is_full(error):
                log.error("disk.full", id=claim.id, exc_info=error)
                self._fail(claim, disk.CODE, disk.fault(self.slot.folder).message, None)
            else:
                self._defect(claim, error)
        finally:
            self.slot.done()
            self._clean(claim)

    # -- stage, train, publish, finish

    def _train(self, job: Job, claim: Claim) -> None:
        assert job.prepared is not None
        folder = self._folder(claim)
        # One child for the whole claim: what the lease has killed while the folder was filled stays dead.
        child = self.slot.prepare()
        with Lease(self.parts.sessions, claim, self.parts.settings, child.kill) as lease:
            base, resume = self._stage(job, claim, folder)
            self.slot.remember(base)
            try:
                spec = stage.training(
                    self.parts.store, folder, job, base, resume, self.slot.threads, self.parts.settings
                )
            except stage.TokensDamaged as error:
                self._prepare_again(claim, str(error))
                return
            reporter = Reporter(self.parts, claim, folder, spec.total_steps)
            if job.wish in _STOPS:
                (folder / STOP).write_text(_STOPS[Wish(job.wish)])
            killed = memory.kills()
            child.start(folder)
            try:
                status = self._watch(child, folder, lease, reporter)
            finally:
                reporter.abandon()
            self._keep_log(claim, child)
            starved = status == -signal.SIGKILL and memory.kills() > killed
            self._finish_training(claim, folder, lease, reporter, status, resume, starved)

    def _stage(self, job: Job, claim: Claim, folder: Path) -> tuple[Path, Path | None]:
        with transaction(self.parts.sessions) as session:
            base = session.get_one(BaseModel, job.base_model_id)
            candidates = checkpoints.newest_first(session, job.id)
        assert base.files is not None
        assert base.content_sha256 is not None
        stage.require_room(folder, job, base, candidates, self.cache)
        path = self.cache.fetch(base.content_sha256, base.files["files"])
        step, resume, unusable = 0, None, {}
        for candidate in candidates:
            try:
                resume, step = stage.checkpoint(self.parts.store, candidate, folder), candidate.step
                break
            except stage.CheckpointDamaged as error:
                unusable[candidate.step] = str(error)
        with fenced(self.parts.sessions, Job, claim.id, claim.generation) as (session, row):
            runs.resume_at(session, row, step, unusable)
        return path, resume

    def _prepare_again(self, claim: Claim, why: str) -> None:
        with self._job(claim) as (session, job):
            keys = runs.prepare_again(session, job, self.parts.settings, why)
        log.warning("tokens.damaged", job_id=claim.id, error=why)
        self.parts.store.delete(*keys)
        self.parts.doorbell.ring("prepare")

    def _watch(self, child: Child, folder: Path, lease: Lease, reporter: Reporter) -> int:
        """Until the child has ended: report what it says, pass on what is asked of it. Returns its exit status."""
        grace: float | None = None
        limited = False
        while (status := child.wait(_TICK)) is None:
            reporter.pump()
            if reporter.limit is not None and not limited:
                # Whatever else it was asked to stop at: the limit is nearer.
                (folder / STOP).write_text("limit")
                limited = True
                if not reporter.limit.save:
                    child.kill()
            if lease.wish in _STOPS and not (folder / STOP).exists():
                (folder / STOP).write_text(_STOPS[lease.wish])
            if (self.draining.is_set() or lease.wish == Wish.PAUSE) and grace is None:
                grace = self.parts.settings.stop_grace_seconds
                child.ask_to_stop()
            elif grace is not None:
                grace -= _TICK
                if grace <= 0:
                    child.kill()
        until: float | None = None

        def give_up() -> bool:
            """Whoever drains has only so long; whoever has lost the job, or was asked to forget it, needs nothing."""
            nonlocal until
            if self.draining.is_set() and until is None:
                until = time.monotonic() + self.parts.settings.stop_grace_seconds
            return lease.lost.is_set() or lease.cancelled or (until is not None and time.monotonic() > until)

        reporter.finish(give_up)
        return status

    def _finish_training(
        self,
        claim: Claim,
        folder: Path,
        lease: Lease,
        reporter: Reporter,
        status: int,
        resume: Path | None,
        starved: bool,
    ) -> None:
        if lease.lost.is_set():
            raise LostAuthority(f"{claim.id}: the lease ended")
        if lease.cancelled:
            with self._job(claim) as (session, job):
                runs.cancelled(session, job)
        elif reporter.limit is not None and not reporter.limit.save:
            raise JobError(reporter.limit.message, code="limit_reached", param="ext.limits")
        elif reporter.error is not None:
            error = reporter.error
            if error["code"] == "out_of_memory" and self._with_less_memory(claim, "ran out of memory"):
                return
            self._refused(claim, error)
        elif status == 0 and reporter.done is not None:
            self._publish(claim, folder, reporter.done)
        elif status == EXIT_DRAINED or self.draining.is_set() or lease.wish == Wish.PAUSE:
            with self._job(claim) as (session, job):
                runs.handed_back(session, job, "paused" if lease.wish == Wish.PAUSE else "it was drained")
            log.info("job.handed_back", job_id=claim.id)
        elif status == EXIT_CHECKPOINT_REFUSED and resume is not None:
            with self._job(claim) as (session, job):
                # Each of these ends costs a checkpoint, so they come to an end without being counted.
                checkpoints.discard(session, job.id, int(resume.name.removeprefix("step-")))
                message = f"The checkpoint {resume.name} can't be resumed from: the job goes back to the one before it."
                runs.again(session, job, "a checkpoint can't be resumed from", message)
        elif status == EXIT_DISK_FULL:
            raise disk.fault(self.slot.folder)
        elif starved:
            if not self._with_less_memory(claim, "was killed for want of memory"):
                self._lose(claim, "the trainer was killed for want of memory")
        elif status < 0:
            self._lose(claim, f"the trainer was killed by signal {-status}")
        else:
            raise JobError(
                f"The trainer ended unexpectedly with status {status}: {_last_words(self.slot.folder)}",
                code="trainer_failed",
            )

    def _refused(self, claim: Claim, error: dict[str, Any]) -> None:
        """The trainer has ended with a fault of the user's; one that diverged names its last good checkpoint."""
        message, good = error["message"], error.get("good_step", 0)
        with self._job(claim) as (session, job):
            kept = good > 0 and checkpoints.show(session, job.id, good)
            diagnoses.end(session, job, error)
            if good and not kept and self.draining.is_set():
                # There was no time to upload it: the next worker comes to the same end, and keeps it.
                runs.handed_back(session, job, "it was drained")
                return
        if kept:
            message += f" The checkpoint of step {good}, from before, is kept."
        raise JobError(message, code=error["code"], param=error.get("param"))

    def _with_less_memory(self, claim: Claim, what: str) -> bool:
        with self._job(claim) as (session, job):
            return runs.with_less_memory(session, job, what)

    def _publish(self, claim: Claim, folder: Path, done: dict[str, Any]) -> None:
        with self._job(claim) as (_, job):
            runs.phase(job, Phase.UPLOADING)
        store = self.parts.store
        prefix = layout.run(claim.id, claim.generation, "artifact/")
        artifact = folder / done["artifact"]
        manifest, sha256 = publish.folder(store, artifact, prefix)
        with transaction(self.parts.sessions) as session:
            table = publish.metrics_csv(session, claim.id)
            answers = publish.answers(session, claim.id)
        made = layout.run(claim.id, claim.generation, "")
        results = [
            publish.result(store, "step_metrics.csv", made + "metrics.csv", table),
            *publish.results(manifest, sha256, (artifact / publish.MANIFEST).stat().st_size, prefix),
        ]
        if answers is not None:
            results.append(publish.result(store, "answers.jsonl", made + "answers.jsonl", answers))
        with self._job(claim) as (session, job):
            if job.wish == Wish.CANCEL:
                # Cancelling wins every race: a job that was asked to stop never succeeds.
                runs.cancelled(session, job)
            else:
                diagnoses.end(session, job, done)
                runs.succeeded(session, job, prefix=prefix, manifest=manifest, results=results, line=done)
        log.info("job.finished", job_id=claim.id)

    # -- the prepare queue

    def _prepare_job(self, job: Job, claim: Claim) -> None:
        if tokens.use(self.parts, job, claim):
            self.parts.doorbell.ring("train")
            return
        folder = self._folder(claim)
        child = self.slot.prepare()
        with Lease(self.parts.sessions, claim, self.parts.settings, child.kill) as lease:
            staged = preparation.stage_job(self.parts, self.cache, job, claim, folder)
            if staged is None:
                return
            token_set, base = staged
            self.slot.remember(base)
            status = self._run_child(child, folder, lease, None)
            if lease.cancelled:
                with self._job(claim) as (session, row):
                    runs.cancelled(session, row)
            elif status is None:
                with self._job(claim) as (session, row):
                    runs.handed_back(session, row, "it was drained")
            else:
                preparation.finish_job(self.parts, claim, folder, token_set, status, _last_words(self.slot.folder))
        self.parts.doorbell.ring("train")

    def _settle_item(self, item: WorkItem, claim: Claim) -> None:
        if item.kind == ItemKind.ANSWER and answering.known(self.parts, item, claim):
            return
        folder = self._folder(claim)
        child = self.slot.prepare()
        with Lease(self.parts.sessions, claim, self.parts.settings, child.kill) as lease:
            preparation.stage_item(self.parts, self.cache, item, folder)
            progress = preparation.Progress(self.parts, item, claim, folder)
            status = self._run_child(child, folder, lease, progress)
            if status is None:
                with fenced(self.parts.sessions, WorkItem, claim.id, claim.generation) as (_, row):
                    preparation.hand_back_item(row)
            else:
                preparation.finish_item(
                    self.parts, self.cache, claim, folder, progress, status, _last_words(self.slot.folder)
                )

    def _join_upload(self, item: WorkItem, claim: Claim) -> None:
        # Whoever joins looks at the lease itself, at every piece.
        with Lease(self.parts.sessions, claim, self.parts.settings, lambda: None) as lease:
            joining.join(self.parts, item, claim, lease, self.draining)

    def _run_child(self, child: Child, folder: Path, lease: Lease, progress: preparation.Progress | None) -> int | None:
        """The child's exit status; None when it was ended because this worker drains."""
        child.start(folder)
        while (status := child.wait(_TICK)) is None:
            if progress is not None:
                progress.pump()
            if self.draining.is_set():
                child.kill()
        if lease.lost.is_set():
            raise LostAuthority(f"{lease.claim.id}: the lease ended")
        return None if status < 0 and self.draining.is_set() else status

    # -- ends

    def _job(self, claim: Claim) -> Any:  # Any: the context manager of fenced(), whose type has no short name
        return fenced(self.parts.sessions, Job, claim.id, claim.generation)

    def _fail(self, claim: Claim, code: str, message: str, param: str | None) -> None:
        log.info("work.refused", id=claim.id, code=code)
        self._write_end(claim, lambda session, row: preparation.fail(session, row, code, message, param))

    def _defect(self, claim: Claim, error: Exception) -> None:
        log.error("work.failed", id=claim.id, exc_info=error)
        self._fail(claim, "server_error", "The worker had an error; the operator finds it in its log.", None)

    def _lose(self, claim: Claim, why: str) -> None:
        self._write_end(claim, lambda session, row: preparation.lose(session, row, self.parts.settings, why))

    def _write_end(self, claim: Claim, end: Any) -> None:  # Any: (session, row) -> None for either table
        try:
            with fenced(self.parts.sessions, claim.table, claim.id, claim.generation) as (session, row):
                end(session, row)
        except (LostAuthority, SQLAlchemyError) as error:
            # The reconciler finds the row when its lease has run out.
            log.warning("end.not_written", id=claim.id, error=type(error).__name__)

    def _keep_log(self, claim: Claim, child: Child) -> None:
        try:
            self.parts.store.put(layout.run(claim.id, claim.generation, "trainer.log"), child.log.read_bytes())
        except (BotoCoreError, ClientError) as error:
            log.warning("log.not_kept", job_id=claim.id, error=type(error).__name__)

    def _folder(self, claim: Claim) -> Path:
        """An empty folder for this claim; :meth:`_clean` removes it when the child is gone."""
        folder = self._scratch(claim)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def _clean(self, claim: Claim) -> None:
        if not self.parts.settings.keep_scratch:
            shutil.rmtree(self._scratch(claim), ignore_errors=True)

    def _scratch(self, claim: Claim) -> Path:
        return scratch.folder(self.slot.folder, claim)


def _last_words(folder: Path) -> str:
    """The last line that the child wrote to its log: of a traceback, the error itself."""
    try:
        lines = (folder / "child.log").read_text("utf-8", "replace").strip().splitlines()
    except OSError:
        return "it left no log"
    return lines[-1][:500] if lines else "it left no log"
