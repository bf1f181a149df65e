"""What the processes count and measure, for Prometheus; each serves its own numbers on a port of its own.

Knows no database. Names, labels and meanings are in ``docs/operations.md``; alerts and a dashboard in ``deploy/``.
"""

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.registry import Collector

from core.config import Settings

log = structlog.get_logger()

REGISTRY = CollectorRegistry()

_QUICK = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)

requests = Counter("attune_requests", "Answered HTTP requests.", ["method", "route", "status"], registry=REGISTRY)
request_seconds = Histogram(
    "attune_request_seconds",
    "From a request's arrival to the start of its answer.",
    ["method", "route"],
    buckets=_QUICK,
    registry=REGISTRY,
)
database_away = Counter(
    "attune_database_away", "Requests answered 503 because the database was away.", registry=REGISTRY
)
claims = Counter("attune_claims", "Rows taken from a queue.", ["queue"], registry=REGISTRY)
claim_seconds = Histogram(
    "attune_claim_seconds", "A look for work that found some.", ["queue"], buckets=_QUICK, registry=REGISTRY
)
leases_lost = Counter("attune_leases_lost", "Rows that a living worker lost.", registry=REGISTRY)
leases_expired = Counter(
    "attune_leases_expired", "Rows taken back from workers without a sign of life.", ["table"], registry=REGISTRY
)
fenced_writes_refused = Counter(
    "attune_fenced_writes_refused", "Writes of workers that no longer own the row.", registry=REGISTRY
)
jobs_ended = Counter("attune_jobs_ended", "Jobs that have ended.", ["status"], registry=REGISTRY)
phase_seconds = Histogram(
    "attune_phase_seconds", "How long a job was in a phase it has left.", ["phase"], buckets=_LONG, registry=REGISTRY
)
steps = Counter("attune_steps", "Optimizer steps.", registry=REGISTRY)
tokens = Counter("attune_tokens", "Tokens read by training.", registry=REGISTRY)
step_seconds = Counter("attune_step_seconds", "Time in optimizer steps.", registry=REGISTRY)
tokens_per_second = Gauge("attune_tokens_per_second", "Of the last steps reported.", registry=REGISTRY)
sweeps = Counter("attune_sweeps", "Rounds of the reconciler.", ["outcome"], registry=REGISTRY)


def serve(settings: Settings, *further: Collector) -> None:
    """Answer Prometheus in a thread, where a port is set. A port that is taken costs the numbers and nothing else."""
    for collector in further:
        REGISTRY.register(collector)
    if settings.metrics_port is None:
        return
    try:
        start_http_server(settings.metrics_port, settings.metrics_host, REGISTRY)
    except OSError as error:
        log.warning("telemetry.not_served", port=settings.metrics_port, error=str(error))
