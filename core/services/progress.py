"""What a trainer tells of its run, as rows: steps, evaluations, answers, the rate it has found, checkpoints.

Every function takes the job's row from inside the fence, as those of ``core/services/runs.py`` do.
"""

from typing import Any

from sqlalchemy.orm import Session

from core import clock, ids
from core.db.tables import Checkpoint, Job, Metric
from core.services import attempts, checkpoints, events

Json = dict[str, Any]  # lines of events.jsonl; worker/folder.py has their shapes


def steps(session: Session, job: Job, lines: list[Json], total_steps: int) -> None:
    """Optimizer steps as the trainer told them, in order."""
    attempt = attempts.present(session, job)
    for line in lines:
        session.add(
            Metric(
                job_id=job.id,
                generation=job.generation,
                **{name: line[name] for name in _STEP_FIELDS},
                **{name: line.get(name) for name in _METHOD_FIELDS},
            )
        )
        attempt.steps += 1
        attempt.tokens += line["tokens"]
        attempt.accelerator_seconds += line["seconds"]
        if line["step"] > job.last_event_step:
            job.last_event_step = line["step"]
            events.append(
                session,
                job,
                f"Step {line['step']}/{total_steps}: training loss={line['train_loss']:.2f}",
                type="metrics",
                data={
                    "step": line["step"],
                    "total_steps": total_steps,
                    "train_loss": line["train_loss"],
                    "train_mean_token_accuracy": line.get("train_accuracy"),
                    **{name: line[name] for name in ("learning_rate", "grad_norm", "tokens_per_second")},
                },
            )
    _progress(job, lines, total_steps)


_STEP_FIELDS = ("step", "epoch", "train_loss", "learning_rate", "grad_norm", "tokens", "trained_tokens", "seconds")
# What not every method measures, or not at every step.
_METHOD_FIELDS = ("train_accuracy", "completion_loss", "reward_chosen", "reward_rejected", "reward_margin")


def _progress(job: Job, lines: list[Json], total_steps: int) -> None:
    last = lines[-1]
    done = sum(line["seconds"] for line in lines) / len(lines)
    before = (job.progress or {}).get("seconds_per_step", done)
    # A moving average: one slow step must not make the estimate jump.
    pace = 0.7 * before + 0.3 * done
    left = pace * (total_steps - last["step"])
    job.progress = {
        "step": last["step"],
        "total_steps": total_steps,
        "epoch": round(last["epoch"], 3),
        "percent": round(100 * last["step"] / total_steps, 1),
        "tokens": (job.progress or {}).get("tokens", 0) + sum(line["tokens"] for line in lines),
        "tokens_per_second": round(last["tokens_per_second"], 1),
        "train_loss": last["train_loss"],
        "seconds_per_step": pace,
        "seconds_remaining": round(left, 1),
    }
    job.estimated_finish = clock.in_seconds(left)


def evaluated(session: Session, job: Job, line: Json, total_steps: int) -> None:
    """A pass over all validation rows, after the step it belongs to."""
    metric = session.get(Metric, (job.id, line["step"]))
    if metric is None:
        return
    metric.valid_loss = line["valid_loss"]
    metric.valid_completion_loss = line.get("valid_completion_loss")
    metric.valid_accuracy = line.get("valid_accuracy")
    metric.valid_reward_margin = line.get("valid_reward_margin")
    attempts.present(session, job).accelerator_seconds += line["seconds"]
    if line["step"] < job.last_event_step:
        return
    events.append(
        session,
        job,
        f"Step {line['step']}/{total_steps}: training loss={metric.train_loss:.2f}, "
        f"validation loss={line['valid_loss']:.2f}, full validation loss={line['valid_loss']:.2f}",
        type="metrics",
        data={
            "step": line["step"],
            "total_steps": total_steps,
            "train_loss": metric.train_loss,
            "train_mean_token_accuracy": metric.train_accuracy,
            "valid_loss": line["valid_loss"],
            "valid_mean_token_accuracy": line.get("valid_accuracy"),
            "full_valid_loss": line["valid_loss"],
            "full_valid_mean_token_accuracy": line.get("valid_accuracy"),
        },
    )


def rate_found(session: Session, job: Job, line: Json) -> None:
    """The learning rate that the trainer has looked for, with all that it has seen: from here on the job's own."""
    attempts.present(session, job).accelerator_seconds += line["seconds"]
    assert job.resolved is not None
    before, used, curve = job.resolved["optim"]["learning_rate"], line["used"], line["points"]
    hyperparameters = job.resolved["hyperparameters"]
    multiplier = hyperparameters["learning_rate_multiplier"] * used / before
    job.resolved = job.resolved | {
        "optim": job.resolved["optim"] | {"learning_rate": used, "curve": curve},
        "hyperparameters": hyperparameters | {"learning_rate_multiplier": multiplier},
    }
    job.hyperparameters = (job.hyperparameters or {}) | {"learning_rate_multiplier": multiplier}
    tried = f"{len(curve)} rates from {curve[0][0]:.2g} to {curve[-1][0]:.2g}" if curve else "the lowest rate already"
    if line["learning_rate"] is None:
        why = f"the automatic one, since the loss, {line['before']:.4g} at the start, did not fall at any of {tried}"
    else:
        rate, loss = min(curve, key=lambda point: point[1])
        why = f"found among {tried}: the loss fell from {line['before']:.4g} to {loss:.4g} at {rate:.2g}, then rose"
    data = {"option": "learning_rate", "value": used, "before": line["before"], "curve": curve}
    level = "warn" if line["learning_rate"] is None else "info"
    events.append(session, job, f"learning_rate {used:.2g}: {why}", level=level, data=data)


def answered(session: Session, job: Job, line: Json) -> None:
    """What the base model or the model so far says to the job's prompts."""
    who = "The base model" if line["by"] == "base" else f"After step {line['step']} the model"
    first = " ".join(line["answers"][0]["answer"].split())
    shown = first if len(first) <= 80 else first[:79] + "…"
    more = f", and {len(line['answers']) - 1} more" if len(line["answers"]) > 1 else ""
    data = {"step": line["step"], "by": line["by"], "answers": line["answers"]}
    events.append(session, job, f"{who} answers: {shown!r}{more}", data=data)


def checkpointed(session: Session, job: Job, line: Json, prefix: str, manifest: Json, sha256: str) -> list[str]:
    """The checkpoint's objects are all there: this row is what makes them count.

    Returns the keys of older ones that need not be kept any more, to delete after the commit.
    """
    session.add(
        Checkpoint(
            id=ids.checkpoint(),
            job_id=job.id,
            step=line["step"],
            epoch=line["epoch"],
            kind=line["kind"],
            generation=job.generation,
            storage_prefix=prefix,
            manifest=manifest,
            manifest_sha256=sha256,
            metrics=line.get("metrics") or {},
        )
    )
    metric = session.get(Metric, (job.id, line["step"]))
    if metric is not None:
        metric.adapter_moved = (line.get("metrics") or {}).get("adapter_moved")
    # The limit of attempts counts losses without a new checkpoint in between.
    job.losses = 0
    if line["kind"] == "epoch":
        events.append(
            session,
            job,
            f"Checkpoint created at step {line['step']}",
            data={"step": line["step"], "epoch": line["epoch"]},
        )
    session.flush()
    return checkpoints.prune(session, job, line.get("good_step", 0))
