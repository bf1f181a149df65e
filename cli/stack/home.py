"""The folder of one stack: where everything lies, who holds it, its secrets and its connection file.

Knows nothing about servers or processes.

    DIR/home.json          id of this home, the ports it used last, where its database lies
    DIR/secrets.json       passwords and keys, made once (0600)
    DIR/connection.json    how a client reaches the service (0600); there while the stack is ready
    DIR/lock               held by the running `attune up`, whose pid it contains
    DIR/run/               files that mean nothing once the stack has ended
    DIR/logs/NAME.log      one log for each process; DIR/logs/up.log is the supervisor's own
    DIR/postgres, DIR/redis, DIR/seaweedfs, DIR/worker      data
"""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli.stack.errors import HomeInUse, StackError

LOG_BYTES = 16 * 1024 * 1024
"""A log larger than this is set aside (NAME.log.1) when its process starts."""


class Home:
    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self._lock: int | None = None

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def worker(self) -> Path:
        return self.path / "worker"

    @property
    def connection_file(self) -> Path:
        return self.path / "connection.json"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    # Holding the home.

    def acquire(self) -> None:
        """Make the folder and hold it for this process; raises HomeInUse when another one does."""
        made = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._refuse_foreign()
        # The descriptor is not inheritable, so the lock ends with this process whatever its children do.
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise HomeInUse(self.path, self.holder()) from None
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        self._lock = lock
        if made and os.geteuid() == 0:
            # PostgreSQL runs as another user: it may pass through a folder that is ours, but not look into it.
            self.path.chmod(0o711)
        for folder in (self.run, self.logs, self.worker):
            folder.mkdir(exist_ok=True, mode=0o700)

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def holder(self) -> int | None:
        """The pid of the process that holds this home, None when nobody does (or it has not said its pid yet)."""
        try:
            lock = os.open(self.path / "lock", os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # The holder writes its pid right after it took the lock.
            for _ in range(20):
                text = os.pread(lock, 32, 0).decode().strip()
                if text:
                    return int(text)
                time.sleep(0.05)
            return None
        else:
            return None
        finally:
            os.close(lock)

    def _refuse_foreign(self) -> None:
        """Two users' files in one home would lock both of them out."""
        record = self.path / "home.json"
        if record.exists() and record.stat().st_uid != os.geteuid():
            raise StackError(
                f"{self.path} belongs to the user with id {record.stat().st_uid}: "
                "run `attune up` as that user, or choose another --home."
            )
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise StackError(f"{self.path} is not writable for this user: choose another --home.")

    # What it remembers.

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of this home; empty when there is none."""
        try:
            record: dict[str, Any] = json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return {}
        return record

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Replace a JSON file whole, readable by this user alone."""
        target = self.path / name
        scratch = target.with_name(f".{target.name}.{os.getpid()}")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(record, file, indent=2)
            file.write("\n")
        scratch.replace(target)

    def remember(self, **facts: Any) -> dict[str, Any]:
        """Add facts to home.json and return all of it."""
        record = self.read("home.json")
        if "id" not in record:
            record["id"] = secrets.token_hex(8)
        record.update(facts)
        self.write("home.json", record)
        return record

    def secret(self, name: str, make: Callable[[], str] = lambda: secrets.token_hex(24)) -> str:
        """The secret of that name, made on first use."""
        record = self.read("secrets.json")
        if name not in record:
            record[name] = make()
            self.write("secrets.json", record)
        return str(record[name])

    def keep_secret(self, name: str, value: str) -> None:
        record = self.read("secrets.json")
        record[name] = value
        self.write("secrets.json", record)

    def open_log(self, name: str) -> int:
        """A descriptor to append to NAME.log, set aside first when it has grown large."""
        path = self.log(name)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
