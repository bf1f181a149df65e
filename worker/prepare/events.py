"""What the child tells while it works: lines of events.jsonl in its folder."""

import time
from pathlib import Path

from worker.folder import Event
from worker.prepare.folder import Note

_EVENT_SECONDS = 0.5


class Events:
    """events.jsonl. Progress comes at most twice a second: it is for people."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "events.jsonl").open("a", encoding="utf-8")
        self._last = 0.0

    def phase(self, phase: str, percent: float, message: str) -> None:
        self._write(Event(type="phase", t=time.time(), phase=phase, percent=round(percent, 1), message=message))

    def progress(self, phase: str, percent: float, message: str) -> None:
        if time.monotonic() - self._last >= _EVENT_SECONDS:
            self._last = time.monotonic()
            self.phase(phase, percent, message)

    def note(self, note: Note) -> None:
        self._write(Event(type="message", t=time.time(), level=note.level, message=note.message, data=note.data))

    def _write(self, event: Event) -> None:
        self._file.write(event.model_dump_json() + "\n")
        self._file.flush()
