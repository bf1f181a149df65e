"""Settings to parts: the only place that picks an implementation."""

import sys
from dataclasses import dataclass

import structlog

from core import config
from core.config import Settings
from core.db.session import Sessions, engine, sessions
from core.queue.celery import CeleryBell
from core.queue.doorbell import BackgroundDoorbell, Doorbell
from core.storage.s3 import S3Store
from core.storage.store import Store


@dataclass(frozen=True, slots=True)
class Parts:
    settings: Settings
    sessions: Sessions
    store: Store
    doorbell: Doorbell

    def close(self) -> None:
        bind = self.sessions.kw["bind"]
        bind.dispose()


def assemble(settings: Settings | None = None, *, pool_size: int = 10) -> Parts:
    settings = settings or config.load()
    return Parts(
        settings=settings,
        sessions=sessions(engine(settings, pool_size=pool_size)),
        store=S3Store(settings),
        doorbell=BackgroundDoorbell(CeleryBell(settings)),
    )


def configure_logging(settings: Settings) -> None:
    """Constant event names, facts as fields, one line an event on standard error."""
    levels = {"debug": 10, "info": 20, "warning": 30, "error": 40}
    renderer = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(levels[settings.log_level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
