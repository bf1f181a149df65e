"""The queue against its model: whatever happens in whatever order, both say the same."""

import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, seed
from hypothesis import settings as effort
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import event

from core.config import Settings
from core.db.session import engine, sessions
from migrations.__main__ import migrate
from tests.conftest import fresh_database
from tests.core.queue.machine import LIMIT, Queue


@pytest.fixture(scope="module")
def _database(servers: dict[str, str], settings: Settings) -> Iterator[None]:
    own = settings.model_copy(
        update={
            "database_url": fresh_database(servers, "model"),
            "max_running_jobs": LIMIT,
            "lease_seconds": 60.0,
            "backoff_seconds": 30.0,
            "max_attempts": 3,
        }
    )
    bound = engine(own)
    migrate(bound)

    @event.listens_for(bound, "connect")
    def hurry(connection: object, record: object) -> None:
        # Nothing here survives a crash anyway; and what waits for a lock that nobody gives up shall say so.
        with connection.cursor() as cursor:  # type: ignore[attr-defined]  # psycopg's connection
            cursor.execute("SET synchronous_commit = off; SET lock_timeout = '3s'")
        connection.commit()  # type: ignore[attr-defined]  # as above

    bound.dispose()
    Queue.sessions, Queue.settings = sessions(bound), own
    yield
    bound.dispose()


def run(sequences: int, number: int, steps: int = 20) -> None:
    print(f"MODEL_SEED={number}")
    tried = effort(
        max_examples=sequences,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        # A sequence is short enough to be read as it is, and making one shorter takes minutes.
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(number)(Queue), settings=tried)


@pytest.mark.usefixtures("_database")
def test_three_hundred_sequences_agree_with_the_model() -> None:
    run(300, 7)


@pytest.mark.proof
@pytest.mark.usefixtures("_database")
def test_ten_thousand_sequences_agree_with_the_model() -> None:
    run(10_000, int(os.environ.get("MODEL_SEED") or random.randrange(2**32)))
