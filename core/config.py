"""One settings object for every process, read from the environment (``ATTUNE_*``).

Durations are seconds, sizes are bytes. Nothing is read at import time: call :func:`load`.
"""

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from core.webhooks.address import Allowed

MIB = 1024 * 1024


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="ATTUNE_", extra="ignore")

    # Servers. Each URL replaces the embedded server of the same kind.
    database_url: str = "postgresql+psycopg://attune@127.0.0.1:5432/attune"
    redis_url: str = "redis://127.0.0.1:6379/0"
    s3_endpoint_url: str | None = None
    """The address the service itself uses; empty means AWS."""
    s3_public_url: str | None = None
    """The address clients reach: presigned URLs are signed for this host. Empty: the endpoint's own."""
    s3_access_key: str | None = None
    s3_secret_key: str | None = None
    s3_region: str = "us-east-1"
    s3_bucket: str = "attune"

    # Who is served.
    organization: str = "attune"
    """Name of the default organisation: the third part of a tuned model's name."""
    bootstrap_admin_key: str | None = None
    """An admin key the migrations step makes sure of; stored hashed like any other."""

    # Files.
    max_file_bytes: int = 8 * 1024 * MIB
    max_part_bytes: int = Field(64 * MIB, gt=0, le=1024 * MIB)
    """Largest part of an upload."""
    upload_seconds: float = Field(3600, gt=0)
    """How long an upload may take from its creation to its completion."""
    inline_check_bytes: int = 16 * MIB
    """JSONL up to this size is checked while it is uploaded; larger files are checked by a prepare worker."""
    min_examples: int = 10
    presigned_url_seconds: int = Field(900, gt=0, le=3600)
    tokens_days: float = Field(7, ge=0)
    """Prepared tokens that nobody has used for this long are removed."""

    # Questions about data: reports, verdicts, previews, estimates.
    answer_wait_seconds: float = Field(10, ge=0, le=60)
    """How long a request waits for its answer before it is told to come again."""
    answer_days: float = Field(7, gt=0)
    """An answer that nobody has asked for in so many days is forgotten."""

    # What one project may have, and one key may ask; empty: no limit.
    requests_per_minute: int | None = Field(None, ge=1)
    """Requests of one API key."""
    max_open_jobs: int | None = Field(None, ge=1)
    """Jobs of one project that have not ended."""
    max_running_jobs: int | None = Field(None, ge=1)
    """Jobs of one project that train at the same time; the others wait."""
    max_stored_bytes: int | None = Field(None, ge=1)
    """Bytes of all files of one project, results included."""

    # What training costs, for estimates and the catalog; empty: nothing is said of prices.
    price_per_hour: float | None = Field(None, ge=0)
    """Of an accelerator, or whatever else trains."""
    price_per_million_tokens: float | None = Field(None, ge=0)
    """Read by training."""
    price_currency: str = "USD"

    # Leases: how ownership of a row is proven, kept and lost. `docs/decisions/0002`.
    lease_seconds: float = 60
    heartbeat_seconds: float = 10
    authority_seconds: float = 40
    """Without a successful heartbeat for this long the supervisor kills its trainer."""
    poll_seconds: float = 5
    """A worker looks for work by itself this often, whatever the doorbell does."""
    sweep_seconds: float = 10
    backoff_seconds: float = 5
    """Pause before the second attempt; doubles with each loss, up to ``backoff_max_seconds``."""
    backoff_max_seconds: float = 300
    max_attempts: int = 3
    """Infrastructure losses without a new checkpoint in between before a job fails."""
    litter_grace_seconds: float = Field(86400, ge=0)
    """Objects and unfinished uploads that nobody needs are removed from the store when they are so old."""
    litter_sweep_seconds: float = Field(3600, gt=0)
    """The reconciler goes through the whole store this often."""
    log_days: float = Field(30, ge=0)
    """A trainer's log is kept for so long after its attempt."""
    stop_grace_seconds: float = 10
    """How long a trainer may take to end after a polite signal, before SIGKILL."""

    # Webhooks.
    webhook_allow: str = ""
    """Receivers that may be reached although they are not public: hosts' names and networks, with commas between."""
    webhook_timeout_seconds: float = Field(15, gt=0, le=60)
    """For one try, from the first packet to the answer's headers."""
    webhook_retry_seconds: str = "5,300,1800,7200,18000,36000,50400,72000,86400"
    """Pauses between tries, with commas between; one try more than pauses. Standard Webhooks' own: 75 hours in all."""
    webhook_poll_seconds: float = Field(1, gt=0)
    webhook_receivers: int = Field(32, ge=1)
    """Receivers that are written to at the same time; each gets one event at a time."""

    # Workers.
    worker_kinds: Literal["prepare", "train"] = "train"
    worker_slots: int = Field(1, ge=1)
    worker_name: str | None = None
    """Defaults to host name and kind; one running process per name and home."""
    home: Path = Path("/var/lib/attune")
    """Scratch folders, the cache of base models, lock files."""
    worker_threads: int | None = None
    """Threads torch may use in a slot; empty: the cores divided by the slots."""
    trainer_memory_bytes: int | None = Field(None, ge=1)
    """Memory a trainer may allocate on this machine (``RLIMIT_DATA``); empty: no limit."""
    recovery_seconds: float = Field(300, gt=0)
    """Longest time between two points that a lost job can go on from."""
    recovery_fraction: float = Field(0.1, gt=0, le=1)
    """Largest share of a run's steps between two of them."""
    recovery_overhead: float = Field(0.02, gt=0, le=1)
    """Share of the time that those by steps may take: where it would be more, they come less often."""
    disk_most: float = Field(0.9, gt=0, le=1)
    """A worker takes no more work while more than this share of its disk is used."""
    keep_scratch: bool = False
    conversions: Path | None = None
    """Where converted base models are kept, so that registering one again is quick; empty: in the cache."""

    # HTTP.
    host: str = "127.0.0.1"
    port: int = 8000
    drain_seconds: float = Field(3, ge=0)
    """After SIGTERM the API says that it is not ready and still serves, so that whoever sends it requests can turn."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """Where this process answers Prometheus; empty: nowhere."""
    metrics_host: str = "127.0.0.1"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"

    @field_validator("webhook_allow")
    @classmethod
    def _hosts_and_networks(cls, listed: str) -> str:
        Allowed.parse(listed)
        return listed

    @field_validator("webhook_retry_seconds")
    @classmethod
    def _pauses(cls, listed: str) -> str:
        if any(float(pause) < 0 for pause in listed.split(",") if pause.strip()):
            raise ValueError("a pause can't be negative")
        return listed

    @model_validator(mode="after")
    def _in_proportion(self) -> "Settings":
        """A trainer must be dead before its lease ends, and a heartbeat or two may fail before that."""
        if not self.heartbeat_seconds < self.authority_seconds < self.lease_seconds:
            raise ValueError(
                f"ATTUNE_HEARTBEAT_SECONDS ({self.heartbeat_seconds:g}) must be less than ATTUNE_AUTHORITY_SECONDS "
                f"({self.authority_seconds:g}), and that less than ATTUNE_LEASE_SECONDS ({self.lease_seconds:g})"
            )
        return self

    @property
    def webhook_pauses(self) -> list[float]:
        return [float(pause) for pause in self.webhook_retry_seconds.split(",") if pause.strip()]

    @property
    def cache_dir(self) -> Path:
        return self.home / "cache"

    @property
    def conversion_dir(self) -> Path:
        return self.conversions or self.cache_dir / "conversions"

    @property
    def scratch_dir(self) -> Path:
        return self.home / "scratch"


@lru_cache
def load() -> Settings:
    return Settings()
