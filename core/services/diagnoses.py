"""What is seen in a run's measurements, kept on its job: looked at anew whenever there is something new to see."""

from typing import Any

from sqlalchemy import or_, select, true
from sqlalchemy.orm import Session

from core import diagnosis
from core.db.tables import Checkpoint, Job, Metric
from core.diagnosis import Curve, Finding
from core.services import events

Json = dict[str, Any]  # lines of events.jsonl; worker/folder.py has their shapes

_FACTS = ("rows", "duplicates", "valid_rows", "shared")
_MOST_STEPS = 2000
_LOOKS = 50
"""In a run, at most about so many times because of its steps alone"""


def begin(session: Session, job: Job, line: Json) -> None:
    """What the trainer knows of the rows before it begins. A resumed run is told of nothing twice."""
    before = job.diagnosis or {}
    facts = {name: line[name] for name in _FACTS if name in line}
    job.diagnosis = {"findings": [], "told": [], "step": 0} | before | {"facts": facts}
    _look(session, job, {})


def step(session: Session, job: Job) -> None:
    """After some steps: look when enough of them are new."""
    if job.diagnosis is None or job.progress is None:
        return
    if job.progress["step"] - job.diagnosis["step"] >= max(5, job.progress["total_steps"] / _LOOKS):
        _look(session, job, {})


def look(session: Session, job: Job) -> None:
    """After an evaluation or a checkpoint."""
    if job.diagnosis is not None:
        _look(session, job, {})


def end(session: Session, job: Job, line: Json) -> None:
    """With the trainer's last word, ``done`` or ``error``."""
    if job.diagnosis is not None:
        _look(session, job, line)


def _look(session: Session, job: Job, last: Json) -> None:
    session.flush()
    assert job.diagnosis is not None
    curve = _curve(session, job, last)
    findings = diagnosis.diagnose(curve)
    told = list(job.diagnosis["told"])
    for finding in findings:
        # Healthy is news at the end only, and anything else the first time that it is seen.
        if finding.code not in told and (finding.code != "healthy" or curve.ended):
            told.append(finding.code)
            _tell(session, job, finding)
    job.diagnosis = job.diagnosis | {
        "findings": [finding.model_dump() for finding in findings],
        "told": told,
        "step": curve.last_step,
    }
    job.best_checkpoint = _best(session, job, last.get("good_step"))


def _tell(session: Session, job: Job, finding: Finding) -> None:
    message = f"Diagnosis: {finding.message}" + (f" {finding.advice}" if finding.advice else "")
    level = "info" if finding.code == "healthy" else "warn"
    events.append(session, job, message, level=level, data={"diagnosis": finding.model_dump()})


def _curve(session: Session, job: Job, last: Json) -> Curve:
    assert job.diagnosis is not None
    resolved, facts = job.resolved or {}, job.diagnosis["facts"]
    until: int = (job.progress or {}).get("step", 0)
    stride = max(1, until // _MOST_STEPS)
    columns = (Metric.step, Metric.train_loss, Metric.grad_norm, Metric.valid_loss, Metric.adapter_moved)
    # Of a long run every so many steps, and all that are seldom measured.
    wanted = or_(Metric.step % stride == 0, Metric.step <= diagnosis.FEWEST_EXAMPLES, Metric.valid_loss.is_not(None))
    rows = session.execute(
        select(*columns)
        .where(Metric.job_id == job.id, or_(wanted, Metric.adapter_moved.is_not(None)))
        .order_by(Metric.step)
    ).all()
    batch = resolved.get("batch_size", 1)
    return Curve(
        total_steps=resolved.get("total_steps") or until,
        steps_per_epoch=max(1, -(-facts["rows"] // batch)) if "rows" in facts else max(1, until),
        steps=[row[0] for row in rows],
        losses=[row[1] for row in rows],
        grad_norms=[row[2] for row in rows],
        evals=[(row[0], row[3]) for row in rows if row[3] is not None],
        moved=[(row[0], row[4]) for row in rows if row[4] is not None],
        facts=facts,
        learned=last.get("learned") or {},
        ended=last.get("type") == "done",
        error=last.get("code"),
        best_kept=last.get("best_step") is not None,
        batch_size=batch,
    )


def _best(session: Session, job: Job, good_step: int | None) -> Json | None:
    """Of the checkpoints in the user's list that were evaluated, the one whose validation loss is least. Of a run that
    diverged none after its last good one: they are all of a model that has learned nonsense."""
    wanted = Checkpoint.step <= good_step if good_step is not None else true()
    row = session.execute(
        select(Checkpoint.id, Checkpoint.step, Metric.valid_loss)
        .join(Metric, (Metric.job_id == Checkpoint.job_id) & (Metric.step == Checkpoint.step))
        .where(Checkpoint.job_id == job.id, Checkpoint.kind == "epoch", Checkpoint.deleted_at.is_(None))
        .where(Metric.valid_loss.is_not(None), wanted)
        .order_by(Metric.valid_loss, Checkpoint.step)
        .limit(1)
    ).first()
    return None if row is None else {"id": row[0], "step": row[1], "valid_loss": row[2]}
