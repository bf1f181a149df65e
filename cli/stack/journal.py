"""What the supervisor did and why: one line an event, in DIR/logs/up.log and on stderr."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO


class Journal:
    def __init__(self, path: Path | None = None, echo: TextIO | None = None) -> None:
        self._path = path
        self._echo = echo

    @classmethod
    def to(cls, path: Path, *, quiet: bool = False) -> "Journal":
        return cls(path, None if quiet else sys.stderr)

    def say(self, event: str, **facts: object) -> None:
        """The event's name is constant; what differs are the facts."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        words = " ".join(f"{key}={_plain(value)}" for key, value in facts.items())
        line = f"{now} {event} {words}".rstrip()
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(line + "\n")
        if self._echo is not None:
            try:
                print(line, file=self._echo, flush=True)
            except (BrokenPipeError, OSError):
                # The terminal is gone; the file still has it.
                self._echo = None


def _plain(value: object) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    return repr(text) if " " in text else text
