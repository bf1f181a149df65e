"""Writing events.jsonl: one line an event, whole or not at all."""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any, Literal

from worker.folder import Event

EventType = Literal["started", "phase", "found", "answers", "step", "eval", "checkpoint", "message", "done", "error"]


class Events:
    """Appends to the folder's event file. Each event is one ``write`` of one line, so a reader that tails the file
    sees it at once and a kill never leaves half of one in front of the next."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            # A full disk can still cut a line; what follows must not be glued to it.
            os.write(self._file, b"\n")

    def emit(self, kind: EventType, /, **fields: Any) -> None:
        event = Event(type=kind, t=time.time(), **fields)
        # The fields of each type are listed at Event. NaN is not JSON: it raises here instead of breaking a reader.
        line = json.dumps(event.model_dump(), allow_nan=False, ensure_ascii=False) + "\n"
        whole = line.encode()
        if os.write(self._file, whole) < len(whole):
            # The disk took what it had room for; nobody may miss an event without a word.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def message(self, level: Literal["info", "warn", "error"], text: str, **data: Any) -> None:
        self.emit("message", level=level, message=text, data=data)

    def close(self) -> None:
        os.close(self._file)


class Silent(Events):
    """What the ranks that don't speak use: one process of a run writes, the others only compute."""

    def __init__(self) -> None:
        pass

    def emit(self, kind: EventType, /, **fields: Any) -> None:
        pass

    def close(self) -> None:
        pass
