"""What a job would take, before it is made."""

from typing import Any, Literal

from pydantic import BaseModel

from core.advice import Advice
from core.schemas.catalog import Price

Json = dict[str, Any]  # Any: parts of a job's body


class Refusal(BaseModel):
    code: Literal["no_worker", "not_enough_memory"]
    message: str


class Choice(BaseModel):
    """A change of the body with which the job could run."""

    change: Json
    message: str
    memory_bytes: int
    seconds: float | None


class Tokens(BaseModel):
    examples: int
    validation: int
    """Examples of the validation file, or held out."""
    sources: dict[str, int]
    """Where files are mixed: how many examples of an epoch each gives."""
    per_epoch: int
    trained_per_epoch: int
    """Of completions."""
    total: int
    """What the whole run reads."""
    longest: int
    """The longest row, before anything is cut."""


class MemoryParts(BaseModel):
    """Bytes on the device when most is used."""

    total: int
    program: int
    weights: int
    adapter: int
    activations: int
    other: int


class Machine(BaseModel):
    device: str
    memory_bytes: int
    slots: int
    fits: bool
    seconds: float | None
    """Null until this worker has measured its machine, within a minute of its start."""


class Amount(BaseModel):
    amount: float | None
    """Null where it goes by the hour and the hours can't be told yet."""
    currency: str
    rates: Price


class Wait(BaseModel):
    jobs_before: int
    seconds: float | None
    """Null where it can't be told: jobs that wait before this one have no time of ending yet."""


class Estimate(BaseModel):
    object: Literal["fine_tuning.estimate"] = "fine_tuning.estimate"
    model: str
    feasible: bool
    reason: Refusal | None
    choices: list[Choice]
    """Where it is not feasible: what would be, the smallest change first."""
    tokens: Tokens
    steps: int
    epochs: float
    memory: MemoryParts | None
    """Null for an architecture that it can't be told of."""
    seconds: float | None
    """On the quickest worker that it fits."""
    step_seconds: float | None
    price: Amount | None
    """Null where the operator has set no rates."""
    queue: Wait
    workers: list[Machine]
    resolved: Json
    """Every option with the value that would be used, as in a job's ``ext.resolved``."""
    warnings: list[str]
    advice: list[Advice]
