"""A job's statuses (OpenAI's), phases (the finer truth in ``ext.phase``), and the moves between them. Pure."""

from enum import StrEnum


class Status(StrEnum):
    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Phase(StrEnum):
    CREATED = "created"
    CHECKING = "checking"
    PREPARING = "preparing"
    QUEUED = "queued"
    WAITING_FOR_CAPACITY = "waiting_for_capacity"
    WAITING_FOR_QUOTA = "waiting_for_quota"
    PAUSED = "paused"
    BACKING_OFF = "backing_off"
    STARTING = "starting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"
    MERGING = "merging"
    UPLOADING = "uploading"
    PAUSING = "pausing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    EARLY_STOPPED = "early_stopped"
    STOPPED_BY_USER = "stopped_by_user"
    LIMIT_REACHED = "limit_reached"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})

MOVES: dict[Status, frozenset[Status]] = {
    Status.VALIDATING: frozenset({Status.VALIDATING, Status.QUEUED, Status.FAILED, Status.CANCELLED}),
    # A job whose worker was lost goes back from running to queued.
    Status.QUEUED: frozenset({Status.QUEUED, Status.RUNNING, Status.FAILED, Status.CANCELLED}),
    # One whose prepared rows are gone goes back to where they are made.
    Status.RUNNING: frozenset(
        {Status.RUNNING, Status.QUEUED, Status.VALIDATING, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}
    ),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
}

PHASES: dict[Status, frozenset[Phase]] = {
    Status.VALIDATING: frozenset({Phase.CREATED, Phase.CHECKING, Phase.PREPARING}),
    Status.QUEUED: frozenset(
        {Phase.QUEUED, Phase.WAITING_FOR_CAPACITY, Phase.WAITING_FOR_QUOTA, Phase.PAUSED, Phase.BACKING_OFF}
    ),
    Status.RUNNING: frozenset(
        {
            Phase.STARTING,
            Phase.TRAINING,
            Phase.EVALUATING,
            Phase.SAVING,
            Phase.MERGING,
            Phase.UPLOADING,
            Phase.PAUSING,
            Phase.CANCELLING,
        }
    ),
    Status.SUCCEEDED: frozenset({Phase.COMPLETED, Phase.EARLY_STOPPED, Phase.STOPPED_BY_USER, Phase.LIMIT_REACHED}),
    Status.FAILED: frozenset({Phase.FAILED}),
    Status.CANCELLED: frozenset({Phase.CANCELLED}),
}


def check_move(old: Status, new: Status, phase: Phase) -> None:
    """Raise ``ValueError`` for a move that must never be: it is a defect of ours, not a user's error."""
    if new not in MOVES[old]:
        raise ValueError(f"a job can't move from {old} to {new}")
    if phase not in PHASES[new]:
        raise ValueError(f"{phase} is not a phase of {new}")


class Wish(StrEnum):
    """What an owner of a job is asked to do; the next heartbeat tells it. Cancelling outdoes the others."""

    CANCEL = "cancel"
    PAUSE = "pause"
    STOP_NOW = "stop_now"
    STOP_AT_CHECKPOINT = "stop_at_checkpoint"
    STOP_AT_EPOCH = "stop_at_epoch"


class UploadStatus(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class FileStatus(StrEnum):
    UPLOADED = "uploaded"
    PROCESSED = "processed"
    ERROR = "error"


class ItemStatus(StrEnum):
    """A work item of the prepare queue."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class ItemKind(StrEnum):
    CHECK_FILE = "check_file"
    REGISTER_MODEL = "register_model"
    JOIN_UPLOAD = "join_upload"
    ANSWER = "answer"


class AnswerKind(StrEnum):
    """What can be asked about data before a job is made of it."""

    REPORT = "report"
    VALIDATE = "validate"
    PREVIEW = "preview"
    ESTIMATE = "estimate"
