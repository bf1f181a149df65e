"""A data file on disk, whatever it is kept in and written as: its rows, and every fault with its line.

The one way to read a file, for the prepare child, the command line and the tests alike.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from core.formats.check import Checker
from core.formats.report import Fault, Report
from core.formats.rows import Row

_CHUNK = 1024 * 1024


class Enough(Exception):
    """Raised by ``on_row`` or ``on_fault``: the rest of the file need not be read. The report is of what was read."""


def read_file(
    path: Path,
    on_row: Callable[[int, Row], None] | None = None,
    *,
    on_fault: Callable[[Fault], None] | None = None,
    format: str = "auto",
    progress: Callable[[float], None] | None = None,
) -> Report:
    """Read all of it. ``on_row`` gets each good row with its line, ``on_fault`` every
    fault, where the report keeps the first hundred; ``format`` overrides what the rows look like;
    ``progress`` is told the percentage of the file's bytes that has been read, often."""
    checker = Checker(on_row, on_fault=on_fault, format=format)
    size, done = max(1, path.stat().st_size), 0
    with path.open("rb") as file, suppress(Enough):
        while chunk := file.read(_CHUNK):
            checker.feed(chunk)
            done += len(chunk)
            if progress is not None:
                progress(100 * done / size)
    return checker.finish()
