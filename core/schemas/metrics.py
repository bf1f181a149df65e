"""A job's measurements, step by step, under the names that the columns of its results file have."""

from typing import Literal

from pydantic import BaseModel

KEYS = {
    "train_loss": "train_loss",
    "train_accuracy": "train_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_accuracy",
    "epoch": "epoch",
    "completion_loss": "completion_loss",
    "valid_completion_loss": "valid_completion_loss",
    "reward_chosen": "reward_chosen",
    "reward_rejected": "reward_rejected",
    "reward_margin": "reward_margin",
    "valid_reward_margin": "valid_reward_margin",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "tokens": "tokens",
    "trained_tokens": "trained_tokens",
    "seconds": "seconds",
}
"""Name on the wire to column of the table, in the order of the results file: OpenAI's four first, then ours."""


class Point(BaseModel):
    step: int
    values: dict[str, float | None]
    """What was measured at this step; of several steps, the last measurement of each key."""
    range: dict[str, tuple[float, float]] | None = None
    """Of several steps, the least and the greatest value of each key, so that no peak is lost."""


class Metrics(BaseModel):
    object: Literal["fine_tuning.job.metrics"] = "fine_tuning.job.metrics"
    job_id: str
    keys: list[str]
    steps: int
    """Steps in the range asked for; more than there are points when several went into one."""
    data: list[Point]
