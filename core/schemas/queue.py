"""What waits, what runs, and who works: of one's own jobs each, of the others only how many."""

from typing import Literal

from pydantic import BaseModel


class Place(BaseModel):
    """A waiting job's place."""

    position: int | None
    """1 is next; null where it is far behind."""
    estimated_start: int | None
    """When a worker will probably be free for it; null where that can't be told."""


class QueuedJob(Place):
    id: str
    status: Literal["validating_files", "queued"]
    phase: str
    priority: Literal["low", "normal", "high"]
    created_at: int


class RunningJob(BaseModel):
    id: str
    status: Literal["validating_files", "queued", "running"]
    phase: str
    estimated_finish: int | None


class Waiting(BaseModel):
    yours: list[QueuedJob]
    others: int


class Running(BaseModel):
    yours: list[RunningJob]
    others: int


class QueueWorker(BaseModel):
    kind: Literal["prepare", "train"]
    device: str
    slots: int
    busy: int
    status: Literal["online", "draining", "offline"]
    warm: bool
    base_models: list[str]


class Queue(BaseModel):
    object: Literal["fine_tuning.queue"] = "fine_tuning.queue"
    waiting: Waiting
    running: Running
    workers: list[QueueWorker]
