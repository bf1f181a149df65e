"""Creating twice makes one job, whatever is cut and whoever is killed in between.

Two real API processes without workers on a database of their own. Many copies of each create arrive together at both
of them; some clients hang up after they have sent theirs, and the processes are killed with SIGKILL, again and again.
"""

import contextlib
import http.client
import json
import os
import queue
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from core.config import Settings
from core.db.session import engine, sessions, transaction
from core.db.tables import BaseModel, Event, IdempotencyKey, Job
from core.services import keys, tenants
from core.storage.s3 import S3Store
from migrations.__main__ import migrate
from tests.conftest import chat_rows, fresh_database, plain_environment
from tests.live import ROOT, free_port

pytestmark = pytest.mark.flow

_CLIENTS = 24


@dataclass
class Api:
    """An API process that is killed and started again on the same port."""

    env: dict[str, str]
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "api"],
                env=self.env | {"ATTUNE_PORT": str(self.port)},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{self.port}/healthz", timeout=5).status_code == 200:
                    return
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)


@dataclass
class Service:
    """The two processes, a key, a file to train on, and a look into the database behind them."""

    apis: list[Api]
    settings: Settings
    key: str
    file_id: str = ""

    def body(self, n: int) -> bytes:
        return json.dumps({"model": "attune-tiny", "training_file": self.file_id, "metadata": {"n": str(n)}}).encode()


@pytest.fixture(scope="module")
def service(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("twice")
    env = plain_environment() | servers
    env |= {
        "ATTUNE_DATABASE_URL": fresh_database(servers, "twice"),
        "ATTUNE_S3_BUCKET": "twice",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
    }
    fields = {name.removeprefix("ATTUNE_").lower(): env[name] for name in env if name.startswith("ATTUNE_")}
    settings = Settings(**fields)
    S3Store(settings).create_bucket()
    bound = engine(settings)
    migrate(bound)
    with transaction(sessions(bound)) as session:
        project = tenants.default(session, settings.organization)
        _, secret = keys.create(session, project.id, "twice", ["read", "train"])
        session.add(BaseModel(id="base_tiny", name="attune-tiny", source="path:/nowhere", status="ready"))
    bound.dispose()
    made = Service([Api(env, free_port(), folder / f"api-{n}.log") for n in range(2)], settings, secret)
    try:
        for api in made.apis:
            api.start()
        for api in made.apis:
            api.wait()
        answer = httpx.post(
            f"http://127.0.0.1:{made.apis[0].port}/v1/files",
            headers={"Authorization": f"Bearer {secret}"},
            data={"purpose": "fine-tune"},
            files={"file": ("train.jsonl", chat_rows(12))},
        )
        made.file_id = answer.json()["id"]
        yield made
    finally:
        for api in made.apis:
            if api.process is not None:
                api.kill()


@dataclass
class Storm:
    """Sends ``copies`` of each of ``count`` creates until every one of them has its answer."""

    service: Service
    count: int
    copies: int
    kills: int
    seed: int
    answers: dict[int, list[Any]] = field(default_factory=dict)
    cuts: int = 0
    broken: int = 0
    """Requests whose connection ended with the process that had them."""
    faults: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._todo: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        # The copies of one create follow each other, so that as many as there are clients are under way at once.
        for n in range(self.count):
            self.answers[n] = []
            for copy in range(self.copies):
                self._todo.put((n, copy))

    def run(self) -> None:
        clients = [threading.Thread(target=self._client) for _ in range(_CLIENTS)]
        for client in clients:
            client.start()
        try:
            self._kill()
        finally:
            for client in clients:
                client.join()
        if self.faults:
            raise self.faults[0]

    def _answered(self) -> int:
        with self._lock:
            return sum(map(len, self.answers.values()))

    def _kill(self) -> None:
        """One process, then the other, spread over the work; each comes back at once, while the other goes on."""
        dice = random.Random(self.seed)
        total = self.count * self.copies
        for kill in range(self.kills):
            while self._answered() < total * (kill + 1) // (self.kills + 1):
                if self.faults:
                    return
                time.sleep(0.005)
            time.sleep(dice.random() * 0.05)
            api = self.service.apis[kill % len(self.service.apis)]
            api.kill()
            api.start()
            api.wait()

    def _client(self) -> None:
        try:
            while True:
                try:
                    n, copy = self._todo.get_nowait()
                except queue.Empty:
                    return
                answer = self._answer(n, random.Random(f"{self.seed}/{n}/{copy}"))
                with self._lock:
                    self.answers[n].append(answer)
        except Exception as error:  # noqa: BLE001  # the test's own thread raises it
            self.faults.append(error)

    def _answer(self, n: int, dice: random.Random) -> Any:
        """Like a client on a bad line: sends until an answer comes."""
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline, f"create {n}: no answer"
            api = dice.choice(self.service.apis)
            cut = dice.random() < 0.3
            try:
                got = self._send(api.port, n, dice.random() * 0.02 if cut else None)
            except ConnectionRefusedError:
                # It is being started again.
                time.sleep(0.05)
                continue
            except (OSError, http.client.HTTPException):
                with self._lock:
                    self.broken += 1
                continue
            if got is not None:
                return got
            with self._lock:
                self.cuts += 1

    def _send(self, port: int, n: int, cut_after: float | None) -> Any:
        """The answer; None when the client hung up that many seconds after its last byte was sent."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            headers = {
                "Authorization": f"Bearer {self.service.key}",
                "Content-Type": "application/json",
                "Idempotency-Key": f"{self.seed}-{n}",
            }
            connection.request("POST", "/v1/fine_tuning/jobs", self.service.body(n), headers)
            if cut_after is not None:
                time.sleep(cut_after)
                return None
            response = connection.getresponse()
            content = json.loads(response.read())
            assert response.status == 200, content
            return content
        finally:
            if connection.sock is not None:
                # A reset, not a farewell: what the server writes from here on is an error to it.
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()


@pytest.mark.parametrize(
    ("count", "copies", "kills"),
    [(100, 10, 4), pytest.param(1000, 20, 40, marks=pytest.mark.proof)],
)
def test_as_many_jobs_as_keys(service: Service, count: int, copies: int, kills: int) -> None:
    storm = Storm(service, count, copies, kills, seed=random.SystemRandom().randrange(10**9))
    print(f"seed {storm.seed}")
    bound = engine(service.settings)
    before = _jobs(bound)
    storm.run()
    print(f"{storm.cuts} cut, {storm.broken} broken by kills")
    made = _jobs(bound) - before
    with transaction(sessions(bound)) as session:
        mine = IdempotencyKey.key.startswith(f"client:{storm.seed}-")
        by_key = dict(session.execute(select(IdempotencyKey.key, IdempotencyKey.job_id).where(mine)).all())
        firsts = Counter(
            session.scalars(select(Event.job_id).where(Event.number == 1, Event.job_id.in_(by_key.values())))
        )
    bound.dispose()
    assert made == count == len(by_key)
    # Job, record and first events came as one: none of them is there without the others, or twice.
    assert firsts == Counter(by_key.values())
    for n, answers in storm.answers.items():
        assert len(answers) == copies
        assert {answer["id"] for answer in answers} == {by_key[f"client:{storm.seed}-{n}"]}
        # Nothing works on these jobs, so a replay says the same; only the place in the queue goes by what else waits.
        for answer in answers:
            del answer["ext"]["queue"]
        assert [answer for answer in answers if answer != answers[0]] == [], answers[0]
        assert answers[0]["metadata"] == {"n": str(n)}
    # The proof is one only if there was something to survive.
    assert storm.cuts > count
    assert storm.broken >= kills


def _jobs(bound: Any) -> int:
    with transaction(sessions(bound)) as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0
