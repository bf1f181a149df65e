"""Every table of the service, read top to bottom. Migrations in ``migrations/versions`` build them; nothing else does.

Rows of a tenant carry ``project_id``; every query of them starts at :func:`core.db.tenancy.owned`.
Times are the database's. What a user deletes is marked with ``deleted_at``, so that a page cursor pointing at it
still works.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core.states import AnswerKind, FileStatus, ItemKind, ItemStatus, Phase, Status, UploadStatus, Wish

Json = dict[str, Any]  # Any: JSON columns hold documents whose shapes core/schemas and core/options define.


class Table(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {
        datetime: DateTime(timezone=True),
        str: Text,
        int: BigInteger,
        float: Double,
        bytes: LargeBinary,
        Json: JSONB(none_as_null=True),
        list[str]: ARRAY(Text),
    }


def _one_of(column: str, values: type) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)  # type: ignore[attr-defined]  # values: an enum class
    return CheckConstraint(f"{column} IN ({listed})", name=column)


class Leased:
    """Columns of a row that a worker can own: claimed with SKIP LOCKED, kept by heartbeats, fenced by generation."""

    generation: Mapped[int] = mapped_column(server_default="0")
    """One more at every claim. Every write of a worker names it (``core/queue/fence.py``)."""
    lease_until: Mapped[datetime | None]
    """NULL: nobody owns the row."""
    worker_id: Mapped[str | None]
    available_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """Not to be claimed before: back-off after a loss."""
    losses: Mapped[int] = mapped_column(Integer, server_default="0")
    """Infrastructure losses since the last new checkpoint; ``max_attempts`` of them end the row."""
    wish: Mapped[str | None]
    """What its owner is asked to do (``core/states.Wish``); NULL: go on."""


class Organization(Table):
    __tablename__ = "organizations"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    """Also the third part of a tuned model's name."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Project(Table):
    __tablename__ = "projects"
    __table_args__ = (UniqueConstraint("organization_id", "name"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKey(Table):
    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    prefix: Mapped[str]
    """The first characters, enough to recognise a key in a list and too few to use it."""
    hash: Mapped[bytes] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class File(Table):
    __tablename__ = "files"
    __table_args__ = (_one_of("status", FileStatus), Index(None, "project_id", "created_at", "id"))
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    purpose: Mapped[str]
    filename: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]
    """Empty as long as there is nothing under the key: an upload's parts are not joined yet, or can't be."""
    storage_key: Mapped[str]
    status: Mapped[str]
    status_details: Mapped[str | None]
    format: Mapped[str | None]
    """What the rows are (``core/formats``), recognised once; NULL for files that hold no rows."""
    report: Mapped[Json | None]
    job_id: Mapped[str | None] = mapped_column(index=True)
    """The job whose result this file is. No foreign key: jobs refer to files, and a circle can't be built in order."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]


class BaseModel(Table):
    """A base model on offer, registered by an administrator. Belongs to the whole service, not to a project."""

    __tablename__ = "base_models"
    __table_args__ = (
        CheckConstraint("status IN ('registering', 'ready', 'failed')", name="status"),
        Index(None, "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    source: Mapped[str]
    revision: Mapped[str | None]
    chat_template: Mapped[str | None]
    """The template given at registration; NULL: the model's own, or the default of its family."""
    aliases: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    license: Mapped[str | None]
    status: Mapped[str] = mapped_column(server_default="registering")
    progress: Mapped[Json | None]
    error: Mapped[Json | None]
    facts: Mapped[Json | None]
    files: Mapped[Json | None]
    """{"files": [{path, bytes, sha256}]} of the normalised folder, stored under its content hash."""
    content_sha256: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]


class Job(Leased, Table):
    """A fine-tuning job. Rows that wait are the queue: there is no other record of what must be done."""

    __tablename__ = "jobs"
    __table_args__ = (
        _one_of("status", Status),
        _one_of("phase", Phase),
        _one_of("wish", Wish),
        Index(None, "project_id", "created_at", "id"),
        Index(
            "ix_jobs_claim",
            "status",
            text("priority DESC"),
            "project_id",
            "created_at",
            "id",
            postgresql_where=text(
                "lease_until IS NULL AND status IN ('validating_files', 'queued') AND phase <> 'paused'"
            ),
        ),
        Index("ix_jobs_lease_until", "lease_until", postgresql_where=text("lease_until IS NOT NULL")),
        Index("ix_jobs_fine_tuned_model", "fine_tuned_model", unique=True),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # What was asked for.
    model: Mapped[str]
    """As the user wrote it: a base model's name or an alias."""
    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    training_file: Mapped[str] = mapped_column(ForeignKey("files.id"))
    validation_file: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    suffix: Mapped[str | None]
    seed: Mapped[int]
    user_metadata: Mapped[Json | None] = mapped_column("metadata")
    method: Mapped[Json]
    """The method as asked for, ``"auto"`` included."""
    init: Mapped[Json | None]
    """The weights it begins from, with their files, as they were when it was made."""
    options: Mapped[Json]
    """``ext`` as asked for (``core/options.py``)."""
    priority: Mapped[int] = mapped_column(Integer, server_default="0")
    work: Mapped[float] = mapped_column(server_default="1")
    """What its next claim takes of the project's share (``core/queue/shares.py``); 0 once that was taken."""
    expected_seconds: Mapped[float | None]
    """How long the whole run takes, as estimated when its data were ready: tells others when they may start."""
    # Where it stands.
    status: Mapped[str] = mapped_column(server_default=Status.VALIDATING)
    phase: Mapped[str] = mapped_column(server_default=Phase.CREATED)
    phase_since: Mapped[datetime] = mapped_column(server_default=func.now())
    phase_reason: Mapped[str | None]
    error: Mapped[Json | None]
    progress: Mapped[Json | None]
    estimated_finish: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    # What prepare found out.
    hyperparameters: Mapped[Json | None]
    """OpenAI's three numbers, once resolved."""
    resolved: Mapped[Json | None]
    data: Mapped[Json | None]
    prepared: Mapped[Json | None]
    """{"base": …, "files": {"train.safetensors": {key, bytes, sha256}, …}}: all a train worker needs."""
    token_set_id: Mapped[str | None] = mapped_column(index=True)
    """The set that those files are of. No foreign key: an ended job may outlive it."""
    # What came of it.
    fine_tuned_model: Mapped[str | None]
    result_files: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    trained_tokens: Mapped[int | None]
    event_count: Mapped[int] = mapped_column(server_default="0")
    """Number of the newest event. Numbers are given under this row's lock, so they have no gaps."""
    diagnosis: Mapped[Json | None]
    """{"facts", "findings", "told", "step"}: what the run's measurements say (``core/services/diagnoses.py``)"""
    best_checkpoint: Mapped[Json | None]
    stop_reason: Mapped[str | None]
    """Why it ended before its last step, where it did."""
    last_event_step: Mapped[int] = mapped_column(server_default="0")
    """Steps up to here have their metrics event; a resumed attempt repeats steps but not events."""
    deleted_at: Mapped[datetime | None]


class Share(Table):
    """How far a project's turn has come in one queue (``core/queue/shares.py``)."""

    __tablename__ = "shares"
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    queue: Mapped[str] = mapped_column(primary_key=True)
    """The status in which jobs wait in it."""
    turn: Mapped[float] = mapped_column(server_default="0")
    served: Mapped[float] = mapped_column(server_default="0")
    """The turn at which its last job was taken."""


class TokenSet(Table):
    """Prepared tokens in the store, for every job on the same data (``core/services/token_sets.py``)."""

    __tablename__ = "token_sets"
    __table_args__ = (Index(None, "last_used_at"), Index(None, "file_ids", postgresql_using="gin"))
    id: Mapped[str] = mapped_column(primary_key=True)
    """Hash of project, data, template, tokenizer, limits and the code that prepared them."""
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    file_ids: Mapped[list[str]]
    """Files they were made of; files with equal content make the same set."""
    found: Mapped[Json]
    """What tokenising found (``worker.prepare.folder.Tokenised``)."""
    files: Mapped[Json]
    """{name: {key, bytes, sha256}}"""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Attempt(Table):
    """One try at training that the user sees, and what it used."""

    __tablename__ = "attempts"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    n: Mapped[int] = mapped_column(Integer, primary_key=True)
    generation: Mapped[int]
    worker_id: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    ended_at: Mapped[datetime | None]
    why: Mapped[str | None]
    resumed_from_step: Mapped[int] = mapped_column(server_default="0")
    steps: Mapped[int] = mapped_column(server_default="0")
    tokens: Mapped[int] = mapped_column(server_default="0")
    accelerator_seconds: Mapped[float] = mapped_column(server_default="0")


class Event(Table):
    __tablename__ = "events"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(unique=True)
    level: Mapped[str]
    type: Mapped[str] = mapped_column(server_default="message")
    message: Mapped[str]
    data: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class Metric(Table):
    """One optimizer step; the primary key is the second guard against a step written twice."""

    __tablename__ = "metrics"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    generation: Mapped[int]
    epoch: Mapped[float]
    train_loss: Mapped[float]
    completion_loss: Mapped[float | None]
    train_accuracy: Mapped[float | None]
    valid_loss: Mapped[float | None]
    valid_completion_loss: Mapped[float | None]
    valid_accuracy: Mapped[float | None]
    reward_chosen: Mapped[float | None]
    reward_rejected: Mapped[float | None]
    reward_margin: Mapped[float | None]
    valid_reward_margin: Mapped[float | None]
    learning_rate: Mapped[float]
    grad_norm: Mapped[float]
    tokens: Mapped[int]
    trained_tokens: Mapped[int]
    seconds: Mapped[float]
    adapter_moved: Mapped[float | None]
    """From where it began, as a share of its length; measured at checkpoints"""


class Checkpoint(Table):
    __tablename__ = "checkpoints"
    __table_args__ = (
        UniqueConstraint("job_id", "step"),
        # Those of jobs that have ended are looked for every few seconds.
        Index("ix_checkpoints_recovery", "job_id", postgresql_where=text("kind = 'recovery'")),
        CheckConstraint("kind IN ('epoch', 'recovery')", name="kind"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    step: Mapped[int]
    epoch: Mapped[float]
    kind: Mapped[str]
    """``epoch``: in the user's list. ``recovery``: only for resuming."""
    generation: Mapped[int]
    storage_prefix: Mapped[str]
    manifest: Mapped[Json]
    manifest_sha256: Mapped[str]
    metrics: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    deleted_at: Mapped[datetime | None]


class TunedModel(Table):
    __tablename__ = "tuned_models"
    __table_args__ = (Index(None, "project_id", "created_at", "id"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    """Its name: ``ft:<base>:<organisation>:<suffix>:<8 characters>``."""
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    storage_prefix: Mapped[str]
    manifest: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]


class Permission(Table):
    """A checkpoint that another project of the organisation may use."""

    __tablename__ = "checkpoint_permissions"
    __table_args__ = (
        UniqueConstraint("checkpoint", "granted_project_id"),
        Index(None, "project_id", "checkpoint", "created_at", "id"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    """Whose checkpoint it is."""
    checkpoint: Mapped[str]
    """The name of the checkpoint's model, ``ft:…:ckpt-step-<n>``."""
    granted_project_id: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Upload(Table):
    """A file that comes in parts of its own; completing it fixes their order, and a prepare item joins them."""

    __tablename__ = "uploads"
    __table_args__ = (_one_of("status", UploadStatus), Index(None, "project_id", "created_at", "id"))
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    bytes: Mapped[int]
    filename: Mapped[str]
    mime_type: Mapped[str]
    purpose: Mapped[str]
    file_expires_after: Mapped[int | None]
    status: Mapped[str] = mapped_column(server_default=UploadStatus.PENDING)
    part_ids: Mapped[list[str] | None]
    """The order given at completion."""
    md5: Mapped[str | None]
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]


class UploadPart(Table):
    __tablename__ = "upload_parts"
    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    bytes: Mapped[int | None]
    """NULL while they come in: the row is older than its object, so no object is without a row."""
    storage_key: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WebhookEndpoint(Table):
    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index(None, "project_id", "created_at", "id"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[str]]
    secret: Mapped[str]
    """``whsec_…``. Kept readable, since signing needs it; shown to users once."""
    previous_secret: Mapped[str | None]
    previous_secret_until: Mapped[datetime | None]
    """After a rotation both secrets sign until then."""
    disabled_reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """Of the last change of the configuration or the secret."""
    deleted_at: Mapped[datetime | None]


class WebhookDelivery(Table):
    """The outbox: a row for each event and endpoint, written in the event's own transaction."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index(
            "ix_webhook_deliveries_due",
            "available_at",
            postgresql_where=text("delivered_at IS NULL AND failed_at IS NULL"),
        ),
        Index(None, "created_at"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    """The same at every retry: the header ``webhook-id``."""
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"), index=True)
    body: Mapped[Json]
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    available_at: Mapped[datetime] = mapped_column(server_default=func.now())
    delivered_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    last_answer: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WorkItem(Leased, Table):
    """Work of the prepare queue that is not a job: check a large file, join an upload, register a base model,
    answer a question about data."""

    __tablename__ = "work_items"
    __table_args__ = (
        _one_of("status", ItemStatus),
        _one_of("kind", ItemKind),
        Index(
            "ix_work_items_claim",
            "created_at",
            postgresql_where=text("lease_until IS NULL AND status = 'waiting'"),
        ),
        Index("ix_work_items_lease_until", "lease_until", postgresql_where=text("lease_until IS NOT NULL")),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    subject_id: Mapped[str] = mapped_column(index=True)
    """The file, base model, upload or answer it is about."""
    status: Mapped[str] = mapped_column(server_default=ItemStatus.WAITING)
    error: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class Answer(Table):
    """What was asked about a project's data and what a prepare worker answered; asked again, it is here at once."""

    __tablename__ = "answers"
    __table_args__ = (
        _one_of("kind", AnswerKind),
        Index(None, "data_sha256", postgresql_using="gin"),
        Index(None, "used_at"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    """By the hash of the project, the kind and all that decides the answer."""
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    kind: Mapped[str]
    question: Mapped[Json]
    """What the worker reads: the ids of files and base models, and the options."""
    data_sha256: Mapped[list[str]] = mapped_column(postgresql.ARRAY(Text))
    """Of the files that the answer may quote: it goes when one of them is deleted."""
    result: Mapped[Json | None]
    objects: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    """Keys in the store by name: ``result`` when it is too large for the row, and what else belongs to the answer."""
    error: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    settled_at: Mapped[datetime | None]
    """NULL: it is being worked on."""
    used_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """When it was asked for last."""


class IdempotencyKey(Table):
    """(project, key) is unique: a retried create finds the first job again. Written in the job's own transaction."""

    __tablename__ = "idempotency_keys"
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_sha256: Mapped[bytes]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Worker(Table):
    """A worker process as it registered itself. A restarted process is a new row."""

    __tablename__ = "workers"
    __table_args__ = (CheckConstraint("kind IN ('prepare', 'train')", name="kind"), Index(None, "last_seen_at"))
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]
    slots: Mapped[int] = mapped_column(Integer)
    device: Mapped[str]
    memory_bytes: Mapped[int]
    base_models: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    """Names of the base models in its cache."""
    version: Mapped[str]
    draining: Mapped[bool] = mapped_column(server_default=text("false"))
    machine: Mapped[Json | None]
    """What a train worker measured of itself (``core.cost.Machine``); NULL until it has."""
    warm: Mapped[bool] = mapped_column(server_default=text("false"))
    """Every free slot's idle child has its imports done."""
    started_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    last_seen_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
