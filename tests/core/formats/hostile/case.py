"""One bad data file: what it holds, and every fault it must be told."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from core.formats.report import Code

Where = tuple[int, str, Code]


class Bad(NamedTuple):
    name: str
    data: bytes | Callable[[], Iterable[bytes]]
    """A file of megabytes is made as it is needed."""
    faults: list[Where]
    """All of them, in order; the first when ``more``."""
    more: bool = False
    """Whether further faults follow of which nothing is said here."""
    huge: bool = False
    """Takes seconds: measured, and checked with the long tests."""


def chunks(bad: Bad) -> Iterator[bytes]:
    if isinstance(bad.data, bytes):
        yield bad.data
    else:
        yield from bad.data()


def write(bad: Bad, path: Path) -> Path:
    with path.open("wb") as file:
        for chunk in chunks(bad):
            file.write(chunk)
    return path
