"""Signals and waiting: one place where the supervisor sleeps, and what wakes it."""

import contextlib
import select
import signal
import socket
import time
from collections.abc import Iterator

from cli.stack.errors import Interrupted


class Interrupts:
    """Sleeps without signals of its own: for a stack inside another program."""

    def pause(self, seconds: float) -> None:
        """Sleep, but not past a signal; raises Interrupted once somebody asked to stop."""
        time.sleep(seconds)


class Signals(Interrupts):
    """SIGTERM, SIGINT and SIGHUP ask to stop; a child's end cuts a sleep short."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)

    def pause(self, seconds: float) -> None:
        if self.asked is None and select.select([self._reader], [], [], seconds)[0]:
            with contextlib.suppress(BlockingIOError):
                self._reader.recv(1024)
        if self.asked is not None:
            raise Interrupted(signal.Signals(self.asked).name)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Handle the signals inside the block; call it from the main thread."""
        wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)

    def _ask(self, number: int, frame: object) -> None:
        # The first one counts: while the stack is stopping already there is nothing more to ask for.
        if self.asked is None:
            self.asked = number
