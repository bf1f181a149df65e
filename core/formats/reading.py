"""A data file on disk, whatever it is kept in and written as: its rows, and every fault with its line.

The one way to read a file, for the prepare child, the command line and the tests alike.
"""

import io
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from core.formats import containers, parse, rows
from core.formats.array import Array
from core.formats.check import Checker
from core.formats.containers import Unreadable
from core.formats.parse import Problem
from core.formats.report import Code, Fault, Report
from core.formats.rows import Row
from core.formats.tables import Csv, Parquet, TableRow

_CHUNK = 1024 * 1024
_DECIDES = 4096
"""Bytes of a passing file that decide what it is."""
Progress = Callable[[float], None]


class Enough(Exception):
    """Raised by ``on_row`` or ``on_fault``: the rest of the file need not be read. The report is of what was read."""


def read_file(
    path: Path,
    on_row: Callable[[int, Row], None] | None = None,
    *,
    on_fault: Callable[[Fault], None] | None = None,
    format: str = "auto",
    progress: Progress | None = None,
) -> Report:
    """Read all of it. ``on_row`` gets each good row with its line, ``on_fault`` every fault, where the report keeps
    the first hundred; ``format`` overrides what the rows look like; ``progress`` is told the percentage of the file's
    bytes that has been read, often.

    A row of JSONL is told by its line and one of CSV by the line it begins on; one of an array or of Parquet by its
    number, from 1.
    """
    checker = Checker(on_row, on_fault=on_fault, format=format)
    size = path.stat().st_size
    with io.BufferedReader(io.FileIO(path), containers.HEAD) as file, ExitStack() as stack:
        told = _told(file, size, progress)
        try:
            _read(file, size, checker, told, stack)
        except Unreadable as error:
            checker.broken(error.line, error.code, error.message)
        except Enough:
            pass
    checker.report.bytes = size
    return checker.finish()


class Passing:
    """The check of a file whose bytes pass by once, as far as it can be done so: plain JSONL, nothing else."""

    def __init__(self) -> None:
        self._head: bytes | None = b""
        self._checker: Checker | None = None

    def feed(self, chunk: bytes) -> None:
        if self._head is not None:
            self._head += chunk
            if len(self._head) < _DECIDES:
                return
            self._decide(self._head)
        elif self._checker is not None:
            self._checker.feed(chunk)

    def forget(self) -> None:
        """The file is too long to be checked now."""
        self._head = self._checker = None

    def finish(self) -> Report | None:
        """None: the file has to be read with :func:`read_file`."""
        if self._head is not None:
            self._decide(self._head)
        return None if self._checker is None else self._checker.finish()

    def _decide(self, head: bytes) -> None:
        self._head = None
        if plain(head):
            self._checker = Checker()
            self._checker.feed(head)


def plain(head: bytes) -> bool:
    """Whether a file that begins so is JSONL as it is, or nothing known at all: the checker can be fed with it."""
    if containers.compression(head) is not None:
        return False
    try:
        return containers.tell(head, rows.FIELDS).container == "jsonl"
    except Unreadable:
        return False


def _told(file: IO[bytes], size: int, progress: Progress | None) -> Callable[[], None]:
    """Tells how far the file has been read."""
    if progress is None:
        return lambda: None
    return lambda: progress(min(100.0, 100 * file.tell() / max(1, size)))


def _read(
    file: "io.BufferedReader[Any]", size: int, checker: Checker, told: Callable[[], None], stack: ExitStack
) -> None:
    packed = containers.compression(file.read(4))
    file.seek(0)
    source: io.BufferedReader[Any] = file
    if packed is not None:
        checker.report.compression = packed
        source = stack.enter_context(io.BufferedReader(containers.Unpacked(file, packed, size), containers.HEAD))
    head = source.peek(containers.HEAD)
    if packed is not None and containers.compression(head) is not None:
        raise Unreadable(Code.UNSUPPORTED_FILE, "the file is compressed twice")
    kind = containers.tell(head, rows.FIELDS)
    checker.report.container = kind.container
    match kind.container:
        case "jsonl":
            while not checker.hopeless and (chunk := source.read(_CHUNK)):
                checker.feed(chunk)
                told()
        case "json":
            _read_array(source, head, checker, told)
        case "csv":
            table = Csv(source, kind.delimiter)
            try:
                _take(table.rows(_known), checker, told)
            finally:
                checker.report.lines = table.lines
        case "parquet":
            if packed is not None:
                # Its directory is at the end: it has to lie on disk.
                whole = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # the stack closes it
                shutil.copyfileobj(source, whole, _CHUNK)
                parquet = Parquet(whole, size)
            else:
                parquet = Parquet(file, size)
            _take(parquet.rows(_known), checker, told)
            checker.report.lines = parquet.rows_in_all


def _read_array(source: IO[bytes], head: bytes, checker: Checker, told: Callable[[], None]) -> None:
    array = Array()
    if head.startswith(containers.BOM):
        source.read(len(containers.BOM))
        checker.bom()
    try:
        while chunk := source.read(_CHUNK):
            for record in array.feed(chunk):
                if record.gap:
                    checker.bad_row(record.number, [Problem("", Code.INVALID_JSON, "there is a comma too many here")])
                elif record.text is None:
                    checker.bad_row(record.number, [parse.too_long()])
                else:
                    checker.row(record.number, record.text)
                if checker.hopeless:
                    return
            told()
        array.finish()
    finally:
        checker.report.lines = array.lines


def _take(table: Iterable[TableRow], checker: Checker, told: Callable[[], None]) -> None:
    for count, row in enumerate(table):
        if row.problems:
            checker.bad_row(row.number, row.problems)
        else:
            checker.row(row.number, row.text)
        if checker.hopeless:
            return
        if count % 1000 == 0:
            told()


def _known(columns: list[str]) -> Collection[str]:
    known = [name for name in dict.fromkeys(columns) if name in rows.FIELDS]
    if not known:
        problem = rows.unknown(columns)
        raise Unreadable(problem.code, problem.message, 1)
    return known
