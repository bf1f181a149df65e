"""Celery as the doorbell: one message, one queue a kind of work. Results, prefetching and remote control are off."""

from celery import Celery

from core.config import Settings

WAKE = "attune.wake"


def queue_name(kind: str) -> str:
    return f"attune.{kind}"


def app(settings: Settings) -> Celery:
    celery = Celery("attune", broker=settings.redis_url)
    celery.conf.update(
        task_ignore_result=True,
        accept_content=["json"],
        task_serializer="json",
        # A ring is taken off the list at once: the row it points at is the record, not the message.
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # Without these a half-open connection to Redis can hang a consumer for ever.
        broker_transport_options={
            "socket_timeout": 10,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        broker_connection_timeout=3,
    )
    return celery


class CeleryBell:
    """Sends the wake message of a kind."""

    def __init__(self, settings: Settings) -> None:
        self._app = app(settings)

    def __call__(self, kind: str) -> None:
        self._app.send_task(WAKE, args=[kind], queue=queue_name(kind), retry=False, expires=60)
