"""Requests per minute and key, counted in Redis so that all API processes count together."""

import time

import limits
import structlog
from limits.storage import MemoryStorage, storage_from_string
from limits.strategies import MovingWindowRateLimiter

from core.config import Settings
from core.errors import RateLimited

log = structlog.get_logger()


class RequestLimit:
    """Counts nothing when the operator has set no limit; while Redis is away, each process counts for itself."""

    def __init__(self, settings: Settings) -> None:
        self._limit = (
            limits.RateLimitItemPerMinute(settings.requests_per_minute) if settings.requests_per_minute else None
        )
        self._shared: MovingWindowRateLimiter | None = None
        self._own = MovingWindowRateLimiter(MemoryStorage())
        self._redis_url = settings.redis_url

    def check(self, key_id: str) -> None:
        if self._limit is None:
            return
        if not self._hit(key_id):
            raise RateLimited(
                f"This API key made more than {self._limit.amount} requests within a minute.",
                retry_after=self._wait(key_id),
            )

    def _hit(self, key_id: str) -> bool:
        assert self._limit is not None
        try:
            if self._shared is None:
                options = {"socket_timeout": "1", "socket_connect_timeout": "1"}
                self._shared = MovingWindowRateLimiter(storage_from_string(self._redis_url, **options))
            return self._shared.hit(self._limit, "requests", key_id)
        except Exception as error:  # noqa: BLE001  # whatever Redis' client raises, a counter must not refuse requests
            log.warning("limits.redis_away", error=type(error).__name__)
            return self._own.hit(self._limit, "requests", key_id)

    def _wait(self, key_id: str) -> float:
        """Seconds until the oldest request in the window is a minute old."""
        assert self._limit is not None
        try:
            counter = self._shared or self._own
            return max(1.0, counter.get_window_stats(self._limit, "requests", key_id).reset_time - time.time())
        except Exception as error:  # noqa: BLE001  # as above: the answer is then a guess
            log.warning("limits.redis_away", error=type(error).__name__)
            return 1.0
