"""The stack under test: real servers, the real commands, two workers that train; and what can be done to it.

One thread owns it, watches over its processes and waits in :meth:`Site.pause`; nothing is restarted meanwhile.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psycopg
from openai import OpenAI
from psycopg.rows import dict_row

from cli.stack import plan as plans
from cli.stack import redis
from cli.stack.home import Home
from cli.stack.process import birth
from cli.stack.stack import Stack
from core.config import Settings
from core.storage.s3 import S3Store
from tests.chaos.proxy import Proxy
from tests.live import Beside, short_leases

TRAIN = ("train", "train-b")

_ENV = {
    # The harness kills far more often than a machine fails: here a job gives up at no number of losses.
    "ATTUNE_MAX_ATTEMPTS": "1000",
    "ATTUNE_BACKOFF_MAX_SECONDS": "1",
    "ATTUNE_LITTER_GRACE_SECONDS": "8",
    "ATTUNE_LITTER_SWEEP_SECONDS": "3",
    "ATTUNE_LOG_FORMAT": "json",
}


@dataclass(frozen=True)
class Trainer:
    """A process that is training: it holds a job's events.jsonl open."""

    pid: int
    slot: str
    job_id: str
    generation: int


class Site:
    def __init__(self, folder: Path, tiny: Path, *, defaults: bool = False) -> None:
        """``defaults``: with the periods that the service has by itself, else with leases of six seconds."""
        self.home = folder / "home"
        self._tiny = tiny
        home = Home(self.home)
        home.path.mkdir(parents=True, mode=0o700)
        if os.geteuid() == 0:
            home.path.chmod(0o711)
        self.bell = Proxy(lambda: self.port("redis"))
        self.gate = Proxy(lambda: self.port("s3"))
        bell = redis.url(home, self.bell.port)
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("ATTUNE_", "OPENAI_"))}
        self._env = plain | _ENV | ({} if defaults else short_leases())
        self.settings = Settings(
            **{n.removeprefix("ATTUNE_").lower(): v for n, v in self._env.items() if n.startswith("ATTUNE_")}
        )
        self.stack = Stack(self.home, env=self._env, plan=self._plan(bell))
        self._database: psycopg.Connection[dict[str, Any]] | None = None

    def _plan(self, bell: str) -> plans.Plan:
        whole = plans.whole()
        store = {"ATTUNE_S3_ENDPOINT_URL": f"http://127.0.0.1:{self.gate.port}"}
        services = []
        for service in whole.services:
            worker = store if service.name in ("prepare", "train") else {}
            services.append(replace(service, env={**service.env, **worker, "ATTUNE_REDIS_URL": bell}))
        second = next(service for service in services if service.name == "train")
        # A machine of its own: another home, another name.
        own = {"ATTUNE_HOME": str(self.home / "worker-b"), "ATTUNE_WORKER_NAME": "machine-b"}
        services.append(replace(second, name="train-b", env={**second.env, **own}))
        return replace(whole, services=tuple(services))

    def port(self, name: str) -> int:
        return int(Home(self.home).read("home.json")["ports"][name])

    @contextmanager
    def running(self) -> Iterator["Site"]:
        self.stack.start()
        try:
            self.register()
            yield self
        finally:
            for pid in self.workers():
                # One that is stopped could not hear that it is to end.
                signal_to(pid, signal.SIGCONT)
            self.stack.stop()
            self.stack.purge()
            self.gate.close()
            self.bell.close()

    def register(self) -> None:
        url = self.stack.connection.base_url + "/admin/models"
        headers = {"Authorization": f"Bearer {self.stack.connection.admin_key}"}
        body = {"name": "attune-tiny", "source": f"path:{self._tiny}"}
        httpx.post(url, json=body, headers=headers, timeout=30).raise_for_status()
        ready = self.until(
            lambda: httpx.get(f"{url}/attune-tiny", headers=headers, timeout=30).json()["status"] == "ready", 400
        )
        assert ready, self.logs()

    def answers(self) -> bool:
        """Whether the API is there: what came of a job can be asked for only then."""
        try:
            url = self.stack.connection.base_url.removesuffix("/v1") + "/readyz"
            return httpx.get(url, timeout=10).status_code == 200
        except httpx.HTTPError:
            return False

    def stranger(self) -> OpenAI:
        """A client with a key of another project."""
        found = self.query("SELECT id FROM projects WHERE name = 'stranger'")
        if not found:
            self.query(
                "INSERT INTO projects (id, organization_id, name) SELECT 'proj_stranger', id, 'stranger' "
                "FROM organizations LIMIT 1 RETURNING id"
            )
            from core.db.session import engine, sessions, transaction
            from core.services import keys

            bound = engine(Settings(database_url=self.stack.env["ATTUNE_DATABASE_URL"]))
            with transaction(sessions(bound)) as session:
                _, self._stranger_key = keys.create(session, "proj_stranger", "stranger", ["read", "train"])
            bound.dispose()
        return OpenAI(base_url=self.stack.connection.base_url, api_key=self._stranger_key)

    # Time.

    def pause(self, seconds: float) -> None:
        """Let so much time pass, watching over the processes."""
        deadline = time.monotonic() + seconds
        while True:
            self.stack.supervisor.turn()
            left = deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.05))

    def until(self, true: Callable[[], object], seconds: float, every: float = 0.05) -> bool:
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                return False
            self.pause(every)
        return True

    # Asking.

    @property
    def client(self) -> OpenAI:
        connection = self.stack.connection
        return OpenAI(base_url=connection.base_url, api_key=connection.api_key, max_retries=0, timeout=20)

    @property
    def store(self) -> S3Store:
        """The store itself, not through the gate."""
        names = ("S3_ENDPOINT_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY")
        return S3Store(Settings(**{name.lower(): self.stack.env[f"ATTUNE_{name}"] for name in names}))

    def query(self, sql: str, *values: object) -> list[dict[str, Any]]:
        """Rows of the database itself; waits for it when it was killed."""
        for _ in range(600):
            try:
                if self._database is None or self._database.closed:
                    url = self.stack.env["ATTUNE_DATABASE_URL"].replace("+psycopg", "")
                    self._database = psycopg.connect(url, autocommit=True, row_factory=dict_row, connect_timeout=3)
                return self._database.execute(sql, values).fetchall()  # type: ignore[call-overload]
            except psycopg.OperationalError:
                if self._database is not None:
                    self._database.close()
                self._database = None
                self.pause(0.1)
        raise AssertionError("the database does not come back\n" + self.logs())

    def one(self, sql: str, *values: object) -> dict[str, Any] | None:
        rows = self.query(sql, *values)
        return rows[0] if rows else None

    # Processes.

    def kill(self, name: str, down: float) -> None:
        """SIGKILL one of the stack's own processes; it is started again after so many seconds."""
        pid = self.stack.supervisor.pid(name)
        if pid is None:
            return
        os.kill(pid, signal.SIGKILL)
        self.until(lambda: self.stack.supervisor.pid(name) != pid, 10, every=0.02)
        self.stack.supervisor.restart_in(name, down)

    def pids(self) -> dict[str, int]:
        names = ("api", "prepare", *TRAIN, "reconciler")
        return {name: pid for name in names if (pid := self.stack.supervisor.pid(name)) is not None}

    def down(self) -> list[str]:
        """Those of the stack's processes that wait for being started again."""
        names = ("api", "prepare", *TRAIN, "reconciler", "redis", "postgres")
        return [name for name in names if self.stack.supervisor.pid(name) is None]

    def workers(self) -> list[int]:
        return [pid for name, pid in self.pids().items() if name in TRAIN]

    def trainers(self) -> list[Trainer]:
        return list(_trainers(self.home))

    def scratch(self) -> list[Path]:
        """Folders of claims, of all workers."""
        return [*self.home.glob("worker*/scratch/*/*-gen-*")]

    def logs(self, last: int = 4000) -> str:
        names = ("up", "api", "prepare", *TRAIN, "reconciler", "postgres")
        paths = [path for path in sorted((self.home / "logs").glob("*.log")) if path.stem in names]
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-last:]}" for path in paths)

    def counted(self, event: str) -> int:
        """How often the workers' logs tell of this event."""
        wanted = f'"event": "{event}"'
        paths = (self.home / "logs").glob("train*.log")
        return sum(path.read_text(errors="replace").count(wanted) for path in paths)


class Watch(Beside):
    """Looks at the trainers as often as it can be afforded, and keeps what must never have been."""

    every = 0.1

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.faults: list[str] = []
        self._home = home
        self._others: set[str] = set()
        self._paused = threading.Event()

    @contextmanager
    def blind(self) -> Iterator[None]:
        """While processes are stopped on purpose, two trainers of one job are nothing new."""
        self._paused.set()
        try:
            yield
        finally:
            self._paused.clear()

    def look(self) -> None:
        found = list(_trainers(self._home, self._others))
        slots = {trainer.slot for trainer in found}
        if len(slots) < len(found):
            self.faults.append(f"two trainers in one slot: {found}")
        jobs = {trainer.job_id for trainer in found}
        if len(jobs) < len(found) and not self._paused.is_set():
            self.faults.append(f"two trainers of one job: {found}")


def _trainers(home: Path, others: set[str] | None = None) -> Iterator[Trainer]:
    """``others``: ids of processes that were no trainers when they were looked at, so that looking often is cheap."""
    ids = {name for name in os.listdir("/proc") if name.isdigit()}
    if others is None:
        others = set()
    others &= ids
    for id in ids - others:
        folder = Path("/proc") / id
        try:
            command = (folder / "cmdline").read_bytes()
            if b"worker.train" not in command:
                # Before its exec a child still has the command line of whoever spawned it.
                if b"-m\0worker" not in command:
                    others.add(id)
                continue
            opened = [os.readlink(entry) for entry in (folder / "fd").iterdir()]
        except OSError:
            continue
        for path in opened:
            if path.startswith(str(home)) and path.endswith("/events.jsonl") and birth(int(folder.name)) is not None:
                claim = Path(path).parent
                job_id, _, generation = claim.name.rpartition("-gen-")
                yield Trainer(int(folder.name), str(claim.parent), job_id, int(generation))


def signal_to(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
