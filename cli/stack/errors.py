"""What can keep a stack from starting, said in a sentence the person at the terminal can act on."""

from pathlib import Path


class StackError(Exception):
    """The stack can't start or go on; the message says why and what helps."""


class HomeInUse(StackError):
    """Another process holds the home."""

    def __init__(self, home: Path, pid: int | None) -> None:
        holder = f"process {pid}" if pid is not None else "another process"
        super().__init__(f"{home} is in use: {holder} runs a stack on it. Stop it with `attune down --home {home}`.")
        self.pid = pid


class Interrupted(Exception):
    """Somebody asked the stack to stop while it was starting."""
