"""Streamed events, over real sockets, with clients that are cut off and processes that are killed."""

import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import psycopg
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import event, make_url, text

from api import live
from api.main import create_app
from core.config import Settings
from core.db import tenancy
from core.db.session import engine, sessions, transaction
from core.db.tables import BaseModel, Job
from core.services import events, keys, runs
from core.wiring import Parts
from tests.api.test_jobs import create, refused
from tests.conftest import Account, Accounts, plain_environment
from tests.live import free_port


@pytest.fixture
def job_id(account: Account, base_model: BaseModel) -> str:
    made: str = create(account).json()["id"]
    return made


def append(parts: Parts, account: Account, job_id: str, *messages: str, end: bool = False) -> None:
    """Events as the service writes them: in one transaction, under the job's lock."""
    with transaction(parts.sessions) as session:
        job = tenancy.get(session, Job, account.tenant, job_id, lock=True)
        for message in messages:
            events.append(session, job, message)
        if end:
            runs.cancelled(session, job)


class Process:
    """``python -m api`` on one port, as often as it is started."""

    def __init__(self, settings: Settings) -> None:
        self.port = free_port()
        self._env = plain_environment() | {
            f"ATTUNE_{name.upper()}": str(value)
            for name, value in settings.model_dump().items()
            if name in settings.model_fields_set and value is not None
        }
        self._env["ATTUNE_PORT"] = str(self.port)
        self.running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.running = subprocess.Popen([sys.executable, "-m", "api"], env=self._env)
        for _ in range(600):
            try:
                # It binds its port when all else is ready.
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the API did not come up")

    def stop(self, number: signal.Signals) -> float:
        """How many seconds it took to end."""
        assert self.running is not None
        began = time.monotonic()
        self.running.send_signal(number)
        self.running.wait(20)
        return time.monotonic() - began


@pytest.fixture
def process(settings: Settings) -> Iterator[Process]:
    made = Process(settings)
    made.start()
    yield made
    if made.running is not None and made.running.poll() is None:
        made.stop(signal.SIGKILL)


@contextmanager
def served(parts: Parts) -> Iterator[tuple[str, FastAPI]]:
    """The application under uvicorn in a thread of this process, with a pool of its own."""
    own = replace(parts, sessions=sessions(engine(parts.settings)))
    app = create_app(own)
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.config.port}", app
    finally:
        if hasattr(app.state, "live"):
            loop = app.state.live._listener.get_loop() if app.state.live._listener else None
            if loop is not None:
                loop.call_soon_threadsafe(app.state.live.end)
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


# One for all streams: making a client costs more than a short stream.
_HTTP = httpx.Client(timeout=30, limits=httpx.Limits(max_keepalive_connections=0))


@contextmanager
def stream(account: Account, base: str, job_id: str, after: int | None = None) -> Iterator[httpx.Response]:
    headers = {"Authorization": f"Bearer {account.key}"}
    if after is not None:
        headers["Last-Event-ID"] = str(after)
    with _HTTP.stream("GET", f"{base}/v1/fine_tuning/jobs/{job_id}/events?stream=true", headers=headers) as answer:
        yield answer


def numbers(lines: Iterator[str]) -> Iterator[int]:
    """The number of each event, which its id and its data agree on."""
    data: dict[str, object] = {}
    for line in lines:
        if line.startswith("data: "):
            data = json.loads(line.removeprefix("data: "))
            assert data["object"] == "fine_tuning.job.event"
        elif line.startswith("id: "):
            assert data["data"]["number"] == int(line.removeprefix("id: "))  # type: ignore[index]
            yield int(line.removeprefix("id: "))


def until_connected(account: Account, app: FastAPI, job_id: str, followers: int) -> None:
    for _ in range(500):
        topic = app.state.live._topics.get(job_id)
        if topic is not None and topic.followers == followers and topic.newest:
            return
        time.sleep(0.01)
    raise AssertionError("the followers did not come")


def test_a_hundred_cuts_and_three_kills_lose_nothing_and_double_nothing(
    process: Process, parts: Parts, account: Account, job_id: str
) -> None:
    chance = random.Random(7)
    killed = threading.Event()

    def write() -> None:
        for n in range(400):
            append(parts, account, job_id, *(f"{n}.{k}" for k in range(1 + n % 3)))
            time.sleep(0.01)
        killed.wait(80)
        append(parts, account, job_id, "the last but one", end=True)

    def kill() -> None:
        for _ in range(3):
            time.sleep(0.7)
            process.stop(signal.SIGKILL)
            process.start()
        killed.set()

    threads = [threading.Thread(target=write), threading.Thread(target=kill)]
    for thread in threads:
        thread.start()
    seen: list[int] = []
    cuts = broken = 0
    base, deadline = f"http://127.0.0.1:{process.port}", time.monotonic() + 100
    while time.monotonic() < deadline:
        enough = len(seen) + chance.randint(1, 8)
        try:
            with stream(account, base, job_id, seen[-1] if seen else None) as answer:
                if answer.status_code == 204:
                    break
                assert answer.status_code == 200, answer.read()
                for number in numbers(answer.iter_lines()):
                    seen.append(number)
                    if len(seen) >= enough and cuts < 200:
                        cuts += 1
                        break
                else:
                    break
        except httpx.TransportError:
            broken += 1
            time.sleep(0.05)
    for thread in threads:
        thread.join()
    with transaction(parts.sessions) as session:
        count = tenancy.get(session, Job, account.tenant, job_id).event_count
    assert count > 800
    assert seen == list(range(1, count + 1))
    assert cuts >= 100
    assert broken >= 3


def test_a_stream_ends_after_the_last_event_and_there_is_nothing_after_it(
    parts: Parts, account: Account, job_id: str
) -> None:
    append(parts, account, job_id, "done", end=True)
    answer = account.http.get(f"/v1/fine_tuning/jobs/{job_id}/events?stream=true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    seen = list(numbers(iter(answer.text.splitlines())))
    assert seen == list(range(1, len(seen) + 1))
    newest = account.http.get(f"/v1/fine_tuning/jobs/{job_id}/events").json()["data"][0]["data"]["number"]
    assert seen[-1] == newest
    for last, rest in ((newest - 2, [newest - 1, newest]), (newest, [])):
        headers = {"Last-Event-ID": str(last)}
        answer = account.http.get(f"/v1/fine_tuning/jobs/{job_id}/events?stream=true", headers=headers)
        assert list(numbers(iter(answer.text.splitlines()))) == rest
        assert answer.status_code == (200 if rest else 204)


def test_what_is_wrong_is_said_before_the_stream_starts(accounts: Accounts, account: Account, job_id: str) -> None:
    url = f"/v1/fine_tuning/jobs/{job_id}/events?stream=true"
    for last in ("x", "-1", "1.5", "9" * 30, "999"):
        refused(account.http.get(url, headers={"Last-Event-ID": last}), "Last-Event-ID", last[:10])
    refused(account.http.get(url + "&after=ftevent-1"), "after", "Last-Event-ID")
    refused(account.http.get(url + "&limit=5"), "limit")
    assert account.http.get(url, headers={"Authorization": "Bearer nobody"}).status_code == 401
    assert accounts.make("stranger").http.get(url).status_code == 404


def test_a_long_history_comes_whole(parts: Parts, account: Account, job_id: str) -> None:
    append(parts, account, job_id, *(str(n) for n in range(1700)), end=True)
    answer = account.http.get(f"/v1/fine_tuning/jobs/{job_id}/events?stream=true")
    seen = list(numbers(iter(answer.text.splitlines())))
    assert seen == list(range(1, 1 + len(seen)))
    assert len(seen) > 1700


def test_an_event_is_soon_with_all_who_wait_and_they_hold_no_connection(
    parts: Parts, account: Account, job_id: str
) -> None:
    followers = 60

    async def wait(client: httpx.AsyncClient, base: str) -> float:
        url = f"{base}/v1/fine_tuning/jobs/{job_id}/events?stream=true"
        async with client.stream("GET", url, headers={"Authorization": f"Bearer {account.key}"}) as answer:
            async for line in answer.aiter_lines():
                if "the news" in line:
                    return time.monotonic()
        raise AssertionError("the stream ended")

    async def all_wait(base: str, app: FastAPI) -> tuple[float, list[float]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=30, limits=limits) as client:
            waiting = [asyncio.create_task(wait(client, base)) for _ in range(followers)]
            await asyncio.to_thread(until_connected, account, app, job_id, followers)
            await asyncio.sleep(0.3)
            assert app.state.parts.sessions.kw["bind"].pool.checkedout() == 0
            await asyncio.to_thread(append, parts, account, job_id, "the news")
            committed = time.monotonic()
            return committed, await asyncio.gather(*waiting)

    with served(parts) as (base, app):
        committed, arrived = asyncio.run(all_wait(base, app))
        # Of liveness: how soon it really is, bench/api.py measures.
        assert max(arrived) - committed < 0.9
        for _ in range(200):
            if not app.state.live._topics:
                break
            time.sleep(0.01)
        # Nothing is left of clients that are gone.
        assert not app.state.live._topics


def next_arrives(parts: Parts, account: Account, base: str, app: FastAPI, job_id: str) -> float:
    """Seconds from an event's commit to its arrival."""
    with stream(account, base, job_id) as answer:
        lines = answer.iter_lines()
        until_connected(account, app, job_id, 1)
        seen = {next(numbers(lines)) for _ in range(app.state.live._topics[job_id].newest)}
        append(parts, account, job_id, "more")
        began = time.monotonic()
        assert next(numbers(lines)) == max(seen) + 1
        return time.monotonic() - began


def test_followers_at_different_places_share_what_is_read(parts: Parts, account: Account, job_id: str) -> None:
    append(parts, account, job_id, "a", "b", "c")
    with served(parts) as (base, app), stream(account, base, job_id) as first:
        until_connected(account, app, job_id, 1)
        newest = app.state.live._topics[job_id].newest
        with stream(account, base, job_id, newest - 2) as second:
            until_connected(account, app, job_id, 2)
            append(parts, account, job_id, "d", end=True)
            assert list(numbers(second.iter_lines())) == list(range(newest - 1, newest + 3))
        assert list(numbers(first.iter_lines())) == list(range(1, newest + 3))


def test_without_a_listener_a_stream_lives_on_polling(
    parts: Parts, account: Account, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live.Live, "open", lambda self: None)
    with served(parts) as (base, app):
        assert next_arrives(parts, account, base, app, job_id) < 2.5
        app.state.live._ending = True


def test_a_listener_that_was_cut_off_comes_back(parts: Parts, account: Account, job_id: str) -> None:
    with served(parts) as (base, app):
        for _ in range(2):
            for _ in range(300):
                if app.state.live._listening:
                    break
                time.sleep(0.01)
            assert next_arrives(parts, account, base, app, job_id) < 0.9
            with transaction(parts.sessions) as session:
                cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'attune-live'"
                session.execute(text(cut))
            time.sleep(0.2)


def test_a_revoked_key_gets_no_further_events(
    parts: Parts, accounts: Accounts, account: Account, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "KEYS_SECONDS", 0.1)
    with transaction(parts.sessions) as session:
        second, secret = keys.create(session, account.tenant.project_id, "second", ["read"])
    with served(parts) as (base, app), stream(account, base, job_id) as kept:
        with stream(replace(account, key=secret), base, job_id) as revoked:
            until_connected(account, app, job_id, 2)
            with transaction(parts.sessions) as session:
                keys.revoke(session, account.tenant, second.id)
            # It ends by itself, although the job goes on; one that doesn't would wait here until the job ends.
            late = threading.Timer(10, append, (parts, account, job_id, "late"), {"end": True})
            late.start()
            assert list(numbers(revoked.iter_lines())) == [1, 2]
            late.cancel()
        append(parts, account, job_id, "more", end=True)
        assert len(list(numbers(kept.iter_lines()))) > 3


def test_silence_is_broken_by_comments(
    parts: Parts, account: Account, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.2)
    with served(parts) as (base, _), stream(account, base, job_id) as answer:
        comments = 0
        for line in answer.iter_lines():
            comments += line.startswith(":")
            if comments == 3:
                break
    assert comments == 3


def test_streams_end_in_good_order_when_the_process_is_asked_to(
    process: Process, account: Account, job_id: str
) -> None:
    began = time.monotonic()
    took: list[float] = []
    with stream(account, f"http://127.0.0.1:{process.port}", job_id) as answer:
        lines = answer.iter_lines()
        assert next(numbers(lines)) == 1
        ending = threading.Thread(target=lambda: took.append(process.stop(signal.SIGTERM)))
        ending.start()
        # No TransportError: the last chunk came.
        assert list(numbers(lines)) == [2]
        ending.join()
    assert took[0] < 3
    assert time.monotonic() - began < 10


def test_a_transaction_tells_each_job_once_and_only_when_it_commits(
    parts: Parts, account: Account, job_id: str
) -> None:
    url = make_url(parts.settings.database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as listener:
        listener.execute(f"LISTEN {events.CHANNEL}")
        sent: list[str] = []
        with transaction(parts.sessions) as session:

            def count(conn: object, cursor: object, statement: str, *_: object) -> None:
                if "pg_notify" in statement:
                    sent.append(statement)

            event.listen(session.get_bind(), "before_cursor_execute", count)
            job = tenancy.get(session, Job, account.tenant, job_id, lock=True)
            for _ in range(5):
                events.append(session, job, "again")
            event.remove(session.get_bind(), "before_cursor_execute", count)
        assert len(sent) == 1
        assert [note.payload for note in listener.notifies(timeout=0.3)] == [job_id]
        with parts.sessions() as session:
            job = tenancy.get(session, Job, account.tenant, job_id, lock=True)
            events.append(session, job, "never")
            session.rollback()
            # The same session's next transaction tells for itself.
            job = tenancy.get(session, Job, account.tenant, job_id, lock=True)
            events.append(session, job, "but this")
            session.commit()
        assert [note.payload for note in listener.notifies(timeout=0.3)] == [job_id]
