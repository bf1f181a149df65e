"""`attune up` as a process of its own, with the processes a test asks for, and what can be seen of it from outside."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.main import main

ROOT = Path(__file__).resolve().parents[2]

# The servers, the API, and a process that does nothing: enough for everything but training.
CODE = """
import sys
from pathlib import Path
from cli import exits, service
from cli.stack import plan

whole = plan.whole()
idle = plan.Service("idle", [sys.executable, "-c", "import time; time.sleep(3600)"], stage=1)
small = plan.Plan(whole.migrate, [*(s for s in whole.services if s.name == "api"), idle])
chosen = {"small": small, "servers": plan.SERVERS_ONLY}[sys.argv[2]]
sys.exit(exits.run(lambda: service.run(Path(sys.argv[1]), None, chosen)))
"""


def environment(**more: str) -> dict[str, str]:
    """Ours, without the addresses of servers or services that happen to be set."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("ATTUNE_", "OPENAI_"))}
    return {**plain, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [plain.get("PYTHONPATH")])]), **more}


@dataclass(frozen=True)
class Done:
    """A command line that has ended."""

    returncode: int
    stdout: str
    stderr: str


def attune(*arguments: object, env: dict[str, str] | None = None) -> Done:
    """Run a command line in this process: the same code as the console script, without a second of imports."""
    stdout, stderr = io.StringIO(), io.StringIO()
    ours = dict(os.environ)
    os.environ.clear()
    os.environ.update(env or environment())
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            main([str(argument) for argument in arguments])
    except SystemExit as end:
        return Done(int(end.code or 0), stdout.getvalue(), stderr.getvalue())
    finally:
        os.environ.clear()
        os.environ.update(ours)
    raise AssertionError("a command line ends with an exit status")


class Up:
    """A started `attune up`."""

    def __init__(self, home: Path, plan: str = "small") -> None:
        self.home = home
        self.errors = home.parent / f"{home.name}.stderr"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CODE, str(home), plan],
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.exports = self._read_exports()

    def _read_exports(self) -> list[str]:
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline().strip() for _ in range(2)]
        assert all(lines), self.errors.read_text()
        return lines

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(20)

    def status(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.home / "run" / "status.json").read_text())
        return record

    def pids(self) -> dict[str, int | None]:
        return {process["name"]: process["pid"] for process in self.status()["processes"]}

    def ports(self) -> set[int]:
        return set(json.loads((self.home / "home.json").read_text())["ports"].values())

    def journal(self) -> str:
        return (self.home / "logs" / "up.log").read_text()


def alive(pid: int | None) -> bool:
    """Whether that process runs; a zombie does not."""
    if pid is None:
        return False
    try:
        return re.split(r"\) ", Path(f"/proc/{pid}/stat").read_text())[-1][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(true: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def processes_of(home: Path) -> list[int]:
    """Every process that names this home in its command line or works inside it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
            cwd = os.readlink(folder / "cwd")
        except OSError:
            continue
        if int(folder.name) != os.getpid() and (str(home) in command or cwd.startswith(str(home))):
            found.append(int(folder.name))
    return found


def sockets_of(ports: set[int]) -> list[Path]:
    """Unix sockets in /tmp named after one of these ports."""
    return [path for path in Path("/tmp").glob("*.sock") if any(str(port) in path.name for port in ports)]


def shared_memory_of(pid: int | None) -> set[str]:
    """The segments a process has mapped: names below /dev/shm, ids of System V segments."""
    found = set()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        path = fields[5] if len(fields) == 6 else ""
        if path.startswith("/dev/shm/"):
            found.add(path.removeprefix("/dev/shm/"))
        elif path.startswith("/SYSV"):
            found.add(fields[4])
    return found


def shared_memory() -> set[str]:
    """Every segment there is on this machine, named the same way."""
    segments = {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}
    return segments | {path.name for path in Path("/dev/shm").iterdir()}
