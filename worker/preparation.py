"""The prepare queue's work around its child: what goes into the folder, and what the result does to the rows."""

import signal
from pathlib import Path

import orjson
import structlog
from sqlalchemy.orm import Session

from core import options
from core.config import Settings
from core.db.session import transaction
from core.db.tables import BaseModel, File, Job, WorkItem
from core.errors import JobError
from core.options import Hyperparameters, JobOptions
from core.queue import claims
from core.queue.claims import Claim
from core.queue.fence import fenced
from core.services import base_models, data, files, runs, sweeps
from core.services.data import Named
from core.states import FileStatus, ItemKind, ItemStatus, Wish
from core.storage import store as layout
from core.wiring import Parts
from worker import answering, disk, stage, tokens
from worker.cache import ModelCache
from worker.folder import EXIT_DISK_FULL, EXIT_USER_ERROR
from worker.prepare import limits
from worker.prepare.folder import CheckFile, Facts, RegisterModel, Result, Spec

log = structlog.get_logger()

_UNSETTLED_PAUSE = 1.0


# -- jobs


def stage_job(parts: Parts, cache: ModelCache, job: Job, claim: Claim, folder: Path) -> tuple[str, Path] | None:
    """Fill the folder; returns the id of the token set that will be made, and the folder of the base model whose tokens
    they are. None when a file of the job is not settled yet, and the job was put off until it is."""
    with fenced(parts.sessions, Job, claim.id, claim.generation) as (session, row):
        base = session.get_one(BaseModel, row.base_model_id)
        chosen = options.parse(row.options)
        wanted = tokens.of_job(row)
        named = wanted.files
        found = {name.param: session.get_one(File, name.file_id) for name in named}
        if any(file.status == FileStatus.UPLOADED for file in found.values()):
            runs.postpone(row, _UNSETTLED_PAUSE)
            return None
        token_set = tokens.key(session, wanted, parts.settings)
    for name in named:
        _usable(found[name.param], name, job, chosen, parts.settings)
    paths = {
        param: stage.download(parts.store, file.storage_key, file.sha256, folder / f"{n}.data")
        for n, (param, file) in enumerate(found.items())
    }
    asked = Hyperparameters.model_validate(wanted.hyperparameters)
    model = stage.reader_of(cache, base)
    task = stage.preparing(model, named, paths, wanted.method, chosen, asked, wanted.seed, parts.settings)
    stage.write_spec(folder, task)
    return token_set, model.base


def _usable(file: File, name: Named, job: Job, chosen: JobOptions, settings: Settings) -> None:
    fault = data.unfit(file, name, job.method["type"], chosen, settings)
    if fault is not None:
        raise JobError(fault.message, code=fault.error_code, param=name.param)


def finish_job(parts: Parts, claim: Claim, folder: Path, token_set: str, status: int, last_words: str) -> None:
    result = _result(folder, status, last_words).prepared
    if result is None:
        raise JobError("Preparing the data gave no result.", code="server_error")
    kept = tokens.upload(parts, claim, folder)
    with fenced(parts.sessions, Job, claim.id, claim.generation) as (session, job):
        if job.wish == Wish.CANCEL:
            runs.cancelled(session, job)
            return
        base = session.get_one(BaseModel, job.base_model_id)
        row = tokens.keep(session, token_set, tokens.of_job(job), job, result, kept)
        tokens.settle(session, job, base, row, result, parts.settings)
    if row.files != kept:
        # Another job on the same data was quicker: its files are this job's, too.
        parts.store.delete(*(entry["key"] for entry in kept.values()))


def _result(folder: Path, status: int, last_words: str) -> Result:
    """What the child found, or the JobError it ended with."""
    path = folder / "result.json"
    if status == -signal.SIGVTALRM:
        raise JobError(f"{limits.TOO_SLOW[0].upper()}{limits.TOO_SLOW[1:]}.", code="limit_exceeded")
    if status < 0:
        raise JobError(
            f"Preparing was ended by signal {-status}: the data or the template need more memory or time than allowed.",
            code="prepare_failed",
        )
    if status == EXIT_DISK_FULL:
        raise disk.fault(folder)
    if status not in (0, EXIT_USER_ERROR) or not path.exists():
        raise JobError(f"Preparing ended unexpectedly with status {status}: {last_words}", code="prepare_failed")
    result = Result.model_validate_json(path.read_bytes())
    if result.error is not None:
        raise JobError(result.error.message, code=result.error.code, param=result.error.param)
    return result


# -- work items


def stage_item(parts: Parts, cache: ModelCache, item: WorkItem, folder: Path) -> None:
    spec: Spec
    if item.kind == ItemKind.CHECK_FILE:
        with transaction(parts.sessions) as session:
            file = session.get_one(File, item.subject_id)
        spec = CheckFile(path=stage.download(parts.store, file.storage_key, file.sha256, folder / "file.data"))
    elif item.kind == ItemKind.ANSWER:
        spec = answering.stage_question(parts, cache, item, folder)
    else:
        with transaction(parts.sessions) as session:
            base = session.get_one(BaseModel, item.subject_id)
        spec = RegisterModel(
            source=base.source,
            revision=base.revision,
            chat_template=base.chat_template,
            license=base.license,
            cache=parts.settings.conversion_dir,
        )
    stage.write_spec(folder, spec)


class Progress:
    """The child's last word on how far it is, into the base model's row."""

    def __init__(self, parts: Parts, item: WorkItem, claim: Claim, folder: Path) -> None:
        self._parts = parts
        self._item = item
        self._claim = claim
        self._path = folder / "events.jsonl"
        self._size = 0

    def pump(self) -> None:
        if self._item.kind != ItemKind.REGISTER_MODEL or not self._path.exists():
            return
        raw = self._path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) == self._size:
            return
        self._size = len(whole)
        last = orjson.loads(whole.splitlines()[-1])
        self.say(last.get("percent"), last.get("message", ""))

    def say(self, percent: float | None, message: str) -> None:
        with fenced(self._parts.sessions, WorkItem, self._claim.id, self._claim.generation) as (session, _):
            base = session.get_one(BaseModel, self._item.subject_id)
            base.progress = {"percent": percent, "message": message}


def finish_item(
    parts: Parts, cache: ModelCache, claim: Claim, folder: Path, progress: Progress, status: int, last_words: str
) -> None:
    result = _result(folder, status, last_words)
    if result.answer is not None:
        answering.finish(parts, claim, folder, result.answer)
        return
    if result.prepared is not None:
        answering.finish_estimate(parts, claim, folder, result.prepared)
        return
    if result.facts is not None:
        _store_base_model(parts, cache, folder, result.facts, progress)
    with fenced(parts.sessions, WorkItem, claim.id, claim.generation) as (session, row):
        if result.report is not None:
            files.settle(session.get_one(File, row.subject_id), result.report)
        if result.facts is not None:
            base_models.registered(session.get_one(BaseModel, row.subject_id), result.facts.model_dump(mode="json"))
        claims.done(row)
    if result.report is not None:
        # Jobs may wait for this file.
        parts.doorbell.ring("prepare")


def _store_base_model(parts: Parts, cache: ModelCache, folder: Path, facts: Facts, progress: Progress) -> None:
    sent = 0
    for entry in facts.files:
        progress.say(round(100 * sent / facts.bytes, 1), f"storing {entry.path}")
        key = layout.base_model(facts.sha256, entry.path)
        # Content-addressed: what lies there already is the same.
        if parts.store.size(key) != entry.bytes:
            parts.store.put_file(key, folder / "out" / entry.path)
        sent += entry.bytes
    cache.adopt(facts.sha256, folder / "out")


def hand_back_item(row: WorkItem) -> None:
    row.status = ItemStatus.WAITING
    claims.release(row)


# -- ends, for rows of either table


def fail(session: Session, row: Job | WorkItem, code: str, message: str, param: str | None) -> None:
    if isinstance(row, WorkItem):
        sweeps.item_failed(session, row, code, message, param)
    elif row.wish == Wish.CANCEL:
        runs.cancelled(session, row)
    else:
        runs.failed(session, row, code, message, param)


def lose(session: Session, row: Job | WorkItem, settings: Settings, why: str) -> None:
    if isinstance(row, WorkItem):
        sweeps.item_lost(session, row, settings)
    else:
        runs.lost(session, row, settings, why)
