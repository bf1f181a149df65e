"""``python -m worker.reconciler``: sweeps every few seconds; its threads deliver webhooks and collect litter.

Any number may run; one of them sweeps at a time.
"""

import signal
import sys
import threading

import structlog
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from core import config, telemetry, wiring
from core.db.session import transaction
from core.services import checkpoints, deliveries, joins, replies, runs, sweeps, token_sets, workers
from core.wiring import Parts
from worker.collector import Collector
from worker.deliverer import Deliverer
from worker.standing import Standing

log = structlog.get_logger()

_LOCK = 0x52434E


def sweep(parts: Parts) -> None:
    """One round, in one transaction under an advisory lock; objects go after the commit that lets go of them."""
    with transaction(parts.sessions) as session:
        if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": _LOCK}):
            return
        jobs = sweeps.expired_jobs(session, parts.settings)
        items = sweeps.expired_items(session, parts.settings)
        sweeps.cancelled_jobs(session)
        rested = runs.recovered(session)
        litter = [
            *sweeps.expired_files(session),
            *replies.expire(session, parts.settings),
            *token_sets.unused(session, parts.settings),
            *checkpoints.forget_recovery(session),
        ]
        joins.expire(session)
        workers.forget_old(session)
        deliveries.forget_old(session)
    if litter:
        parts.store.delete(*litter)
    joins.clear(parts.sessions, parts.store, parts.settings)
    if jobs or rested:
        parts.doorbell.ring("train")
    if jobs or items:
        parts.doorbell.ring("prepare")


def main() -> int:
    settings = config.load()
    wiring.configure_logging(settings)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    parts = wiring.assemble(settings, pool_size=4)
    telemetry.serve(settings, Standing(parts))
    deliverer = Deliverer(parts)
    deliverer.start()
    collector = Collector(parts)
    collector.start()
    log.info("reconciler.ready")
    while not ended.wait(settings.sweep_seconds):
        try:
            sweep(parts)
            telemetry.sweeps.labels("done").inc()
        except (SQLAlchemyError, BotoCoreError, ClientError) as error:
            telemetry.sweeps.labels("failed").inc()
            log.warning("sweep.failed", error=type(error).__name__)
    collector.stop()
    deliverer.stop()
    parts.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
