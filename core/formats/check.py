"""A whole JSONL file, fed as it streams by: every fault with its line, in memory for one line."""

from collections import Counter
from collections.abc import Callable

from core.formats import conversation, excerpt, parse, rows
from core.formats.containers import BOM
from core.formats.report import FAULTS_KEPT, Code, Fault, Report

_PIECE = 256 * 1024
_PATH_CHARACTERS = 200
_HOPELESS = 100_000
"""So many bad rows, and more of them than good ones: whoever reads their faults has seen enough."""


class Checker:
    """``feed`` the file's bytes in any pieces, then ``finish``. ``on_row`` gets each good row and its line number,
    ``on_fault`` every fault, where the report keeps the first hundred.

    Blank lines are allowed and teach nothing; lines may end in CRLF; the last one needs no line break.
    """

    def __init__(
        self,
        on_row: Callable[[int, rows.Row], None] | None = None,
        *,
        on_fault: Callable[[Fault], None] | None = None,
        format: str = "auto",
    ) -> None:
        self._on_row = on_row
        self._on_fault = on_fault
        self._held = bytearray()
        self._skipping = False
        self.report = Report(format=None, bytes=0, lines=0, rows=0)
        self._roles: Counter[str] = Counter()
        self._given = None if format == "auto" else rows.BY_NAME[format]
        self._reader = self._given
        self._seen = False
        # In the report at the end: it is a model, and slow to write to for each row.
        self._rows = self._bad_rows = self._faults = 0
        self.hopeless = False
        """Whether it is no use to go on feeding."""

    def feed(self, chunk: bytes) -> None:
        self.report.bytes += len(chunk)
        # A chunk of short lines takes twenty times its size once it is split.
        for start in range(0, len(chunk), _PIECE):
            if not self.hopeless:
                self._feed(chunk[start : start + _PIECE])

    def _feed(self, piece: bytes) -> None:
        head, *rest = piece.split(b"\n")
        self._hold(head)
        if not rest:
            return
        self._held_line()
        if self.hopeless:
            return
        tail = rest.pop()
        for number, line in enumerate(rest, self.report.lines + 1):
            if line and not line.isspace():
                if number == 1:
                    self._first(line)
                else:
                    self.row(number, line)
                if self.hopeless:
                    self.report.lines = number
                    return
        self.report.lines += len(rest)
        self._hold(tail)

    def finish(self) -> Report:
        report = self.report
        # A line that is cut off by what breaks the file is no fault of its own.
        if (self._held or self._skipping) and not report.broken:
            self._held_line()
        if not self._seen and not report.broken:
            self.broken(0, Code.EMPTY_FILE, "the file has no rows")
        report.rows, report.bad_rows, report.fault_count = self._rows, self._bad_rows, self._faults
        report.roles = dict(self._roles)
        if self._reader is not None:
            report.format = self._reader.format
            if self._reader.conversion is not None:
                report.converted_from, report.conversion = self._reader.name, self._reader.conversion
        return report

    def _hold(self, piece: bytes) -> None:
        """Keeps a piece of the line that is still growing, unless it has grown too long to be kept."""
        if not piece or self._skipping:
            return
        self._held += piece
        if len(self._held) > parse.MAX_LINE_BYTES:
            self._held, self._skipping = bytearray(), True

    def _held_line(self) -> None:
        line, skipped = bytes(self._held), self._skipping
        self._held, self._skipping = bytearray(), False
        self.report.lines += 1
        if skipped:
            self.bad_row(self.report.lines, [parse.too_long()])
        elif line and not line.isspace():
            if self.report.lines == 1:
                self._first(line)
            else:
                self.row(self.report.lines, line)

    def _first(self, line: bytes) -> None:
        if line.startswith(BOM):
            self.bom()
            line = line[len(BOM) :]
        if line and not line.isspace():
            self.row(1, line)

    def row(self, number: int, line: bytes) -> None:
        """One row as JSON: what a line holds, or a record of another container."""
        if self.hopeless:
            return
        self._seen = True
        reader, row, problems = rows.read(line, self._given)
        if reader is not None and self._reader is None:
            self._reader = reader
        if reader is not None and reader is not self._reader:
            assert self._reader is not None
            message = f"a row of the format {reader.name} in a file of {self._reader.name} rows"
            problems = [parse.Problem("", Code.MIXED_FORMATS, message)]
        if row is None or problems:
            self.bad_row(number, problems, line)
            return
        self._rows += 1
        for messages in _conversations(row):
            for one in messages:
                self._roles[one["role"]] += 1
        if self._on_row is not None:
            self._on_row(number, row)

    def bad_row(self, number: int, problems: parse.Problems, line: bytes | None = None) -> None:
        """A row that can't be used, and why; ``line`` is its text, if it has one that says something."""
        if self.hopeless:
            return
        self._seen = True
        self._bad_rows += 1
        if self._on_fault is None and len(self.report.faults) >= FAULTS_KEPT:
            self._faults += len(problems)
        else:
            source = None if line is None else excerpt.Source(line)
            for problem in problems:
                self.fault(number, *problem, source)
        if self._bad_rows >= _HOPELESS and self._bad_rows > self._rows:
            self.hopeless = True
            message = f"{self._bad_rows:,} rows are wrong, more than are right: what follows is not checked"
            self.broken(number, Code.TOO_MANY_FAULTS, message)

    def broken(self, line: int, code: Code, message: str) -> None:
        """The file can't be used as a whole, however many bad rows are allowed."""
        self.report.broken = True
        self.fault(line, "", code, message)

    def bom(self) -> None:
        self.fault(1, "", Code.BOM, "the file starts with a byte order mark; save it as plain UTF-8")

    def fault(self, line: int, path: str, code: Code, message: str, source: excerpt.Source | None = None) -> None:
        self._faults += 1
        if self._on_fault is None and len(self.report.faults) >= FAULTS_KEPT:
            return
        shown = None if source is None else source.excerpt(path, message)
        path, message = _storable(path), _storable(message)
        # Keys that the user chose are in the path, and they may be megabytes long.
        path = path if len(path) <= _PATH_CHARACTERS else f"{path[:_PATH_CHARACTERS]}…"
        fault = Fault(line=line, path=path, code=code, message=message, excerpt=shown)
        if len(self.report.faults) < FAULTS_KEPT:
            self.report.faults.append(fault)
        if self._on_fault is not None:
            self._on_fault(fault)


def _storable(text: str) -> str:
    """As a database's JSON takes it: names that the user chose may have NUL in them, or half a surrogate pair."""
    return text if text.isprintable() else text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _conversations(row: rows.Row) -> list[list[conversation.Message]]:
    match row:
        case rows.Chat():
            return [row.messages]
        case rows.Preference():
            return [row.messages, row.preferred, row.rejected]
        case rows.Labelled(prompt=list() as prompt, completion=list() as completion):
            return [prompt, completion]
        case _:
            return []
