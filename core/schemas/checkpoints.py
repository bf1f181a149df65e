"""FineTuningJobCheckpoint, as OpenAI's wire has it."""

from typing import Literal

from pydantic import BaseModel

from core import clock
from core.db.tables import Checkpoint


class CheckpointMetrics(BaseModel):
    step: float
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class JobCheckpoint(BaseModel):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: CheckpointMetrics
    step_number: int


def of(row: Checkpoint, model_name: str) -> JobCheckpoint:
    # OpenAI calls a pass over all validation rows "full"; ours always is.
    metrics = row.metrics
    return JobCheckpoint(
        id=row.id,
        created_at=clock.unix(row.created_at),
        fine_tuned_model_checkpoint=f"{model_name}:ckpt-step-{row.step}",
        fine_tuning_job_id=row.job_id,
        metrics=CheckpointMetrics(
            step=row.step,
            train_loss=metrics.get("train_loss"),
            train_mean_token_accuracy=metrics.get("train_accuracy"),
            valid_loss=metrics.get("valid_loss"),
            valid_mean_token_accuracy=metrics.get("valid_accuracy"),
            full_valid_loss=metrics.get("valid_loss"),
            full_valid_mean_token_accuracy=metrics.get("valid_accuracy"),
        ),
        step_number=row.step,
    )
