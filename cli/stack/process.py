"""One child process of the stack: started so that it can't outlive us, and ended politely, then firmly.

Knows nothing about what the program is.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.priority import stand_back

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Account:
    """The system user a process runs as, when that is not ours."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Program:
    """How one process is started and stopped."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    account: Account | None = None
    stop_signal: int = signal.SIGTERM
    firm_signal: int = signal.SIGKILL
    """What follows when it has not ended in time."""
    death_signal: int = signal.SIGKILL
    """What the kernel sends when the supervisor dies without a word."""
    before: Callable[[], None] | None = None
    """Clears what an earlier, killed process of this program left behind."""
    stands_back: int = 0
    """How far it stands back behind the others, in nice values."""
    after: Callable[[], None] | None = None
    """Removes files that the program leaves when it ends."""


@dataclass
class Running:
    """A started process."""

    program: Program
    popen: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    asked: bool = False

    @property
    def pid(self) -> int:
        return self.popen.pid

    def exited(self) -> int | None:
        """The exit status once it ended: negative for a signal."""
        return self.popen.poll()

    def ask(self) -> None:
        """Ask it to stop, once."""
        if not self.asked and self.exited() is None:
            self.asked = True
            os.kill(self.pid, self.program.stop_signal)

    def finish(self) -> None:
        """End it firmly if it still runs, and whatever is left of its process group."""
        if self.exited() is None and self.program.firm_signal != signal.SIGKILL:
            os.kill(self.pid, self.program.firm_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(1)
        kill_group(self.pid)
        self.popen.wait()
        if self.program.after is not None:
            self.program.after()


def start(program: Program, log: int) -> Running:
    """Start a program with its output appended to the descriptor ``log``.

    Call it from the thread that lives as long as the stack: the death signal follows the thread that forked.
    """
    if program.before is not None:
        program.before()
    parent = os.getpid()

    def die_with_parent() -> None:
        # Runs after the change of user, which would have cleared the setting.
        _libc.prctl(PR_SET_PDEATHSIG, program.death_signal, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        if program.stands_back:
            stand_back(program.stands_back)

    account = program.account
    popen = subprocess.Popen(
        list(program.command),
        env=dict(program.env),
        cwd=program.cwd,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        # A Ctrl-C at the terminal is for the supervisor, which stops its children in order.
        start_new_session=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
        preexec_fn=die_with_parent,
    )
    return Running(program, popen)


def kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def birth(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is none. With the pid it is unmistakable."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may contain anything, so the fields are counted from the last one.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])
