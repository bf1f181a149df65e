"""What users wait for at the leases and heartbeats that the service has by itself."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import fresh_database, plain_environment
from tests.flow import longer
from tests.live import Live, running

pytestmark = [pytest.mark.flow, pytest.mark.proof]

TRIES = 8


@pytest.fixture(scope="module")
def plain(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Live]:
    env = plain_environment() | servers
    env |= {"ATTUNE_DATABASE_URL": fresh_database(servers, "plain"), "ATTUNE_S3_BUCKET": "plain"}
    with running(tmp_path_factory.mktemp("plain") / "home", env, tiny, {}) as stack:
        yield stack


def training(live: Live) -> str:
    """A job that has begun, and goes on for minutes."""
    job_id = longer.submit(live, epochs=50)
    live.until(lambda: longer.step_of(live, job_id) > 0, 120, "it trains")
    return job_id


def test_a_running_job_is_cancelled_and_its_accelerator_free_within_15_seconds(plain: Live) -> None:
    took = []
    for number in range(TRIES):
        job_id = training(plain)
        # At another moment between two heartbeats each time.
        time.sleep(number * 10 / TRIES)
        began = time.monotonic()
        assert plain.client.fine_tuning.jobs.cancel(job_id).status in ("running", "cancelled")
        plain.until(lambda: not plain.trainers(), 15, "the trainer is gone")
        took.append(time.monotonic() - began)
        assert plain.wait(job_id, 30).status == "cancelled"
    print(f"seconds to a free accelerator: {sorted(round(one, 1) for one in took)}")


def test_a_queued_job_is_cancelled_before_the_answer(plain: Live) -> None:
    running_id = training(plain)
    waiting = [longer.submit(plain) for _ in range(5)]
    plain.until(lambda: all(plain.job(id).status == "queued" for id in waiting), 120, "they wait")
    took = []
    for id in waiting:
        began = time.monotonic()
        assert plain.client.fine_tuning.jobs.cancel(id).status == "cancelled"
        took.append(time.monotonic() - began)
    print(f"seconds to a cancelled job that waited: {sorted(round(one, 3) for one in took)}")
    assert max(took) < 1
    plain.client.fine_tuning.jobs.cancel(running_id)
    assert plain.wait(running_id, 30).status == "cancelled"
