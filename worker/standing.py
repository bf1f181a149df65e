"""How things stand in the database, for Prometheus: asked at each scrape, and told by the reconciler alone."""

from collections.abc import Iterator

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from core.db.session import reading
from core.wiring import Parts

log = structlog.get_logger()

NAMES = frozenset(
    {"attune_database_up", "attune_queue_jobs", "attune_queue_oldest_seconds", "attune_running_jobs", "attune_workers"}
)

_WAITING = text("""
    SELECT status, phase, count(*), extract(epoch FROM clock_timestamp() - min(phase_since))::float8
    FROM jobs WHERE lease_until IS NULL AND status IN ('validating_files', 'queued') GROUP BY status, phase
""")
_ITEMS = text("""
    SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8
    FROM work_items WHERE lease_until IS NULL AND status = 'waiting'
""")
_RUNNING = text("SELECT phase, count(*) FROM jobs WHERE lease_until IS NOT NULL GROUP BY phase")
_WORKERS = text("""
    SELECT kind, CASE WHEN last_seen_at < clock_timestamp() - make_interval(secs => :silent) THEN 'offline'
        WHEN draining THEN 'draining' ELSE 'online' END AS state, count(*)
    FROM workers GROUP BY 1, 2
""")


class Standing(Collector):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing is asked of the database when it is registered."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up = GaugeMetricFamily("attune_database_up", "Whether the reconciler reaches the database.")
        try:
            found = list(self._ask())
        except SQLAlchemyError as error:
            log.warning("standing.unknown", error=type(error).__name__)
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from found

    def _ask(self) -> Iterator[GaugeMetricFamily]:
        depth = GaugeMetricFamily("attune_queue_jobs", "Rows that wait.", labels=["queue", "phase"])
        oldest = GaugeMetricFamily(
            "attune_queue_oldest_seconds", "How long the oldest waits.", labels=["queue", "phase"]
        )
        running = GaugeMetricFamily("attune_running_jobs", "Jobs that a worker owns.", labels=["phase"])
        there = GaugeMetricFamily("attune_workers", "Registered workers.", labels=["kind", "state"])
        with reading(self._parts.sessions) as session:
            for status, phase, count, age in session.execute(_WAITING):
                depth.add_metric([status, phase], count)
                oldest.add_metric([status, phase], age)
            for count, age in session.execute(_ITEMS):
                depth.add_metric(["items", "waiting"], count)
                oldest.add_metric(["items", "waiting"], age)
            for phase, count in session.execute(_RUNNING):
                running.add_metric([phase], count)
            silent = 3 * self._parts.settings.heartbeat_seconds
            for kind, state, count in session.execute(_WORKERS, {"silent": silent}):
                there.add_metric([kind, state], count)
        yield from (depth, oldest, running, there)
