"""The child's side of a slot: wait idle with the imports done, run one folder, exit; end with the supervisor.

The supervisor speaks over the child's standard input, one line a command:

    PRELOAD <dir>   load this base model now, while nothing runs
    MEASURE         find out what this machine can do; for trainers
    START <dir>     run this job folder and exit with its status

The child answers ``READY``, ``LOADED <dir>`` and ``MEASURED <JSON in one line>`` on its standard output; everything
else goes to standard error.
"""

import ctypes
import fcntl
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from core.priority import stand_back

_PR_SET_PDEATHSIG = 1
LOCK_NAME = "slot.lock"
NICE = 10
"""How far a child stands back behind the servers on its machine: they need little, but they need it at once."""


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the thread that spawned this process ends (Linux ``prctl(2)``).

    End-of-file on standard input says the same a moment later; each covers a case the other misses: the signal
    comes even while Python is stuck in native code, the pipe even when the parent died before this call.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def hold_slot(lock: Path) -> int:
    """Take the slot's lock and keep it until this process ends; waits for a predecessor that is still dying.

    The kernel lets go of the lock when the last process holding it is gone, so two trainers can never share a slot,
    whatever happened to their supervisors.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def serve(
    preload: Callable[[Path], None], run: Callable[[Path], int], measure: Callable[[], str] | None = None
) -> NoReturn:
    """Answer commands until ``START``; never returns. Call it once the expensive imports are done."""
    die_with_parent()
    stand_back(NICE)
    # The protocol keeps the real standard output to itself: a library's stray print must not look like an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    commands: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands,), name="supervisor-pipe", daemon=True).start()
    answers.write("READY\n")
    while True:
        verb, _, argument = commands.get().partition(" ")
        if verb == "PRELOAD":
            preload(Path(argument))
            answers.write(f"LOADED {argument}\n")
        elif verb == "MEASURE" and measure is not None:
            answers.write(f"MEASURED {measure()}\n")
        elif verb == "START":
            folder = Path(argument)
            hold_slot(folder.parent / LOCK_NAME)
            status = run(folder)
            sys.stdout.flush()
            sys.stderr.flush()
            # Straight out: a daemon thread blocked in a read must not delay the slot's next child.
            os._exit(status)


def _listen(commands: "queue.SimpleQueue[str]") -> None:
    for line in sys.stdin:
        commands.put(line.rstrip("\n"))
    # End of file: the supervisor is gone, and with it this process's right to the slot.
    os._exit(0)
