"""Servers that go away for a while, and processes that are told to end: nothing is lost, and nobody is lied to."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.conftest import fresh_database, plain_environment
from tests.flow import longer, proxy
from tests.flow.proxy import Proxy
from tests.live import ROOT, Beside, Live, running

pytestmark = pytest.mark.flow


class Cut(NamedTuple):
    live: Live
    database: Proxy
    redis: Proxy


@pytest.fixture(scope="module")
def cut(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Cut]:
    """A stack that reaches PostgreSQL and Redis through proxies."""
    with ExitStack() as stack:
        database = stack.enter_context(proxy.before(fresh_database(servers, "outages")))
        redis = stack.enter_context(proxy.before(servers["ATTUNE_REDIS_URL"]))
        env = plain_environment() | servers | {"ATTUNE_S3_BUCKET": "outages"}
        env |= {"ATTUNE_DATABASE_URL": database.url, "ATTUNE_REDIS_URL": redis.url}
        live = stack.enter_context(running(tmp_path_factory.mktemp("outages") / "home", env, tiny))
        yield Cut(live, database, redis)


class Asker(Beside):
    """Asks for a job again and again, and keeps what it was answered."""

    every = 0.1

    def __init__(self, live: Live, job_id: str) -> None:
        super().__init__()
        self.answers: list[tuple[float, int, str | None]] = []
        self._url = f"{live.base_url}/fine_tuning/jobs/{job_id}"
        self._headers = {"Authorization": f"Bearer {live.api_key}"}

    def look(self) -> None:
        answer = httpx.get(self._url, headers=self._headers, timeout=60)
        self.answers.append((time.monotonic(), answer.status_code, answer.headers.get("retry-after")))


def away(cut: Cut, seconds: float, unkilled: tuple[str, bytes]) -> None:
    live = cut.live
    job_id = longer.submit(live)
    live.until(lambda: longer.step_of(live, job_id) > 30, 120, "it trains")
    with Asker(live, job_id) as asker:
        cut.database.cut()
        gone = time.monotonic()
        time.sleep(seconds)
        cut.database.restore()
        back = time.monotonic()
        time.sleep(8)
    assert {status for _, status, _ in asker.answers} <= {200, 503}
    while_away = [(status, after) for at, status, after in asker.answers if gone + 1 < at < back]
    assert while_away
    assert all(status == 503 and int(after or 0) > 0 for status, after in while_away)
    assert all(status == 200 for at, status, _ in asker.answers if at > back + 5)
    job = live.wait(job_id, 180)
    assert job.status == "succeeded", job.error
    assert longer.weights(live, job) == unkilled[0]
    assert longer.numbers(live.client.files.content(job.result_files[0]).read()) == longer.numbers(unkilled[1])


def test_a_database_that_is_away_for_seconds_costs_nothing(cut: Cut, unkilled: tuple[str, bytes]) -> None:
    away(cut, 2, unkilled)


@pytest.mark.proof
def test_a_database_that_is_away_for_a_minute_loses_nothing(cut: Cut, unkilled: tuple[str, bytes]) -> None:
    """Longer than lease and authority: the trainer is ended, and the job goes on from its last checkpoint."""
    away(cut, 60, unkilled)


def test_without_redis_jobs_start_all_the_same(cut: Cut) -> None:
    live = cut.live
    cut.redis.cut()
    try:
        began = time.monotonic()
        job_id = longer.submit(live)
        live.until(lambda: live.job(job_id).ext["attempts"], 30, "it is begun")
        assert time.monotonic() - began < 30
    finally:
        cut.redis.restore()
    live.client.fine_tuning.jobs.cancel(job_id)
    assert live.wait(job_id, 15).status == "cancelled"


class Api:
    """An API process of its own beside the stack's."""

    def __init__(self, live: Live, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._env = live.env | {"ATTUNE_PORT": str(port), "ATTUNE_DRAIN_SECONDS": "1.5"}
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "api"], env=self._env, cwd=ROOT)

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


def test_a_rolling_restart_under_load_fails_no_request(cut: Cut, unused_tcp_ports: list[int]) -> None:
    live = cut.live
    apis = [Api(live, port) for port in unused_tcp_ports]
    headers = {"Authorization": f"Bearer {live.api_key}"}
    in_turn = {api.url: False for api in apis}
    ended = threading.Event()
    answers: list[int] = []
    faults: list[str] = []

    def watch() -> None:
        # As a load balancer does: it asks each process whether it is ready, and turns to those that are.
        while not ended.wait(0.2):
            for api in apis:
                in_turn[api.url] = api.ready()

    def ask(number: int) -> None:
        with httpx.Client(headers=headers, timeout=30) as client:
            while not ended.wait(0.02):
                ready = [url for url, there in in_turn.items() if there]
                try:
                    answers.append(client.get(f"{ready[number % len(ready)]}/v1/models").status_code)
                except (httpx.HTTPError, ZeroDivisionError) as error:
                    faults.append(repr(error))

    try:
        live.until(lambda: all(api.ready() for api in apis), 60, "both are ready")
        for api in apis:
            in_turn[api.url] = True
        threads = [threading.Thread(target=watch), *(threading.Thread(target=ask, args=(n,)) for n in range(6))]
        for thread in threads:
            thread.start()
        for api in apis:
            api.process.send_signal(signal.SIGTERM)
            assert api.process.wait(15) in (0, -signal.SIGTERM)
            api.start()
            live.until(api.ready, 60, "it is ready again")
            time.sleep(0.5)
        ended.set()
        for thread in threads:
            thread.join()
    finally:
        ended.set()
        for api in apis:
            api.process.kill()
            api.process.wait()
    assert faults == []
    assert set(answers) == {200}
    assert len(answers) > 50


def test_a_draining_api_ends_its_streams_and_finishes_what_is_under_way(cut: Cut, unused_tcp_ports: list[int]) -> None:
    live = cut.live
    job_id = longer.submit(live)
    api = Api(live, unused_tcp_ports[0])
    try:
        live.until(api.ready, 60, "it is ready")
        url = f"{api.url}/v1/fine_tuning/jobs/{job_id}/events?stream=true"
        with httpx.stream("GET", url, headers={"Authorization": f"Bearer {live.api_key}"}, timeout=60) as stream:
            assert stream.status_code == 200
            lines = stream.iter_lines()
            next(lines)
            os.kill(api.process.pid, signal.SIGTERM)
            began = time.monotonic()
            for _ in lines:
                pass
        assert api.process.wait(10) in (0, -signal.SIGTERM)
        assert time.monotonic() - began < 10
    finally:
        api.process.kill()
        api.process.wait()
    live.client.fine_tuning.jobs.cancel(job_id)
    live.wait(job_id, 15)


@pytest.fixture
def unused_tcp_ports() -> list[int]:
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
