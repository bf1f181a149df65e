"""A job as its worker moves it: prepared, begun, resumed, ended, given back, lost.

Every function takes the job's row from inside the fence (``core/queue/fence.py``) or from the claim that just locked
it, so none of them can be reached by a worker that has lost the job.
"""

from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from core import clock
from core.config import Settings
from core.db.tables import Attempt, Checkpoint, Job, Metric, Organization, Project, TunedModel
from core.queue import claims, shares
from core.services import attempts, base_models, events, files, moves, token_sets
from core.states import Phase, Status, Wish

Json = dict[str, Any]  # lines of events.jsonl and other documents; worker/folder.py has their shapes


def model_name(session: Session, job: Job) -> str:
    """``ft:<base>:<organisation>:<suffix>:<8 characters>``; the last part is the end of the job's random id."""
    base = base_models.by_id(session, job.base_model_id)
    project = session.get_one(Project, job.project_id)
    organization = session.get_one(Organization, project.organization_id)
    return f"ft:{base.name.replace('/', '--')}:{organization.name}:{job.suffix or ''}:{job.id[-8:]}"


def begin_prepare(job: Job) -> None:
    moves.move(job, Status.VALIDATING, Phase.PREPARING)


def prepared(
    session: Session, job: Job, *, resolved: Json, hyperparameters: Json, data: Json, prepared: Json, notes: list[Json]
) -> None:
    """The data are good and every value is known: into the train queue."""
    if job.prepared is None:
        # Rows that must be prepared again and again are a loss each time, or it would never end.
        job.losses = 0
    job.resolved, job.hyperparameters, job.data, job.prepared = resolved, hyperparameters, data, prepared
    for note in notes:
        events.append(session, job, note["message"], level=note["level"], data=note["data"])
    job.work = _work(session, job)
    shares.enter(session, job, Status.QUEUED)
    moves.move(job, Status.QUEUED, Phase.QUEUED)
    claims.release(job)
    events.append(session, job, "Files validated, moving job to queued state")
    _pause_if_wished(session, job)


def _work(session: Session, job: Job) -> float:
    """What the run takes of its project's share."""
    tokens = (job.data or {}).get("train", {}).get("tokens", 0) * (job.resolved or {}).get("epochs", 1)
    return shares.work_of(tokens, (base_models.by_id(session, job.base_model_id).facts or {}).get("parameters", 0))


def postpone(job: Job, seconds: float) -> None:
    """Not yet: give the row back, to be claimed again a little later. Counts as nothing."""
    claims.release(job)
    job.available_at = clock.in_seconds(seconds)


def begin_attempt(session: Session, job: Job, worker_id: str) -> Attempt:
    n = (session.scalar(select(func.max(Attempt.n)).where(Attempt.job_id == job.id)) or 0) + 1
    attempt = Attempt(job_id=job.id, n=n, generation=job.generation, worker_id=worker_id)
    session.add(attempt)
    moves.move(job, Status.RUNNING, Phase.STARTING)
    events.append(session, job, "Fine-tuning job started" if n == 1 else f"Fine-tuning job started again: attempt {n}")
    return attempt


def resume_at(session: Session, job: Job, step: int, unusable: dict[int, str] | None = None) -> None:
    """This attempt goes on after ``step`` (0: from the start): what came later is computed, and written, again.

    ``unusable``: the later checkpoints that could not be used, by step, and why.
    """
    for damaged, why in (unusable or {}).items():
        events.append(
            session,
            job,
            f"The checkpoint of step {damaged} can't be used ({why}): the job goes back to the one before it.",
            level="warn",
            data={"code": "checkpoint_unusable", "step": damaged},
        )
    session.execute(delete(Metric).where(Metric.job_id == job.id, Metric.step > step))
    session.execute(delete(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.step > step))
    attempts.present(session, job).resumed_from_step = step
    if unusable and not step:
        events.append(session, job, "There is no checkpoint to resume from: the job starts anew.", level="warn")
    if step:
        events.append(session, job, f"Resuming after step {step} from a checkpoint.", data={"step": step})


def phase(job: Job, phase: Phase) -> None:
    # A job that is being cancelled or paused says so until it is.
    if job.status == Status.RUNNING and job.phase not in (Phase.CANCELLING, Phase.PAUSING):
        moves.move(job, Status.RUNNING, phase)


def succeeded(session: Session, job: Job, *, prefix: str, manifest: Json, results: list[Json], line: Json) -> None:
    """Model, result files and status in one transaction. ``results``: {filename, key, bytes, sha256}, the CSV first."""
    name = model_name(session, job)
    job.result_files = [
        files.add_result(session, job, entry["filename"], entry["key"], entry["bytes"], entry["sha256"]).id
        for entry in results
    ]
    session.add(
        TunedModel(
            id=name,
            project_id=job.project_id,
            job_id=job.id,
            base_model_id=job.base_model_id,
            storage_prefix=prefix,
            manifest=manifest,
        )
    )
    job.fine_tuned_model = name
    job.trained_tokens = line["trained_tokens"]
    job.stop_reason = line.get("stop_reason")
    _end_attempt(session, job, "succeeded")
    moves.end(session, job, Status.SUCCEEDED, Phase(job.stop_reason or Phase.COMPLETED))
    events.append(session, job, f"New fine-tuned model created: {name}")
    events.append(session, job, "The job has successfully completed")


def failed(session: Session, job: Job, code: str, message: str, param: str | None = None) -> None:
    job.error = {"code": code, "message": message, "param": param}
    _end_attempt(session, job, code)
    moves.end(session, job, Status.FAILED, Phase.FAILED)
    events.append(session, job, message, level="error", data={"code": code, "param": param})


def cancelled(session: Session, job: Job) -> None:
    _end_attempt(session, job, "cancelled")
    moves.end(session, job, Status.CANCELLED, Phase.CANCELLED)
    events.append(session, job, "The job was cancelled.")


def handed_back(session: Session, job: Job, why: str) -> None:
    """Its worker stops in good order: the job waits for another one, and no loss is counted."""
    _end_attempt(session, job, why)
    if job.status == Status.RUNNING:
        moves.move(job, Status.QUEUED, Phase.QUEUED, f"its worker stopped ({why})")
        if job.wish != Wish.PAUSE:
            events.append(session, job, f"The worker stopped ({why}); the job waits for another one.", level="warn")
    claims.release(job)
    _pause_if_wished(session, job)


def _pause_if_wished(session: Session, job: Job) -> None:
    """A wish to pause is granted as soon as nobody works on the job."""
    if job.wish == Wish.PAUSE and job.status == Status.QUEUED:
        moves.move(job, Status.QUEUED, Phase.PAUSED)
        job.wish = None
        events.append(session, job, "The job was paused.")


def lost(session: Session, job: Job, settings: Settings, why: str) -> None:
    """Its worker or trainer is gone without a word: try again after a pause, or give up after too many."""
    if job.wish == Wish.CANCEL:
        cancelled(session, job)
        return
    _end_attempt(session, job, why)
    pause = claims.back_off(job, settings)
    if job.losses >= settings.max_attempts:
        failed(
            session,
            job,
            "worker_lost",
            f"The job was lost {job.losses} times without a new checkpoint in between; the last time: {why}. "
            "If it happens again, its memory may not suffice: try a smaller batch or a shorter max_length.",
        )
        return
    if job.status == Status.RUNNING:
        moves.move(job, Status.QUEUED, Phase.BACKING_OFF, why)
    claims.release(job)
    events.append(session, job, f"The job was interrupted ({why}); it is tried again in {pause:.0f} s.", level="warn")


def again(session: Session, job: Job, why: str, message: str) -> None:
    """This try has ended for a reason that the next one won't have: it begins at once, and no loss is counted."""
    if job.wish == Wish.CANCEL:
        cancelled(session, job)
        return
    _end_attempt(session, job, why)
    if job.status == Status.RUNNING:
        moves.move(job, Status.QUEUED, Phase.QUEUED, why)
    claims.release(job)
    events.append(session, job, message, level="warn")
    _pause_if_wished(session, job)


def with_less_memory(session: Session, job: Job, what: str) -> bool:
    """Have the job tried again with half as many examples at once; False where there is only one already.

    The step's sum is split otherwise, so the result is the same but for the last digits.
    """
    resolved = job.resolved or {}
    size = resolved.get("micro_batch_size", 1)
    if size <= 1:
        return False
    smaller = size // 2
    job.resolved = resolved | {
        "micro_batch_size": smaller,
        "gradient_accumulation_steps": -(-resolved["batch_size"] // smaller),
    }
    again(
        session,
        job,
        f"{what} with micro_batch_size {size}",
        f"The job {what} with {size} examples at once (micro_batch_size): it goes on with {smaller}. "
        "Each step still has all its examples, so the result is the same.",
    )
    return True


def prepare_again(session: Session, job: Job, settings: Settings, why: str) -> list[str]:
    """Its prepared rows can't be used: forget them, prepare the job anew. Returns keys to delete after the commit."""
    keys = token_sets.discard(session, job.token_set_id) if job.token_set_id is not None else []
    job.token_set_id = None
    if job.wish == Wish.CANCEL:
        cancelled(session, job)
        return keys
    _end_attempt(session, job, why)
    claims.back_off(job, settings)
    if job.losses >= settings.max_attempts:
        failed(session, job, "storage_error", f"The job's prepared rows were lost {job.losses} times; the last: {why}.")
        return keys
    job.work = 1
    shares.enter(session, job, Status.VALIDATING)
    moves.move(job, Status.VALIDATING, Phase.CREATED, why)
    claims.release(job)
    events.append(session, job, f"The prepared rows can't be used ({why}); they are prepared anew.", level="warn")
    return keys


def _end_attempt(session: Session, job: Job, why: str) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job.id, Attempt.generation == job.generation, Attempt.ended_at.is_(None))
        .values(ended_at=clock.now(), why=why)
        .execution_options(synchronize_session=False)
    )


def recovered(session: Session) -> int:
    """Jobs whose pause is over wait like any other; returns how many."""
    rows = session.execute(
        update(Job)
        .where(Job.phase == Phase.BACKING_OFF, Job.lease_until.is_(None), Job.available_at <= clock.now())
        .values(phase=Phase.QUEUED, phase_since=clock.now())
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    return len(rows.all())
