"""Health checks of the containers: ``python health.py api | worker | database``; status 0 is healthy.

Only for images, where no other tool is at hand. Knows nothing about torch.
"""

import sys
import urllib.request

from sqlalchemy import func, select, text

from core import config
from core.db import session, tables

TIMEOUT = 5


def api() -> bool:
    """Answers requests and reaches everything behind it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{config.load().port}/readyz", timeout=TIMEOUT) as answer:
        return bool(answer.status == 200)


def worker() -> bool:
    """This container's worker gave a sign of life within three heartbeats.

    Asked of the database rather than of the process: a process that lives but lost its database is no worker.
    """
    # Imported here, since the API's image has not all that a worker needs.
    from worker import registry

    settings = config.load()
    age = func.extract("epoch", func.now() - func.max(tables.Worker.last_seen_at))
    seen = select(age).where(tables.Worker.name == registry.name_of(settings))
    with session.engine(settings, pool_size=1).connect() as connection:
        seconds = connection.execute(seen).scalar()
    return seconds is not None and seconds < 3 * settings.heartbeat_seconds


def database() -> bool:
    """For the reconciler, which has no port and no row: it can do its work."""
    with session.engine(config.load(), pool_size=1).connect() as connection:
        return bool(connection.execute(text("SELECT 1")).scalar() == 1)


CHECKS = {"api": api, "worker": worker, "database": database}

if __name__ == "__main__":
    sys.exit(0 if CHECKS[sys.argv[1]]() else 1)
