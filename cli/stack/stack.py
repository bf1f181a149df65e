"""The whole service on one machine: real servers, migrations, the API, its workers, and a watch over them.

    with Stack(home) as stack:            # servers only: Stack(home, plan=SERVERS_ONLY)
        client = OpenAI(base_url=stack.connection.base_url, api_key=stack.connection.api_key)

Use it from the thread that lives as long as the stack: its processes end with that thread.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from cli.stack import plan as plans
from cli.stack import ports, postgres, ready, redis, seaweedfs
from cli.stack.errors import Interrupted, StackError
from cli.stack.home import Home
from cli.stack.interrupts import Interrupts
from cli.stack.journal import Journal
from cli.stack.plan import Plan
from cli.stack.process import Program
from cli.stack.supervise import Supervisor, clear_leftovers, explain, tail
from core import ids

SERVER_STAGE = 9
SERVER_PATIENCE = 2.0
START_SECONDS = 180.0
"""The longest a start may take before it is given up, first start of a slow machine included."""


@dataclass(frozen=True)
class Connection:
    """How a client reaches a ready stack; DIR/connection.json holds the same."""

    base_url: str
    api_key: str
    admin_key: str


class Stack:
    def __init__(
        self,
        home: Path | str,
        *,
        port: int | None = None,
        env: Mapping[str, str] | None = None,
        plan: Plan | None = None,
        interrupts: Interrupts | None = None,
        quiet: bool = True,
    ) -> None:
        """``env`` takes the place of this process's environment; ``quiet`` keeps the journal off stderr."""
        self.home = Home(Path(home))
        self.env: dict[str, str] = plans.python_environment(os.environ if env is None else env)
        """The environment of the stack's processes, complete once the servers have started."""
        self._port = port
        self._plan = plan or plans.whole()
        self._interrupts = interrupts or Interrupts()
        self._quiet = quiet
        self._connection: Connection | None = None
        self._supervisor: Supervisor | None = None
        self._journal = Journal()
        self._deadline = 0.0

    @property
    def serves(self) -> bool:
        """Whether it is ready and has an API: not so with servers only."""
        return self._connection is not None

    @property
    def connection(self) -> Connection:
        if self._connection is None:
            raise StackError("the stack is not ready")
        return self._connection

    @property
    def supervisor(self) -> Supervisor:
        if self._supervisor is None:
            raise StackError("the stack has not been started")
        return self._supervisor

    # The life of a stack.

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything of the plan and return when it is ready; stops what it began when that fails."""
        began = time.monotonic()
        self._deadline = began + START_SECONDS
        self.home.acquire()
        try:
            self._journal = Journal.to(self.home.log("up"), quiet=self._quiet)
            clear_leftovers(self.home, self._journal)
            self.home.connection_file.unlink(missing_ok=True)
            for folder in postgres.abandoned():
                self._journal.say("database.abandoned", folder=folder, why="its home is gone; it may be deleted")
            self._supervisor = Supervisor(self.home, self._journal)
            self._supervisor.say_state("starting")
            self._start_servers()
            if self._plan.migrate is not None:
                self._migrate(self._plan.migrate)
            if self._plan.services:
                self._start_services()
            self._supervisor.say_state("ready")
            self._journal.say("stack.start_took", seconds=time.monotonic() - began)
        except BaseException:
            self.stop()
            raise

    def turn(self, seconds: float = 1.0) -> None:
        """One turn of the watch: restart what died, then sleep until something happens."""
        self.supervisor.turn()
        self._interrupts.pause(seconds)

    def run(self) -> None:
        """Watch over a started stack until somebody asks it to stop."""
        try:
            while True:
                self.turn()
        except Interrupted as asked:
            self._journal.say("stack.asked_to_stop", by=asked)

    def stop(self) -> None:
        """Stop in order, within ten seconds; a stack that is not running stays so."""
        self._connection = None
        self.home.connection_file.unlink(missing_ok=True)
        if self._supervisor is not None:
            patience: dict[int, float] = {}
            for service in self._plan.services:
                patience[service.stage] = max(service.patience, patience.get(service.stage, 0.0))
            self._supervisor.stop({**patience, SERVER_STAGE: SERVER_PATIENCE})
            self._supervisor = None
        self.home.release()

    def purge(self) -> None:
        """Delete the home and its database; only while it is stopped."""
        self.home.acquire()
        try:
            postgres.purge(self.home)
        finally:
            self.home.release()
        shutil.rmtree(self.home.path)

    # Its parts.

    def _start_servers(self) -> None:
        """Each server is replaced by its URL in the environment."""
        home, supervisor = self.home, self.supervisor
        wants = {
            "postgres": "ATTUNE_DATABASE_URL" not in self.env,
            "redis": "ATTUNE_REDIS_URL" not in self.env,
            "seaweedfs": "ATTUNE_S3_ENDPOINT_URL" not in self.env,
        }
        names = ["api"] if self._plan.services else []
        names += [name for name in ("postgres", "redis") if wants[name]]
        names += seaweedfs.PORTS if wants["seaweedfs"] else ()
        chosen = ports.choose(home, names, {"api": self._port})
        answers: dict[str, Callable[[], bool]] = {}
        # The slowest first: it becomes ready while the database is being made.
        if wants["seaweedfs"]:
            supervisor.add(seaweedfs.prepare(home, chosen), SERVER_STAGE)
            answers["seaweedfs"] = lambda: seaweedfs.answers(chosen)
            self.env["ATTUNE_S3_ENDPOINT_URL"] = seaweedfs.url(chosen)
            self.env["ATTUNE_S3_ACCESS_KEY"] = seaweedfs.ACCESS_KEY
            self.env["ATTUNE_S3_SECRET_KEY"] = seaweedfs.secret_key(home)
        if wants["redis"]:
            supervisor.add(redis.prepare(home, chosen["redis"]), SERVER_STAGE)
            answers["redis"] = lambda: redis.answers(home, chosen["redis"])
            self.env["ATTUNE_REDIS_URL"] = redis.url(home, chosen["redis"])
        if wants["postgres"]:
            supervisor.add(postgres.prepare(home, chosen["postgres"], self._journal), SERVER_STAGE)
            answers["postgres"] = lambda: postgres.answers(home, chosen["postgres"])
            self.env["ATTUNE_DATABASE_URL"] = postgres.url(home, chosen["postgres"])
        self._set_service_environment(chosen)
        for name, asks in answers.items():
            self._wait(name, asks)

    def _set_service_environment(self, chosen: dict[str, int]) -> None:
        env = self.env
        env["ATTUNE_HOME"] = str(self.home.worker)
        env.setdefault("ATTUNE_HOST", ports.LOOPBACK)
        if "api" in chosen:
            env["ATTUNE_PORT"] = str(chosen["api"])
        if "ATTUNE_BOOTSTRAP_ADMIN_KEY" not in env:
            env["ATTUNE_BOOTSTRAP_ADMIN_KEY"] = self.home.secret("admin_key", make=ids.secret_key)
        # A worker must have let go of its job within the time that this stack has to stop.
        env.setdefault("ATTUNE_STOP_GRACE_SECONDS", "2")
        env.setdefault("ATTUNE_LOG_FORMAT", "text")
        # Nobody stands before this API who would have to turn to another one first.
        env.setdefault("ATTUNE_DRAIN_SECONDS", "0")

    def _migrate(self, command: Sequence[str]) -> None:
        began = time.monotonic()
        running = self.supervisor.run_once(Program("migrate", command, self.env, self.home.run))
        try:
            while running.exited() is None:
                self._check_time("the migrations")
                self._interrupts.pause(0.05)
        finally:
            running.finish()
        status = running.exited()
        if status != 0:
            log = self.home.log("migrate")
            raise StackError(f"the migrations failed ({explain(status)}). {log} ends with:\n{tail(log)}")
        self._journal.say("migrations.done", seconds=time.monotonic() - began)

    def _start_services(self) -> None:
        base_url = f"http://{_reachable(self.env['ATTUNE_HOST'])}:{self.env['ATTUNE_PORT']}"
        admin_key = self.env["ATTUNE_BOOTSTRAP_ADMIN_KEY"]
        since = ready.database_time(self.env["ATTUNE_DATABASE_URL"])
        metrics = self.env.get("ATTUNE_METRICS_PORT")
        for number, service in enumerate(self._plan.services):
            # A port each: they all run on this machine.
            own = {"ATTUNE_METRICS_PORT": str(int(metrics) + number)} if metrics else {}
            self.supervisor.add(
                Program(
                    name=service.name,
                    command=service.command,
                    env={**self.env, **own, **service.env},
                    cwd=self.home.run,
                    stop_signal=signal.SIGTERM,
                ),
                service.stage,
            )
        self._wait("the API", lambda: ready.api(base_url))
        api_key = ready.api_key(self.home, base_url, admin_key)
        for kind in sorted(self._plan.worker_kinds):
            self._wait(f"a {kind} worker", partial(ready.worker, base_url, admin_key, kind, since))
        self._connection = Connection(f"{base_url}/v1", api_key, admin_key)
        self.home.write("connection.json", asdict(self._connection))

    def _wait(self, name: str, answers: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not answers():
            self._check_time(name)
            self.supervisor.turn_while_starting()
            self._interrupts.pause(0.05)
        self._journal.say("waited", name=name, seconds=time.monotonic() - began)

    def _check_time(self, name: str) -> None:
        if time.monotonic() > self._deadline:
            raise StackError(f"{name} was not ready after {START_SECONDS:.0f} s; the logs are in {self.home.logs}.")


def _reachable(host: str) -> str:
    """An address to reach a server that listens on ``host`` from this machine."""
    return ports.LOOPBACK if host in ("0.0.0.0", "::", "") else host
