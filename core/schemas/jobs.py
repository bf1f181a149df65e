"""FineTuningJob and the body that creates one: OpenAI's shapes, ours in ``ext``."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from core import clock
from core.db.tables import Attempt, Job
from core.diagnosis import Finding
from core.schemas.queue import Place

# Any: the free-form parts are checked by core/options, which names every field at fault.
Json = dict[str, Any]

MethodType = Literal["supervised", "dpo", "reinforcement"]


# OpenAI's bounds; core/services/jobs checks them, with a sentence for each.
_METADATA = {
    "anyOf": [
        {
            "type": "object",
            "maxProperties": 16,
            "propertyNames": {"maxLength": 64},
            "additionalProperties": {"type": "string", "maxLength": 512},
        },
        {"type": "null"},
    ]
}


class _Body(BaseModel):
    # Strict: a wrong type in a request is a mistake, never a conversion. Unknown keys are reported, not refused.
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Method(_Body):
    type: MethodType
    supervised: Json | None = None
    dpo: Json | None = None
    reinforcement: Json | None = None


class JobCreate(_Body):
    model_config = ConfigDict(
        extra="allow",
        strict=True,
        json_schema_extra={
            "example": {
                "model": "gemma-3-270m",
                "training_file": "file-abc123",
                "suffix": "triage",
                "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
                "ext": {"lora": {"rank": 16}, "prompt_loss_weight": 0.1},
            }
        },
    )

    model: str = Field(min_length=1, max_length=256)
    training_file: str = Field(min_length=1, max_length=128)
    validation_file: str | None = Field(None, max_length=128)
    suffix: str | None = Field(None, min_length=1, max_length=64)
    seed: int | None = Field(None, ge=0, le=2147483647)
    metadata: Annotated[dict[str, str] | None, WithJsonSchema(_METADATA)] = None
    integrations: list[Json] | None = None
    hyperparameters: Json | None = None
    method: Method | None = None
    ext: Json | None = None


class JobPatch(_Body):
    """What of a job can be changed once it is there; ``core/services/jobs.change`` refuses everything else."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        json_schema_extra={"example": {"metadata": {"team": "support"}, "ext": {"resources": {"priority": "high"}}}},
    )

    metadata: dict[str, str] | None = None
    ext: Json | None = None


class StopRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    at: Literal["now", "checkpoint", "epoch"] = "now"


class JobFault(BaseModel):
    code: str
    message: str
    param: str | None = None


class HyperparametersOut(BaseModel):
    n_epochs: Literal["auto"] | int
    batch_size: Literal["auto"] | int
    learning_rate_multiplier: Literal["auto"] | float


class PreferenceHyperparametersOut(HyperparametersOut):
    beta: Literal["auto"] | float


class MethodHyperparameters(BaseModel):
    hyperparameters: HyperparametersOut


class PreferenceMethodHyperparameters(BaseModel):
    hyperparameters: PreferenceHyperparametersOut


class SupervisedOut(BaseModel):
    type: Literal["supervised"]
    supervised: MethodHyperparameters


class PreferenceOut(BaseModel):
    type: Literal["dpo"]
    dpo: PreferenceMethodHyperparameters


MethodOut = Annotated[SupervisedOut | PreferenceOut, Field(discriminator="type")]


class AttemptOut(BaseModel):
    n: int
    started: int
    ended: int | None
    why: str | None
    resumed_from_step: int


class UsageOut(BaseModel):
    tokens: int
    steps: int
    accelerator_seconds: float


class JobExt(BaseModel):
    """The state that OpenAI's fields have no room for."""

    phase: str
    phase_since: int
    phase_reason: str | None
    queue: Place | None
    """While it waits for a worker."""
    progress: Json | None
    resolved: Json | None
    data: Json | None
    attempts: list[AttemptOut]
    diagnosis: list[Finding]
    """What its measurements say, the most important first"""
    best_checkpoint: Json | None
    """{id, step, valid_loss}: the least validation loss of those in the list of checkpoints"""
    stop_reason: str | None
    usage: UsageOut
    base_model: str
    options: Json


class FineTuningJob(BaseModel):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    model: str
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    fine_tuned_model: str | None
    organization_id: str
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    status: Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
    error: JobFault | None
    seed: int
    metadata: dict[str, str] | None
    integrations: list[Json] | None
    hyperparameters: HyperparametersOut
    method: MethodOut
    user_provided_suffix: str | None
    ext: JobExt


def _method(kind: str, used: Json) -> SupervisedOut | PreferenceOut:
    if kind == "dpo":
        with_beta = PreferenceHyperparametersOut.model_validate(used | {"beta": used.get("beta") or "auto"})
        return PreferenceOut(type="dpo", dpo=PreferenceMethodHyperparameters(hyperparameters=with_beta))
    plain = HyperparametersOut.model_validate(used)
    return SupervisedOut(type="supervised", supervised=MethodHyperparameters(hyperparameters=plain))


def of(job: Job, base_model: str, organization_id: str, attempts: list[Attempt], place: Place | None) -> FineTuningJob:
    asked = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    asked |= job.method[job.method["type"]].get("hyperparameters") or {}
    hyperparameters = HyperparametersOut.model_validate(job.hyperparameters or asked)
    return FineTuningJob(
        id=job.id,
        model=job.model,
        created_at=clock.unix(job.created_at),
        finished_at=clock.unix_or_none(job.finished_at),
        estimated_finish=clock.unix_or_none(job.estimated_finish),
        fine_tuned_model=job.fine_tuned_model,
        organization_id=organization_id,
        training_file=job.training_file,
        validation_file=job.validation_file,
        result_files=job.result_files,
        trained_tokens=job.trained_tokens,
        status=job.status,
        error=JobFault.model_validate(job.error) if job.error else None,
        seed=job.seed,
        metadata=job.user_metadata,
        integrations=None,
        hyperparameters=hyperparameters,
        method=_method(job.method["type"], job.hyperparameters or asked),
        user_provided_suffix=job.suffix,
        ext=JobExt(
            phase=job.phase,
            phase_since=clock.unix(job.phase_since),
            phase_reason=job.phase_reason,
            queue=place,
            progress=job.progress,
            resolved=job.resolved,
            data=job.data,
            attempts=[_attempt(row) for row in attempts],
            diagnosis=[Finding.model_validate(one) for one in (job.diagnosis or {}).get("findings", [])],
            best_checkpoint=job.best_checkpoint,
            stop_reason=job.stop_reason,
            usage=UsageOut(
                tokens=sum(row.tokens for row in attempts),
                steps=sum(row.steps for row in attempts),
                accelerator_seconds=round(sum(row.accelerator_seconds for row in attempts), 3),
            ),
            base_model=base_model,
            options=job.options,
        ),
    )


def _attempt(row: Attempt) -> AttemptOut:
    return AttemptOut(
        n=row.n,
        started=clock.unix(row.started_at),
        ended=clock.unix_or_none(row.ended_at),
        why=row.why,
        resumed_from_step=row.resumed_from_step,
    )
